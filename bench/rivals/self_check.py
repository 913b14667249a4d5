#!/usr/bin/env python3
"""Does the bench catch what it promises to catch? Planted faults, the plan, the interleaving and the table; needs torch and no GPU.

  bench/rivals/self_check.py
"""
import contextlib
import copy
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import torch  # noqa: E402

import keep_architecture  # noqa: E402
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


class OneBuffer(Honest):
    """Every result in the same memory: right when looked at at once, overwritten once a whole pass has run."""
    def prepare(self, weight):
        layer = super().prepare(weight)
        self.buffer = torch.empty(POINT.m, POINT.n, dtype=torch.bfloat16)
        return Layer(lambda x: self.buffer.copy_(layer.forward(x)), layer.backward)


class StaleWhenCaptured(Honest):
    """Right when called, but what a graph replays is not: a result computed on another stream, say."""
    def forward(self, x, codes, scale):
        return super().forward(x, codes, scale) * (0 if PretendedCuda.capturing else 1)


class Waits(Honest):
    def forward(self, x, codes, scale):
        if PretendedCuda.watching:
            raise RuntimeError("called a synchronizing CUDA operation")
        return super().forward(x, codes, scale)


class BreaksCapture(Honest):
    def forward(self, x, codes, scale):
        if PretendedCuda.capturing:
            raise RuntimeError("allocated outside the pool")
        return super().forward(x, codes, scale)


class BreaksTheDevice(Honest):
    def forward(self, x, codes, scale):
        PretendedCuda.broken = True
        raise RuntimeError("an illegal memory access was encountered")


class PretendedCuda:
    """As much of torch.cuda as the timing uses; work is done at once, every event is 10 us after the one before."""
    watching = capturing = broken = False
    now = 0.0

    class Stream:
        def __init__(self, device):
            pass

        def synchronize(self):
            pass

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self, stream):
            PretendedCuda.now += 0.01
            self.at = PretendedCuda.now

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    class CUDAGraph:
        def replay(self):
            pass

    @staticmethod
    @contextlib.contextmanager
    def graph(graph, stream):
        PretendedCuda.capturing = True
        try:
            yield
        except RuntimeError:
            raise RuntimeError("the capture was invalidated")  # noqa: B904 the second complaint, as torch's
        finally:
            PretendedCuda.capturing = False

    @staticmethod
    def set_sync_debug_mode(mode):
        PretendedCuda.watching = mode == "error"

    @staticmethod
    def synchronize(device):
        if PretendedCuda.broken:
            raise RuntimeError("an illegal memory access was encountered")

    stream = staticmethod(contextlib.nullcontext)
    get_sync_debug_mode = staticmethod(lambda: 0)
    memory_allocated = staticmethod(lambda device: 0)


class PretendedTorch:
    cuda = PretendedCuda

    def __getattr__(self, name):
        return getattr(torch, name)


class Timing(unittest.TestCase):
    """The parts that need a GPU, on a pretended one."""

    def session(self, *classes):
        PretendedCuda.broken = False
        device = torch.device("cpu")
        libraries = {BASE.key: BASE(device, None), **{cls.__name__: cls(device, None) for cls in classes}}
        with unittest.mock.patch.object(measure, "torch", PretendedTorch()), unittest.mock.patch.object(measure, "on_gpu", lambda device: True):
            return measure.session(POINT, libraries, BASE.key, 3, device, sets=3)

    def test_right_results_are_timed_from_graphs_and_faults_are_not_timed(self):
        records = self.session(Honest, NotScaled, Raises, OneBuffer, StaleWhenCaptured)
        self.assertEqual((records[BASE.key]["forward"]["ratio"], records["Honest"]["forward"]["timing"]), (1, "graph"))
        self.assertAlmostEqual(records["Honest"]["forward"]["us"], 10 / 3)
        for name, status in (("Honest", "timed"), ("NotScaled", "wrong"), ("Raises", "failed"), ("OneBuffer", "wrong"),
                             ("StaleWhenCaptured", "wrong")):
            self.assertEqual(records[name]["forward"]["status"], status, name)
            self.assertEqual("us" in records[name]["forward"], status == "timed", name)
            self.assertEqual(records[name]["backward"]["status"], "timed", name)
        self.assertIn("replayed graph", records["StaleWhenCaptured"]["forward"]["reason"])

    def test_what_cannot_be_captured_is_timed_by_events_and_says_why(self):
        records = self.session(Waits, BreaksCapture)
        for name, why in (("Waits", "synchronizing"), ("BreaksCapture", "outside the pool")):
            record = records[name]["forward"]
            self.assertEqual((record["status"], record["timing"]), ("timed", "events"))
            self.assertIn(why, record["not_captured"])
            self.assertAlmostEqual(record["us"], 10 / 21)  # 20 calls or more, whole passes over 3 sets

    def test_a_broken_device_ends_the_run(self):
        with self.assertRaisesRegex(measure.DeviceBroken, "illegal memory access"):
            self.session(Honest, BreaksTheDevice)


