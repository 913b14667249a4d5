#!/usr/bin/env python3
"""bench/cuda/results.py: medians, worst shapes, aims, rooflines, transfers, sanitizers and refusals, on crafted runs whose answers are worked out by hand."""
import copy
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "results.py"
# 100 multiprocessors at 1000 MHz: 4096 * 100 * 1e9 = 409.6 T/s in bf16, twice that in int8; memory 1 TB/s.
DEVICE = {"name": "Made GPU", "capability": 90, "multiprocessors": 100, "highest_mhz": 2000.0, "memory_bytes_per_second": 1e12, "bf16_per_clock": 4096, "int8_per_clock": 8192}


def shape(m, k, n, model="flux1", w8a16=1.0, w8a8=2.0, overhead=0.05, us=100.0):
    def entry(ratio):
        return {"us": us / ratio, "sm_mhz": 1000.0, "base": "cublas_forward", "ratio": ratio}
    return {"model": model, "m": m, "k": k, "n": n, "sets": 2, "cublas_forward": {"us": us, "sm_mhz": 1000.0}, "w8a16_forward": entry(w8a16), "w8a8_forward": entry(w8a8),
            "w8a16_lora_forward": {**entry(0.9), "plain": "w8a16_forward", "overhead": overhead}, "cublas_dx": {"us": us, "sm_mhz": 1200.0},
            "w8a16_dx": entry(0.5), "w8a8_dx": entry(1.0)}


def linear(results, regime="burst"):
    return {"bench": "linear", "regime": regime, "complete": True, "rounds": 12, "device": DEVICE, "results": results}


TRANSFERS = {
    "bench": "transfers", "rounds": 5, "device": DEVICE, "model": "FLUX.1-dev", "blocks": 57,
    "link": {"bytes": 11870000000, "copies": 57, "engine_gb_s": 54.9, "plain_gb_s": 55.5, "share": 0.951, "engine_ms": 216.0, "plain_ms": 214.0},
    "overlap": {"compute_alone_ms": 200.0, "copies_alone_ms": 220.0, "compute_beside_copies_ms": 210.0, "copies_beside_compute_ms": 231.0, "both_ms": 240.0},
    "steps": [{"compute_ms": 102.0, "step_ms": 430.0, "exposed_ms": 328.0, "loaded_bytes": 22900000000, "link_ms": 412.6, "floor_ms": 310.6, "slots": 2, "asked_compute_us": 600}],
    "lease": {"visits": 57, "stream_us": 2.5, "stream_us_host_ahead": 9.0, "between_kernels_us": 3.0, "acquire_host_us": 4.0, "acquire_host_us_p99": 7.0,
              "release_host_us": 3.0, "release_host_us_p99": 5.0, "host_ahead_stall_ms": 0.0}}


