#!/usr/bin/env python3
"""INT8 linear layers of other libraries, and ours, against torch's bf16 product: one process, one run, interleaved rounds.

  bench/rivals/run.py --json OUT.json [--seconds 240] [--squareq-ops libsquareq_torch.so]
  bench/rivals/run.py --device cpu --json OUT.json        the same chain on tiny layers, checked but never timed

Results are written after every point. Exit status: 0; 1 the device broke on the way (what came before is in the file); 2 wrong flags.
"""
import argparse
import json
import os
import pathlib
import sys
import time
import warnings

STARTED = time.monotonic()
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import plan  # noqa: E402
import shapes  # noqa: E402

TINY = [("tiny", 256, 512), ("tiny", 768, 256)]
TINY_ROWS = [32, 48]
TINY_SETS = 3


def parse(argv):
    def shape_list(text):
        known = {(k, n): model for model, k, n in shapes.SHAPES}
        pairs = [tuple(int(side) for side in item.split("x")) for item in text.split(",")]
        if any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
            raise ValueError(text)
        return [(known.get(pair, "custom"), *pair) for pair in pairs]

    def row_list(text):
        rows = [int(item) for item in text.split(",")]
        if min(rows) < 1:
            raise ValueError(text)
        return rows

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, required=True, metavar="FILE")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, help="time for everything; fewer rounds and then fewer points are planned to fit (default: all)")
    parser.add_argument("--rows", type=row_list, help="M, as 16,512")
    parser.add_argument("--shapes", type=shape_list, help="KxN, as 3072x9216,1280x1280")
    parser.add_argument("--libraries", type=lambda text: text.split(","), metavar="KEYS", help="only these, and the base; see bench/rivals/README.md")
    parser.add_argument("--rounds", type=int, help=f"instead of the planned {plan.FEWEST_ROUNDS} to {plan.ROUNDS}")
    parser.add_argument("--squareq-ops", metavar="FILE", help="libsquareq_torch.so, for our own rows")
    options = parser.parse_args(argv)
    if options.seconds is not None and options.seconds <= 0:
        parser.error(f"--seconds {options.seconds}: must be positive")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: must be at least 1")
    options.shapes = options.shapes or (TINY if options.device == "cpu" else shapes.SHAPES)
    options.rows = options.rows or (TINY_ROWS if options.device == "cpu" else shapes.ROWS)
    return parser, options


def load(classes, device, options):
    """({key: Library}, their descriptions): a library that cannot be used here is described with the reason."""
    import measure
    usable, described = {}, []
    for cls in classes:
        entry = {"key": cls.key, "title": cls.title, "counted": cls.counted, "compiled": cls.compiled}
        try:
            library = cls(device, options)
            entry.update(available=True, version=library.version())
            usable[cls.key] = library
        except Exception as e:  # not ImportError alone: a library's import may raise anything
            measure.prove_alive(device)
            entry.update(available=False, reason=measure.reason_of(e))
        described.append(entry)
        print(f"{cls.key:30s} {entry.get('version') or 'not available: ' + entry['reason']}", file=sys.stderr, flush=True)
    return usable, described


def write(path, result):
    """The whole result, so far; a reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def left_entry(point, key, reason):
    return {"m": point.m, "k": point.k, "n": point.n, "library": key, "reason": reason}


def describe(records):
    def one(r):
        return f"{r['us']:9.1f} us {r.get('ratio', 1):5.2f}{'' if r['timing'] == 'graph' else ' (events)'}" if r["status"] == "timed" else r["status"]
    return "\n".join(f"  {key:30s} {one(r['forward']):24s} {one(r['backward']):24s}" for key, r in records.items())


def main(argv=None):
    parser, options = parse(argv)
    import torch

    import measure
    from libraries import ALL, BASE
    warnings.filterwarnings("ignore")
    if options.libraries:
        unknown = set(options.libraries) - {cls.key for cls in ALL}
        if unknown:
            parser.error(f"--libraries: unknown {sorted(unknown)}; there are {[cls.key for cls in ALL]}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    device = torch.device(options.device, torch.cuda.current_device()) if options.device == "cuda" else torch.device("cpu")

    classes = [cls for cls in ALL if cls is BASE or not options.libraries or cls.key in options.libraries]
    usable, described = load(classes, device, options)
    others = [key for key in usable if key != BASE.key]
    eager, compiled = ([key for key in others if usable[key].compiled == flag] for flag in (False, True))
    all_points = plan.points(options.rows, options.shapes)
    sessions, rounds, left = plan.make(all_points, BASE.key, eager, compiled, options.seconds)
    rounds = options.rounds or rounds
    no_room = f"no room in --seconds {options.seconds}"
    result = {
        "timed": device.type == "cuda", "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU: checked, not timed",
        "torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0], "base": BASE.key, "rounds": rounds,
        "seconds": options.seconds, "wall_s": 0.0, "stopped": None, "libraries": described, "results": [], "left_out": []}
    left_out = [left_entry(p, key, f"no room in --seconds {options.seconds}") for p, key in left]

    def save(rest, reason):
        """Whatever ends the run, the file names what is not in it."""
        result["wall_s"] = round(time.monotonic() - STARTED, 1)
        result["left_out"] = left_out + [left_entry(s.point, key, reason) for s in rest for key in s.keys]
        write(options.json, result)

    for number, one in enumerate(sessions):
        save(sessions[number:], "the run was cut off before it")
        if options.seconds is not None and time.monotonic() - STARTED > options.seconds:
            save(sessions[number:], f"--seconds {options.seconds} were over")
            break
        p = one.point
        print(f"[{number + 1}/{len(sessions)}, {time.monotonic() - STARTED:.0f} s] {p.model} M {p.m} K {p.k} N {p.n}", file=sys.stderr, flush=True)
        sets = TINY_SETS if device.type == "cpu" else p.sets()
        try:
            records = measure.session(p, {key: usable[key] for key in one.keys}, BASE.key, rounds, device, sets)
        except measure.DeviceBroken as e:
            result["stopped"] = f"at M {p.m} K {p.k} N {p.n} with {', '.join(one.keys)}: {e}"
            save(sessions[number:], f"the device broke: {e}")
            break
        except torch.OutOfMemoryError as e:  # the operands themselves
            left_out += [left_entry(p, key, measure.reason_of(e)) for key in one.keys]
        else:
            print(describe(records), file=sys.stderr, flush=True)
            result["results"].append({"model": p.model, "m": p.m, "k": p.k, "n": p.n, "sets": sets, "libraries": records})
        if device.type == "cuda":
            torch.cuda.empty_cache()
    else:
        save([], "")
    if result["left_out"]:
        print(f"left out: {len(result['left_out'])} of a library at a point; the file names them", file=sys.stderr)
    if result["stopped"]:
        print("stopped: " + result["stopped"], file=sys.stderr)
    sys.stderr.flush()
    os._exit(1 if result["stopped"] else 0)  # a broken device, or a library's threads, must not turn the end into a crash


if __name__ == "__main__":
    main()