class Interleaving(unittest.TestCase):
    def test_rounds(self):
        """Every route once in every round, another one first each time, nothing waited for before all are queued, the first round not counted."""
        log = []
        routes = {name: measure.Route({}, calls, lambda name=name: log.append(name)) for name, calls in (("base", 2), ("other", 4))}

        def stopwatch(run):
            run()
            us = 100.0 * len(log)
            return lambda: log.append("wait") or us

        times = measure.interleave(routes, 3, stopwatch)
        self.assertEqual(log, [name for first, second in (("other", "base"), ("base", "other")) * 2 for name in (first, second, "wait", "wait")])
        self.assertEqual(times, {"base": [250.0, 500.0, 650.0], "other": [150.0, 225.0, 350.0]})
        measure.enter_times(routes, times, "base")
        self.assertEqual(routes["other"].record, {"status": "timed", "us": 225.0, "ratio": 650.0 / 350.0})
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


def image(kind, architecture, body, header=64):
    start = struct.pack("<HHIQ", kind, 0x101, header, len(body))
    start += bytes(keep_architecture.ARCHITECTURE_AT - len(start)) + struct.pack("<I", architecture)
    return start + bytes(header - len(start)) + body


def container(*found):
    body = b"".join(found)
    return keep_architecture.MAGIC + struct.pack("<HHQ", 1, 16, len(body)) + body


class Architectures(unittest.TestCase):
    ptx, code = keep_architecture.PTX, keep_architecture.MACHINE_CODE

    def test_the_image_that_the_gpu_loads_stays_and_the_others_become_zeros(self):
        before, after = b"text before" + keep_architecture.MAGIC, b"text after"
        mine = image(self.code, 90, b"B" * 24, header=112)
        data = bytearray(before + container(image(self.code, 80, b"A" * 8), mine, image(self.ptx, 90, b"C" * 8)) + after)
        self.assertEqual(keep_architecture.blank(data, 90), (1, 16))
        self.assertEqual(data, before + container(image(self.code, 80, bytes(8)), mine, image(self.ptx, 90, bytes(8))) + after)

    def test_without_machine_code_of_its_generation_the_newest_fitting_ptx_stays(self):
        parts = [image(self.ptx, 75, b"A" * 8), image(self.ptx, 89, b"B" * 8), image(self.ptx, 100, b"C" * 8), image(self.code, 100, b"D" * 8)]
        data = bytearray(container(*parts))
        self.assertEqual(keep_architecture.blank(data, 90), (1, 24))
        self.assertIn(b"B" * 8, data)

    def test_nothing_to_keep_and_a_broken_container_are_errors(self):
        with self.assertRaisesRegex(ValueError, "nothing in it is for architecture 90"):
            keep_architecture.blank(bytearray(container(image(self.code, 120, b"A" * 8))), 90)
        broken = bytearray(container(image(self.code, 90, b"A" * 8)))
        broken[16 + 8:16 + 16] = struct.pack("<Q", 99)
        with self.assertRaisesRegex(ValueError, "does not fit"):
            keep_architecture.blank(broken, 90)


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
        records = [record for _, _, _, record in results.entries(run)]
        self.assertEqual([record["status"] for record in records], ["checked"] * 32)
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
