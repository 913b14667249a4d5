#!/usr/bin/env python3
"""Does the bench catch what it promises to catch? Planted faults, the plan, the interleaving and the table; needs torch and no GPU.

  bench/rivals/self_check.py
"""
import copy
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import torch  # noqa: E402

import measure  # noqa: E402
import plan  # noqa: E402
import results  # noqa: E402
import shapes  # noqa: E402
from libraries import ALL, BASE  # noqa: E402
from libraries.base import Layer, Library  # noqa: E402
from libraries.by_hand import quantize_rows  # noqa: E402

POINT = plan.Point("tiny", 96, 64, 24)


class Honest(Library):
    """Weight-only by hand; each fault below changes one thing."""
    key = "honest"

    def parts(self, weight):
        return quantize_rows(weight)

    def forward(self, x, codes, scale):
        return (x.float() @ (codes * scale).t()).bfloat16()

    def backward(self, dy, codes, scale):
        return (dy.float() @ (codes * scale)).bfloat16()

    def prepare(self, weight):
        codes, scale = self.parts(weight)
        return Layer(lambda x: self.forward(x, codes, scale), lambda dy: self.backward(dy, codes, scale))


class ScalesShifted(Honest):
    def parts(self, weight):
        codes, scale = quantize_rows(weight * torch.linspace(0.5, 2, weight.shape[0])[:, None])
        return codes, scale.roll(1, 0)


class NotScaled(Honest):
    def forward(self, x, codes, scale):
        return (x.float() @ codes.float().t()).bfloat16()


class SlightlyOff(Honest):
    def forward(self, x, codes, scale):
        return super().forward(x, codes, scale) * 1.06


class NotANumber(Honest):
    def forward(self, x, codes, scale):
        y = super().forward(x, codes, scale)
        y[0, 0] = float("nan")
        return y


class TransposedResult(Honest):
    def forward(self, x, codes, scale):
        return super().forward(x, codes, scale).t()


class GradientWithoutScale(Honest):
    def backward(self, dy, codes, scale):
        return (dy.float() @ codes.float()).bfloat16()


class FirstWeightForAll(Honest):
    """A cache by shape: every layer after the first multiplies with the first one's weight."""
    first = None

    def parts(self, weight):
        self.first = self.first or quantize_rows(weight)
        return self.first


class Raises(Honest):
    def forward(self, x, codes, scale):
        raise ValueError("no kernel for\n this shape")


class CannotPrepare(Honest):
    def prepare(self, weight):
        raise ValueError("K must be a multiple of 256")


class NoGradient(Honest):
    def prepare(self, weight):
        codes, scale = self.parts(weight)
        return Layer(lambda x: self.forward(x.detach(), codes, scale))


def measured(library):
    """(forward record, backward record) of one library at the tiny point."""
    device = torch.device("cpu")
    both = measure.session(POINT, {"library": library(device, None)}, BASE.key, 3, device, sets=3)["library"]
    return both["forward"], both["backward"]


class Faults(unittest.TestCase):
    def test_honest_results_pass(self):
        for record in measured(Honest):
            self.assertEqual(record["status"], "checked")
            self.assertLess(record["relative_l2"], 0.02)

    def test_wrong_forwards_are_caught_and_their_gradients_judged_apart(self):
        for fault in (NotScaled, SlightlyOff, NotANumber, TransposedResult):
            forward, backward = measured(fault)
            self.assertEqual((forward["status"], backward["status"]), ("wrong", "checked"), fault.__name__)
            self.assertIn("relative L2", forward["reason"])

    def test_faults_of_the_weight_spoil_both(self):
        for fault in (ScalesShifted, FirstWeightForAll):
            self.assertEqual([r["status"] for r in measured(fault)], ["wrong", "wrong"], fault.__name__)

    def test_a_gradient_without_its_scale_is_caught(self):
        self.assertEqual([r["status"] for r in measured(GradientWithoutScale)], ["checked", "wrong"])

    def test_refusals_are_named(self):
        self.assertEqual(measured(Raises)[0], {"status": "failed", "reason": "ValueError: no kernel for this shape"})
        for record in measured(CannotPrepare):
            self.assertEqual(record, {"status": "failed", "reason": "ValueError: K must be a multiple of 256"})
        forward, backward = measured(NoGradient)
        self.assertEqual((forward["status"], backward["status"]), ("checked", "none"))

    def test_nothing_wrong_reaches_the_clock(self):
        """With a device to time on, only a right result becomes a route."""
        device = torch.device("cpu")
        operands = measure.Operands(POINT, 3, device)
        for fault in (NotScaled, Raises, NoGradient):
            layers = [fault(device, None).prepare(w) for w in operands.w]
            direction = "backward" if fault is NoGradient else "forward"
            self.assertIsNone(measure.attempt(layers, operands, direction, device, None)[1])


