#!/usr/bin/env python3
"""What the CUDA benches say to wrong command lines, and where there is no GPU: arguments_test.py PROGRAM."""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM = pathlib.Path(sys.argv.pop(1))
WRONG = {
    "cuda_linear_bench": [
        (["--row", "16"], "CFG_FLAG", "unknown argument '--row'"),
        (["--rows"], "CFG_FLAG", "--rows needs a value"),
        (["--rows", "16", "--rows", "64"], "CFG_FLAG", "--rows is given twice"),
        (["--rows", "16,,64"], "CFG_VALUE", "empty item"),
        (["--rows", "16,"], "CFG_VALUE", "empty item"),
        (["--rows", "0"], "CFG_VALUE", "'0', must be a whole number from 1"),
        (["--rows", "12a"], "CFG_VALUE", "'12a'"),
        (["--rounds", "99999999999999999999"], "CFG_VALUE", "--rounds"),
        (["--regime", "cold"], "CFG_VALUE", "must be one of burst, sustained"),
        (["--models", "flux1,flux3"], "CFG_VALUE", "'flux3'; known are flux1, sdxl, flux2, sd3"),
        (["--models", "flux1", "--shapes", "64x64"], "CFG_FLAG", "exclude each other"),
        (["--shapes", "3072"], "CFG_VALUE", "'3072', must be K x N"),
        (["--shapes", "3072x"], "CFG_VALUE", "a shape's N is ''"),
        (["--shapes", "3070x3072"], "CFG_VALUE", "multiples of 16"),
    ],
    "cuda_transfer_bench": [
        (["--block", "4"], "CFG_FLAG", "unknown argument '--block'"),
        (["--blocks", "58"], "CFG_VALUE", "'58', must be a whole number from 4 to 57"),
        (["--blocks", "4", "--slots", "2,5"], "CFG_VALUE", "--slots names 5, there are 4 blocks"),
        (["--slots", "0"], "CFG_VALUE", "'0'"),
        (["--compute-us", "-3"], "CFG_VALUE", "'-3'"),
    ],
}


def run(*arguments, **environment):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)


class Arguments(unittest.TestCase):
    def test_wrong_ones_are_named_with_status_2(self):
        for arguments, code, words in WRONG[PROGRAM.name]:
            done = run(*arguments)
            self.assertEqual((done.returncode, done.stdout), (2, ""), (arguments, done.stderr))
            self.assertTrue(done.stderr.startswith(f"{PROGRAM.name}: {code}: "), done.stderr)
            self.assertIn(words, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)

    def test_help(self):
        done = run("--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for flag in ("--rounds", "--json"):
            self.assertIn(flag, done.stdout)

    def test_without_a_gpu_it_says_so_and_leaves_no_file(self):
        with tempfile.TemporaryDirectory() as folder:
            done = run("--json", folder + "/out.json", CUDA_VISIBLE_DEVICES="")
            self.assertEqual((done.returncode, done.stdout), (3, ""), done.stderr)
            self.assertTrue(done.stderr.startswith(f"{PROGRAM.name}: GPU_NONE: no GPU can be used here: "), done.stderr)
            self.assertEqual(list(pathlib.Path(folder).iterdir()), [])


if __name__ == "__main__":
    unittest.main()
