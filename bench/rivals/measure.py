"""One session: every library at one point, checked against a float64 product, then timed in interleaved rounds.

Nothing is timed whose result is off, and nothing that could not be done is dropped: each (library, direction) ends in a record with a
status: timed, checked (no GPU: not timed), wrong, failed, none (the library offers no gradient); all but the first two with the reason.
"""
import contextlib
import dataclasses
import statistics
from collections.abc import Callable

import torch

# Relative L2 error of a result. One INT8 rounding of a normal weight row costs 0.8 %, activations the same again, one scale for the whole
# weight 1.4 %: a right result stays under 2.5 %; a lost scale, a shifted row or a stale operand is off by far more than 5 %.
BOUND = 0.05
DIRECTIONS = ("forward", "backward")
CALLS = 20  # at least so many calls between two events where they are launched one by one


class DeviceBroken(Exception):
    """The device answers nothing any more; what came before is kept."""


class Stale(Exception):
    """The result of a call was right, that of its replay is not."""


def reason_of(error):
    """The library's own words, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400] if text else type(error).__name__


def relative_l2(result, reference):
    """||result - reference|| / ||reference|| in float64; inf where the shapes differ or a number is not finite."""
    if result.shape != reference.shape:
        return float("inf")
    error = ((result.double() - reference).norm() / reference.norm()).item()
    return error if error == error else float("inf")


class Operands:
    """`sets` layers' operands of one point: W [N, K], X [M, K], dY [M, N], bf16, normal; the first and the last set with their products."""

    def __init__(self, point, sets, device):
        random = torch.Generator(device).manual_seed(point.m * 1000003 + point.k * 1009 + point.n)

        def normal(rows, columns, scale):
            return (torch.randn(rows, columns, generator=random, device=device) * scale).bfloat16()

        self.w = [normal(point.n, point.k, 0.02) for _ in range(sets)]
        self.x = [normal(point.m, point.k, 1.0) for _ in range(sets)]
        self.dy = [normal(point.m, point.n, 1.0) for _ in range(sets)]
        self.checked = sorted({0, sets - 1})
        self.reference = {"forward": {i: self.x[i].double() @ self.w[i].double().t() for i in self.checked},
                          "backward": {i: self.dy[i].double() @ self.w[i].double() for i in self.checked}}


@dataclasses.dataclass
class Route:
    """What is timed: `run()` queues `calls` calls, in turn over all sets."""
    record: dict
    calls: int
    run: Callable
    held: object = None  # what the captured pass writes, and what its calls keep from their forwards: a graph itself keeps no memory


def on_gpu(device):
    return device.type == "cuda"


def check(results, operands, direction):
    """(worst relative L2 over the checked sets, None) or (it, why it is wrong). `results`: one tensor per set, or None where not kept."""
    worst = max(relative_l2(results[i], operands.reference[direction][i]) for i in operands.checked)
    return worst, None if worst <= BOUND else f"relative L2 error {worst:.3g} is over {BOUND}"


def calls_of(layers, operands, direction, device):
    """(one callable per set, bytes that one layer keeps from forward to backward), or (None, why there is no gradient)."""
    if direction == "forward":
        def forward(layer, x):
            with torch.no_grad():
                return layer.forward(x)
        return [lambda layer=layer, x=x: forward(layer, x) for layer, x in zip(layers, operands.x)], 0
    calls, kept = [], 0
    for layer, x, dy in zip(layers, operands.x, operands.dy):
        if layer.backward is not None:
            calls.append(lambda layer=layer, dy=dy: layer.backward(dy))
            continue
        before = torch.cuda.memory_allocated(device) if on_gpu(device) else 0
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = layer.forward(leaf)
        if not y.requires_grad:
            return None, "its result carries no gradient: for inference only"
        if on_gpu(device):
            kept = torch.cuda.memory_allocated(device) - before - y.nbytes
        calls.append(lambda y=y, leaf=leaf, dy=dy: torch.autograd.grad(y, leaf, dy, retain_graph=True)[0])
    return calls, kept