class Interleaving(unittest.TestCase):
    def test_every_round_runs_every_route_once_and_the_first_is_not_counted(self):
        log = []
        routes = {name: measure.Route({}, sets, lambda name=name: log.append(name)) for name, sets in (("base", 2), ("other", 4))}

        def stopwatch(run):
            run()
            return 100.0 * len(log)

        times = measure.interleave(routes, 3, stopwatch)
        self.assertEqual(log, ["base", "other"] * 4)
        self.assertEqual(times, {"base": [150.0, 250.0, 350.0], "other": [100.0, 150.0, 200.0]})
        measure.enter_times(routes, times, "base")
        self.assertEqual(routes["other"].record, {"status": "timed", "us": 150.0, "ratio": 250.0 / 150.0})
        self.assertEqual(routes["base"].record["ratio"], 1)


class Plan(unittest.TestCase):
    points = plan.points(shapes.ROWS, shapes.SHAPES)
    eager, compiled = [f"eager{i}" for i in range(12)], ["compiled0", "compiled1", "compiled2"]

    def made(self, seconds):
        return plan.make(self.points, "base", self.eager, self.compiled, seconds)

    def test_without_a_limit_everything_is_measured_with_all_rounds(self):
        sessions, rounds, left = self.made(None)
        self.assertEqual((len(sessions), rounds, left), (2 * len(self.points), plan.ROUNDS, []))
        self.assertTrue(all(s.keys[0] == "base" for s in sessions))

    def test_with_a_limit_what_is_not_planned_is_named(self):
        everything = {(p, key) for p in self.points for key in (*self.eager, *self.compiled)}
        for seconds in (30, 60, 150, 240, 600, 2000):
            sessions, rounds, left = self.made(seconds)
            planned = [(s.point, key) for s in sessions for key in s.keys if key != "base"]
            named = [item for item in left if item[1] != "base"]
            self.assertEqual(len(planned) + len(named), len(everything), seconds)
            self.assertEqual(set(planned) | set(named), everything, seconds)
            self.assertEqual(self.made(seconds), (sessions, rounds, left))
            if left:
                self.assertEqual(rounds, plan.FEWEST_ROUNDS)
            kinds = ["compiled0" in s.keys for s in sessions]
            self.assertEqual(kinds, sorted(kinds), "compiled sessions come last")

    def test_core_shapes_come_first(self):
        sessions, _, _ = self.made(120)
        self.assertTrue(sessions)
        self.assertTrue(all((s.point.k, s.point.n) in shapes.CORE for s in sessions))

    def test_operands_rotate_through_more_than_the_cache(self):
        for p in self.points:
            self.assertGreater(p.sets() * (p.k * p.n + 2 * p.m * (p.k + p.n)), plan.BYTES_TO_ROTATE)

    def test_adapters_have_keys_of_their_own(self):
        self.assertEqual(len({cls.key for cls in ALL}), len(ALL))
        for cls in ALL:
            self.assertTrue(cls.key and cls.title and cls.counted, cls)


def timed(us, ratio, timing="graph", **more):
    return {"status": "timed", "us": us, "ratio": ratio, "timing": timing, "relative_l2": 0.01, **more}


