#!/usr/bin/env python3
"""ci/gate_table: counts, refusals and --check, on crafted runs."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = [{"gate": 5, "case": "a.b", "kind": "vector"}, {"gate": 5, "case": "a.c", "kind": "property"}, {"gate": 9, "case": "d", "kind": "differential"}]


class GateTable(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self.temporary.name)
        self.addCleanup(self.temporary.cleanup)
        self.write("list.json", json.dumps({"cases": CASES}))
        self.write("mutants.json", json.dumps({"mutants": [{"name": "x", "killer": "a.b"}, {"name": "y", "killer": "d"}]}))
        self.write("README.md", "before\n<!-- gate table: written by ci/gate_table -->\nold\n<!-- end of gate table -->\nafter\n")
        self.run_of("one")

    def write(self, name, text):
        (self.folder / name).write_text(text, encoding="utf-8")

    def run_of(self, name, margins=(0, 0.25, None), statuses=("pass", "pass", "not_supported"), cases=CASES, partial=False, summary=True):
        lines = [{"gate": c["gate"], "case": c["case"], "status": s, "margin": m} for c, s, m in zip(cases, statuses, margins)]
        if summary:
            lines.append({"summary": True, "implementation": name, "partial": partial})
        self.write(name + ".jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def table(self, *arguments, runs=("one",)):
        command = [sys.executable, ROOT / "ci/gate_table", "--list", self.folder / "list.json", "--mutants", self.folder / "mutants.json", "--readme", self.folder / "README.md", *arguments]
        done = subprocess.run([*command, *(self.folder / (run + ".jsonl") for run in runs)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout

    def text(self):
        return (self.folder / "README.md").read_text(encoding="utf-8")

    def test_counts(self):
        self.assertEqual(self.table()[0], 0)
        self.assertIn("| 5 | forward | 2 | 1 | 1 | 0 | 1 | 2 | 0.25 |", self.text())
        self.assertIn("| 9 | end to end | 1 | 0 | 0 | 1 | 1 | 0, 1 not supported |  |", self.text())
        self.assertIn("|  | all | 3 | 1 | 1 | 1 | 2 | 2 |  |", self.text())
        self.assertTrue(self.text().startswith("before\n<!--") and self.text().endswith("-->\nafter\n"))

    def test_check(self):
        self.assertNotEqual(self.table("--check")[0], 0)
        self.assertIn("old", self.text(), "--check changes nothing")
        self.table()
        self.assertEqual(self.table("--check")[0], 0)
        self.run_of("one", margins=(0, 0.5, None))
        self.assertEqual(self.table("--check")[0], 0, "margins are the machine's")
        self.run_of("one", statuses=("pass", "fail", "not_supported"))
        self.assertNotEqual(self.table("--check")[0], 0)
        self.run_of("one")
        self.write("mutants.json", json.dumps({"mutants": [{"name": "x", "killer": "a.b"}]}))
        self.assertNotEqual(self.table("--check")[0], 0)

    def change(self, old, new):
        self.assertEqual(self.text().count(old), 1, old)
        self.write("README.md", self.text().replace(old, new))

    def test_check_without_runs(self):
        """Every count of the list and the mutants, each wrong in turn; the row is named with both values."""
        self.table()
        good = self.text()
        status, output = self.table("--check", runs=())
        self.assertEqual(status, 0, output)
        row = "| 5 | forward | 2 | 1 | 1 | 0 | 1 | 2 | 0.25 |"
        for wrong in ("| 5 | forward | 3 | 1 | 1 | 0 | 1 | 2 | 0.25 |", "| 5 | forward | 2 | 2 | 0 | 0 | 1 | 2 | 0.25 |", "| 5 | forward | 2 | 1 | 0 | 1 | 1 | 2 | 0.25 |",
                      "| 5 | forward | 2 | 1 | 1 | 0 | 2 | 2 | 0.25 |", "| 5 | other | 2 | 1 | 1 | 0 | 1 | 2 | 0.25 |"):
            self.change(row, wrong)
            status, output = self.table("--check", runs=())
            self.assertNotEqual(status, 0, wrong)
            self.assertIn("gate 5 (forward)", output)
            counts, right = (" | ".join(r.split(" | ")[2:7]) for r in (wrong, row))
            if counts != right:
                self.assertIn(f"says {counts} instead of {right}", output)
            self.write("README.md", good)
        self.change("|  | all | 3 |", "|  | all | 4 |")
        self.assertIn("the last row", self.table("--check", runs=())[1])
        self.write("README.md", good)
        self.change("| 0, 1 not supported |", "| 2 |")
        self.assertIn("gate 9 (end to end): one: pass says 2 of 1 cases", self.table("--check", runs=())[1])
        self.write("README.md", good)
        self.change("| 0, 1 not supported |", "| 1 |")  # adds up, and is not what a run says
        self.assertEqual(self.table("--check", runs=())[0], 0)
        self.assertNotEqual(self.table("--check")[0], 0)
        self.write("README.md", good.replace("| gate | subject |", "| number | subject |"))
        self.assertNotEqual(self.table("--check", runs=())[0], 0)
        self.write("README.md", good.replace(row + "\n", ""))
        self.assertNotEqual(self.table("--check", runs=())[0], 0)
        self.write("README.md", good)
        self.write("list.json", json.dumps({"cases": [*CASES, {"gate": 9, "case": "new", "kind": "vector"}]}))
        status, output = self.table("--check", runs=())
        self.assertNotEqual(status, 0)
        self.assertIn("gate 9 (end to end) says 1 | 0 | 0 | 1 | 1 instead of 2 | 1 | 0 | 1 | 1", output)

    def test_a_table_is_written_from_runs(self):
        before = self.text()
        self.assertNotEqual(self.table(runs=())[0], 0)
        self.assertEqual(self.text(), before)

    def test_list_of_a_program(self):
        self.table()
        program = self.folder / "program"
        program.write_text(f"#!/bin/sh\n[ \"$*\" = 'gates --list --json' ] && cat '{self.folder}/list.json'\n")
        program.chmod(0o700)
        command = [sys.executable, ROOT / "ci/gate_table", "--check", "--mutants", self.folder / "mutants.json", "--readme", self.folder / "README.md", "--program", program]
        self.assertEqual(subprocess.run(command, stdout=subprocess.DEVNULL).returncode, 0)
        self.write("list.json", json.dumps({"cases": CASES[:2]}))
        self.write("mutants.json", json.dumps({"mutants": []}))
        self.assertEqual(subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode, 1)
        program.write_text("#!/bin/sh\nexit 2\n")
        self.assertNotEqual(subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode, 0)

    def test_several_runs(self):
        self.run_of("two", statuses=("pass", "pass", "pass"))
        self.assertEqual(self.table(runs=("one", "two"))[0], 0)
        self.assertIn("two: largest error / bound", self.text())

    def test_refusals(self):
        for change in ({"partial": True}, {"summary": False}, {"cases": CASES[:2], "statuses": ("pass", "pass")}):
            self.run_of("one", **change)
            self.assertNotEqual(self.table()[0], 0, change)
        self.run_of("one")
        self.write("mutants.json", json.dumps({"mutants": [{"name": "x", "killer": "no.such"}]}))
        self.assertNotEqual(self.table()[0], 0)
        self.write("mutants.json", json.dumps({"mutants": []}))
        self.write("README.md", "no markers\n")
        self.assertNotEqual(self.table()[0], 0)


if __name__ == "__main__":
    unittest.main()
