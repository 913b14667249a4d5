"""What is measured in the time given, decided before anything is measured: the same flags choose the same work on every machine.

The work is a list of items, most wanted first. Each has a price in seconds out of the table below; items are taken while their sum fits.
The prices were reckoned for one H100-class GPU with 16 cores; on a slower machine the clock stops the run instead, and the rest is named.
"""
import dataclasses

import shapes

ROUNDS = 20
FEWEST_ROUNDS = 8
START = 25.0            # importing the libraries
SESSION = 0.3           # operands and the reference products of one point
EAGER = 0.15            # one library at one point, both directions: capture, checks
EAGER_SET = 0.003       # the same for each set of operands
COMPILED = 14.0         # one library that compiles for each shape
COMPILED_START = 30.0   # kernels tuned once for all shapes
BYTES_TO_ROTATE = 220e6
FEWEST_SETS = 2
FLOPS = 3.5e14          # what the libraries reach on the whole; prices the rounds


@dataclasses.dataclass(frozen=True)
class Point:
    model: str
    k: int
    n: int
    m: int

    def sets(self):
        """How many layers with operands of their own a pass goes through, so that INT8 weight, X and Y alone are more than 220 MB."""
        return max(FEWEST_SETS, int(BYTES_TO_ROTATE // (self.k * self.n + 2 * self.m * (self.k + self.n))) + 1)


@dataclasses.dataclass(frozen=True)
class Session:
    """One point with the libraries whose rounds are interleaved there (the base of the ratios is one of them)."""
    point: Point
    keys: tuple


def price(point, rounds, eager, compiled):
    """Seconds for one session; `eager` and `compiled`: how many libraries of each kind."""
    count = eager + compiled
    passes = (rounds + 6) * 2 * count  # warm-up, checks and capture are passes too; both directions
    products = passes * point.sets() * 2.0 * point.m * point.k * point.n
    return SESSION + count * (EAGER + EAGER_SET * point.sets()) + compiled * COMPILED + products / FLOPS


def points(rows, chosen):
    return [Point(model, k, n, m) for model, k, n in chosen for m in rows]


def in_order(all_points):
    """[(points, kind)], most wanted first; every point stands once for each kind."""
    def core(p): return (p.k, p.n) in shapes.CORE
    def large(p): return p.m in shapes.CORE_ROWS
    def first(p): return (p.k, p.n) in shapes.COMPILED and p.m in shapes.CORE_ROWS[:2]
    groups = [("eager", lambda p: core(p) and large(p)), ("compiled", first), ("eager", lambda p: core(p) and not large(p)),
              ("eager", lambda p: not core(p) and large(p)), ("eager", lambda p: not core(p) and not large(p)),
              ("compiled", lambda p: core(p) and large(p) and not first(p)), ("compiled", lambda p: not (core(p) and large(p)) and not first(p))]
    return [(p, kind) for kind, wanted in groups for p in all_points if wanted(p)]


def make(all_points, base, eager, compiled, seconds):
    """(sessions, rounds, left_out). `base`: key of the base; `eager`, `compiled`: keys of the other libraries; `seconds`: None for no limit.

    Sessions with compiled libraries come last, so that a kernel that breaks the device has spoilt nothing else. `left_out` names each
    (point, key) that found no place. Fewer rounds are tried before anything is left out.
    """
    keys = {"eager": (base, *eager), "compiled": (base, *compiled)}
    wanted = [(p, kind) for p, kind in in_order(all_points) if kind == "eager" or compiled]

    def cost(point, kind, rounds):
        return price(point, rounds, len(keys[kind]) if kind == "eager" else 1, 0 if kind == "eager" else len(compiled))

    start = START + (COMPILED_START if compiled else 0)
    rounds = ROUNDS
    while seconds is not None and rounds > FEWEST_ROUNDS and start + sum(cost(p, kind, rounds) for p, kind in wanted) > seconds:
        rounds -= 4
    taken, left, spent = [], [], start
    for point, kind in wanted:
        c = cost(point, kind, rounds)
        if seconds is None or spent + c <= seconds:
            spent += c
            taken.append((point, kind))
        else:
            left += [(point, key) for key in keys[kind] if not (kind == "compiled" and key == base)]
    taken.sort(key=lambda item: item[1] == "compiled")  # stable: eager ones first, in their order
    return [Session(p, keys[kind]) for p, kind in taken], rounds, left