RUN = {
    "timed": True, "device": "a device", "torch": "2", "cuda": "13", "python": "3", "base": "base", "rounds": 8, "wall_s": 1.0, "stopped": None,
    "libraries": [{"key": "base", "title": "Base", "counted": "c", "available": True, "version": "1"},
                  {"key": "one", "title": "One", "counted": "c", "available": True, "version": "2"},
                  {"key": "two", "title": "Two", "counted": "c", "available": True, "version": "3"},
                  {"key": "gone", "title": "Gone", "counted": "c", "available": False, "reason": "ImportError: no module"}],
    "left_out": [{"m": 64, "k": 8, "n": 8, "library": "two", "reason": "no room"}],
    "results": [
        {"model": "a", "m": 16, "k": 10, "n": 20, "sets": 2, "libraries": {
            "base": {"forward": timed(10, 1), "backward": timed(20, 1)},
            "one": {"forward": timed(5, 2), "backward": timed(40, 0.5, "events", not_captured="it waits", kept_bytes=400)},
            "two": {"forward": {"status": "wrong", "reason": "far off"}, "backward": {"status": "none", "reason": "inference"}}}},
        {"model": "a", "m": 16, "k": 30, "n": 20, "sets": 2, "libraries": {
            "base": {"forward": timed(10, 1), "backward": timed(20, 1)},
            "one": {"forward": timed(8, 1.25), "backward": {"status": "failed", "reason": "no kernel"}},
            "two": {"forward": timed(10, 1), "backward": {"status": "none", "reason": "inference"}}}}]}


class Table(unittest.TestCase):
    def test_every_status_is_in_it(self):
        text = "\n".join(results.lines(RUN))
        for line in ("| One | 1.62 [1.25] 2 |", "| Two | 1.00 [1.00] 1, wrong |", "| One | 0.50* [0.50] 1, fails |", "| Two | none |", "| Gone | . |",
                     "| 16 | 10 x 20 | 10.0 | 2.00 | wrong |", "| 16 | 30 x 20 | 20.0 | fails | none |",
                     "**not measured**: ImportError: no module", "- two, forward, wrong: far off (1: 16 x 10 x 20)",
                     "- one, backward, failed: no kernel (1: 16 x 30 x 20)", "- one, backward, not captured: it waits (1: 16 x 10 x 20)",
                     "- two, backward, none: inference (2: 16 x 10 x 20, 16 x 30 x 20)", "- two, left out: no room (1: 64 x 8 x 8)",
                     "| One (`one`) | 2 | c | 1.00 |"):
            self.assertIn(line, text)

    def test_a_run_without_a_gpu_makes_no_table(self):
        run = copy.deepcopy(RUN)
        run["timed"] = False
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "run.json"
            path.write_text(json.dumps(run))
            done = subprocess.run([sys.executable, HERE / "results.py", path], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("without a GPU", done.stderr)


class Program(unittest.TestCase):
    def run_program(self, folder, *flags):
        path = pathlib.Path(folder) / "run.json"
        done = subprocess.run([sys.executable, HERE / "run.py", "--device", "cpu", "--json", path, *flags], capture_output=True, text=True)
        return done, json.loads(path.read_text()) if path.exists() else None

    def test_the_whole_chain_on_the_cpu(self):
        with tempfile.TemporaryDirectory() as folder:
            done, run = self.run_program(folder, "--libraries", "dequantize,int_mm,int_mm_transposed,squareq_w8a16")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertFalse(run["timed"])
        self.assertEqual([r["status"] for r in (b for p in run["results"] for both in p["libraries"].values() for b in both.values())], ["checked"] * 32)
        ours = next(library for library in run["libraries"] if library["key"] == "squareq_w8a16")
        self.assertFalse(ours["available"])
        self.assertIn("--squareq-ops", ours["reason"])

    def test_wrong_flags(self):
        with tempfile.TemporaryDirectory() as folder:
            for flags in (["--libraries", "nobody"], ["--shapes", "3072"], ["--rows", "0"], ["--seconds", "0"]):
                done, run = self.run_program(folder, *flags)
                self.assertEqual((done.returncode, run), (2, None), flags)

    def test_time_that_suffices_for_nothing_is_said(self):
        with tempfile.TemporaryDirectory() as folder:
            done, run = self.run_program(folder, "--libraries", "int_mm", "--seconds", "1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual((run["results"], len(run["left_out"])), ([], 8))


if __name__ == "__main__":
    unittest.main()