class Results(unittest.TestCase):
    def make(self, *runs):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for i, run in enumerate(runs):
                paths.append(pathlib.Path(folder) / f"{i}.json")
                paths[-1].write_text(run if isinstance(run, str) else json.dumps(run), encoding="utf-8")
            done = subprocess.run([sys.executable, SCRIPT, *paths], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    def good(self, *runs):
        code, out, error = self.make(*runs)
        self.assertEqual((code, error), (0, ""))
        return out

    def row(self, out, name, under=""):
        """Cells of the first row of that name below a heading."""
        lines = out[out.index(under):].splitlines()
        return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {name} |")).split("|")[2:-1]]

    def test_medians_take_flux1_and_sdxl_and_show_the_worst(self):
        out = self.good(linear([shape(4608, 16, 16, w8a16=0.99), shape(4608, 32, 16, w8a16=0.95), shape(4608, 48, 16, "sdxl", w8a16=1.10),
                                shape(4608, 64, 16, "flux2", w8a16=0.10), shape(512, 16, 16, w8a16=0.91)]))
        self.assertEqual(self.row(out, "W8A16 forward"), ["0.91 [0.91]; aim 0.90 [0.80]: reached", "0.99 [0.95]; aim 0.98 [0.94]: reached"])
        self.assertIn("| 4608 | flux2 | 64 x 16 |", out)

    def test_aims_are_judged_on_the_numbers(self):
        for ratios, wanted in (((0.98, 0.98, 0.94), "reached"), ((0.98, 0.98, 0.9399), "median reached, worst short"), ((0.9799, 0.9799, 0.9799), "short")):
            out = self.good(linear([shape(4608, 16 * (i + 1), 16, w8a16=r) for i, r in enumerate(ratios)]))
            self.assertTrue(self.row(out, "W8A16 forward")[0].endswith(": " + wanted), (ratios, out))
        for overhead, wanted in ((0.04, "4 % [4 %]; aim 4 %: reached"), (0.0401, "4 % [4 %]; aim 4 %: short")):
            self.assertEqual(self.row(self.good(linear([shape(4608, 16, 16, overhead=overhead)])), "LoRA's overhead, W8A16 forward"), [wanted])
        self.assertEqual(self.row(self.good(linear([shape(8192, 16, 16)])), "W8A16 forward"), ["1.00 [1.00]"], "no aim is set for M = 8192")
        self.assertNotIn("GELU |", self.good(linear([shape(512, 16, 16)])).split("## Every")[0], "a route that nobody ran has no row")

    def test_the_worst_overhead_is_the_highest(self):
        out = self.good(linear([shape(1536, 16, 16, overhead=0.02), shape(1536, 32, 16, overhead=0.30), shape(1536, 48, 16, overhead=0.03)]))
        self.assertEqual(self.row(out, "LoRA's overhead, W8A16 forward"), ["3 % [30 %]; aim 6 %: reached"])

    def test_rooflines(self):
        # 2 * 4096^3 = 137.4 G operations: 335.5 us in bf16 at 409.6 T/s, 167.8 us in int8; its bytes take 101 us at most.
        out = self.good(linear([shape(4096, 4096, 4096, us=671.0, w8a16=1.0, w8a8=2.0)]))
        cells = [c.strip() for c in next(line for line in out.splitlines() if line.startswith("| 4096 |")).split("|")[1:-1]]
        self.assertEqual(cells[4:9], ["50 %", "1.00", "50 %", "2.00", "50 %"])
        self.assertEqual(cells[12], "42 %", "cuBLAS's dX ran at 1200 MHz")
        self.assertEqual(cells[-1], "1000 to 1200")
        # M = 16: bytes decide. 4096 x 4096 weights: 33.55 MB in bf16, 16.79 MB with scales in int8, 0.26 MB of activations, at 1 TB/s.
        out = self.good(linear([shape(16, 4096, 4096, us=67.6, w8a16=1.0, w8a8=1.0)]))
        cells = [c.strip() for c in next(line for line in out.splitlines() if line.startswith("| 16 |")).split("|")[1:-1]]
        self.assertEqual(cells[4:9], ["50 %", "1.00", "25 %", "1.00", "25 %"])
        unknown = linear([shape(16, 4096, 4096)])
        unknown["device"] = {**DEVICE, "bf16_per_clock": 0, "int8_per_clock": 0}
        self.assertIn("| - | 1.00 | - |", self.good(unknown))

    def test_clocks_and_regimes(self):
        out = self.good(linear([shape(4608, 16, 16)]), linear([shape(4608, 16, 16, w8a16=0.93)], "sustained"))
        self.assertIn("| burst | 4608 | 1000 [1000, 1200] | 410 |", out)
        self.assertEqual(self.row(out, "W8A16 forward", "## Sustained"), ["0.93 [0.93]; aim 0.98 [0.94]: short"])
        self.assertIn("## Every shape, sustained", out)

    def test_files_of_one_regime_are_put_together(self):
        out = self.good(linear([shape(16, 16, 16)]), linear([shape(64, 16, 16)]))
        self.assertIn("| route | M = 16 | M = 64 |", out)
        self.assertNotIn("stopped before its end", out)
        self.assertIn("stopped before its end", self.good(linear([shape(16, 16, 16)]), {**linear([shape(64, 16, 16)]), "complete": False}))
        code, _, error = self.make(linear([shape(16, 16, 16)]), linear([shape(16, 16, 16)]))
        self.assertNotEqual(code, 0)
        self.assertIn("(16, 16, 16) twice", error)

    def test_transfers(self):
        out = self.good(TRANSFERS)
        self.assertIn("| 54.9 GB/s, 95.1 % of plain copies (55.5 GB/s) | 95 %: reached; 55 GB/s: short |", out)
        self.assertIn("90 % of the shorter is hidden; compute takes 1.050 of its time, copies 1.050", out)
        self.assertIn("| 10 us: reached |", out)
        self.assertIn("| 600 | 2 | 102.0 | 430.0 | 328.0 | 310.6 | 22.90 |", out)
        self.assertNotIn("stalled", out)
        slow = copy.deepcopy(TRANSFERS)
        slow["lease"].update(stream_us_host_ahead=10.1, host_ahead_stall_ms=1.0)
        slow["link"]["share"] = 0.9499
        out = self.good(slow)
        self.assertIn("| 10 us: short |", out)
        self.assertIn("95 %: short", out)
        self.assertIn("stalled 1.00 ms", out)

    def test_sanitizers(self):
        log = "========= COMPUTE-SANITIZER\n[==========] Running 2 tests\n[  PASSED  ] {} tests.\n{}"
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "run.json").write_text(json.dumps(TRANSFERS), encoding="utf-8")
            (folder / "memcheck.log").write_text(log.format(19, "========= ERROR SUMMARY: 0 errors\n"), encoding="utf-8")
            (folder / "racecheck.0.log").write_text(log.format(3, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"), encoding="utf-8")
            (folder / "racecheck.1.log").write_text(log.format(4, "[  FAILED  ] 1 test, listed below:\n"), encoding="utf-8")
            (folder / "other.log").write_text("nothing of the kind", encoding="utf-8")

            def run(*names):
                return subprocess.run([sys.executable, SCRIPT, *(folder / n for n in names)], capture_output=True, text=True)
            out = run("run.json", "memcheck.log", "racecheck.1.log", "racecheck.0.log").stdout
            self.assertIn("| memcheck | 19 | 0 | 0 errors |", out)
            self.assertIn("| racecheck | 7 | 1 | 0 hazards displayed (0 errors, 0 warnings); stopped before its end |", out)
            self.assertNotIn("compute-sanitizer", run("run.json").stdout)
            self.assertIn("no log of compute-sanitizer", run("run.json", "other.log").stderr)
            self.assertIn("beside the logs", run("memcheck.log").stderr)

    def test_refusals(self):
        other = {**linear([shape(64, 16, 16)], "sustained"), "device": {**DEVICE, "name": "Other GPU"}}
        lacking = shape(16, 16, 16)
        del lacking["cublas_forward"]
        for runs, words in ((("{",), "Expecting"), (({"bench": "cpu"},), "holds neither"), ((linear([]), other), "Made GPU"), ((TRANSFERS, TRANSFERS), "a second file"),
                            ((linear([lacking]),), "lacks 'cublas_forward'"), ((linear([]), {**linear([]), "rounds": 3}), "3 rounds")):
            code, out, error = self.make(*runs)
            self.assertNotEqual(code, 0)
            self.assertEqual(out, "")
            self.assertIn(words, error)
        self.assertNotEqual(subprocess.run([sys.executable, SCRIPT], capture_output=True).returncode, 0)
        self.assertIn("no/such", subprocess.run([sys.executable, SCRIPT, "no/such"], capture_output=True, text=True).stderr)


if __name__ == "__main__":
    unittest.main()