def waits_for_the_device(call):
    """Why a call cannot be captured, found without breaking a capture: torch's own watch for operations that wait. None: it does not wait."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except Exception as e:  # whatever a library raises is its answer
        return reason_of(e)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return None


def route_of(record, calls, operands, direction, stream):
    """A captured pass, checked once more after a replay; where that cannot be captured, the calls themselves, and the record says so."""
    why = waits_for_the_device(calls[0])
    if why is None:
        graph, held = torch.cuda.CUDAGraph(), []
        try:
            with torch.cuda.graph(graph, stream=stream):
                held += [call() for call in calls]
        except Exception as e:
            why = reason_of(e.__context__ or e)  # a capture that breaks off complains a second time; the first complaint tells
        else:
            graph.replay()
            stream.synchronize()
            _, wrong = check(held, operands, direction)
            if wrong:
                raise Stale(f"replayed graph: {wrong}")
            record["timing"] = "graph"
            return Route(record, len(calls), graph.replay, (held, calls))
    record.update(timing="events", not_captured=why)
    repeated = calls * -(-CALLS // len(calls))

    def run():
        for call in repeated:
            call()

    return Route(record, len(repeated), run)


def prove_alive(device):
    if not on_gpu(device):
        return
    try:
        torch.cuda.synchronize(device)
    except Exception as e:
        raise DeviceBroken(reason_of(e)) from e


def attempt(layers, operands, direction, device, stream):
    """(record, Route or None) of one library in one direction."""
    record = {}
    try:
        calls, kept = calls_of(layers, operands, direction, device)
        if calls is None:
            return {"status": "none", "reason": kept}, None
        results = [None] * len(calls)
        for i, call in enumerate(calls):  # every one, so that what a layer does in its first call is behind it
            result = call()
            if i in operands.checked:
                results[i] = result
        record["relative_l2"], wrong = check(results, operands, direction)
        if wrong:
            return {**record, "status": "wrong", "reason": wrong}, None
        if not on_gpu(device):
            return {**record, "status": "checked"}, None
        if direction == "backward":
            record["kept_bytes"] = kept
        return record, route_of(record, calls, operands, direction, stream)
    except Stale as e:
        return {**record, "status": "wrong", "reason": str(e)}, None
    except Exception as e:
        prove_alive(device)
        return {**record, "status": "failed", "reason": reason_of(e)}, None


class Stopwatch:
    """Queues `run` between two events and returns what waits for them and gives the microseconds between."""

    def __init__(self, stream):
        self.stream = stream

    def __call__(self, run):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record(self.stream)
        run()
        end.record(self.stream)

        def microseconds():
            end.synchronize()
            return begin.elapsed_time(end) * 1e3

        return microseconds


def interleave(routes, rounds, stopwatch):
    """{key: microseconds per call, one of each round}. All routes run once in every round; the first round only warms up.

    A round is queued whole before anything waits, so that a route finds the device busy and its launch is not in its time. Each round begins
    with another route, for the first one of a round does find the device idle.
    """
    times, order = {key: [] for key in routes}, list(routes)
    for number in range(-1, rounds):
        first = number % len(order)
        running = [(key, stopwatch(routes[key].run)) for key in order[first:] + order[:first]]
        for key, microseconds in running:
            us = microseconds() / routes[key].calls
            if number >= 0:
                times[key].append(us)
    return times


def enter_times(routes, times, base):
    """Medians, and the median of the rounds' ratios base / library (more than 1: faster than the base), into the routes' records."""
    for key, route in routes.items():
        route.record.update(status="timed", us=statistics.median(times[key]))
        if base in times:
            route.record["ratio"] = statistics.median(b / t for b, t in zip(times[base], times[key]))


def session(point, libraries, base, rounds, device, sets=None):
    """{key: {"forward": record, "backward": record}} for `libraries` {key: Library} at `point`; `base`: key of what ratios refer to."""
    stream = torch.cuda.Stream(device) if on_gpu(device) else None
    with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
        operands = Operands(point, sets or point.sets(), device)
        layers, records = {}, {key: {} for key in libraries}
        for key, library in libraries.items():
            try:
                layers[key] = [library.prepare(w) for w in operands.w]
            except Exception as e:
                prove_alive(device)
                records[key] = {d: {"status": "failed", "reason": reason_of(e)} for d in DIRECTIONS}
        for direction in DIRECTIONS:
            routes = {}
            for key in layers:
                records[key][direction], route = attempt(layers[key], operands, direction, device, stream)
                if route is not None:
                    routes[key] = route
            if not routes:
                continue
            try:
                enter_times(routes, interleave(routes, rounds, Stopwatch(stream)), base)
            except Exception as e:
                prove_alive(device)
                for route in routes.values():
                    route.record.update(status="failed", reason=reason_of(e))
        prove_alive(device)
    return records
