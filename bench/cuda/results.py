#!/usr/bin/env python3
"""bench/RESULTS.md from what cuda_linear_bench, cuda_transfer_bench and compute-sanitizer wrote.

  bench/cuda/results.py FILE.json... [TOOL.log...] >bench/RESULTS.md

Files of one regime are put together, and logs named TOOL.anything.log, which hold shares of one tool's tests. Every ratio is the rival's time over
ours, the median of a run's rounds. "Of roofline" is the least time that the device allows, the longer of operations over the tensor cores' rate and
bytes over the memory's, over the time taken. The tensor cores' rate follows from the SM clock measured while that very route ran; bytes are operands
and results, each once.
"""
import json
import pathlib
import re
import statistics
import sys

AIMED_MODELS = ("flux1", "sdxl")  # what the aims are set over
ROUTES = [
    ("w8a16_forward", "ratio", "W8A16 forward"),
    ("w8a16_dx", "ratio", "W8A16 dX"),
    ("w8a8_forward", "ratio", "W8A8 forward"),
    ("w8a8_dx", "ratio", "W8A8 dX"),
    ("w8a16_gelu_forward", "ratio", "W8A16 forward + bias + GELU"),
    ("w8a16_gelu_kept_forward", "ratio", "the same, preactivation kept"),
    ("w8a8_gelu_forward", "ratio", "W8A8 forward + bias + GELU"),
    ("w8a8_gelu_kept_forward", "ratio", "the same, preactivation kept"),
    ("w8a8_codes_forward", "ratio", "W8A8 forward, X quantized before"),
    ("w8a8_fused_producer_forward", "ratio", "W8A8 forward, quantization in the producer against apart"),
    ("w8a16_lora_forward", "ratio", "W8A16 forward + LoRA r 16"),
    ("w8a16_lora_backward", "ratio", "W8A16 backward + LoRA r 16"),
    ("w8a8_lora_forward", "ratio", "W8A8 forward + LoRA r 16"),
    ("w8a8_lora_backward", "ratio", "W8A8 backward + LoRA r 16"),
    ("w8a16_lora_forward", "overhead", "LoRA's overhead, W8A16 forward"),
    ("w8a16_lora_backward", "overhead", "LoRA's overhead, W8A16 backward"),
    ("w8a8_lora_forward", "overhead", "LoRA's overhead, W8A8 forward"),
    ("w8a8_lora_backward", "overhead", "LoRA's overhead, W8A8 backward"),
    ("dequantize_cublas_forward", "ratio", "dequantize + cuBLASLt, forward"),
    ("dequantize_cublas_dx", "ratio", "dequantize + cuBLASLt, dX"),
]
# (route, field) -> M -> (median, worst shape); a ratio is to be reached or exceeded, an overhead not to be exceeded.
AIMS = {
    ("w8a16_forward", "ratio"): {16: (1.5, None), 64: (1.5, None), 512: (0.90, 0.80), 1536: (0.95, 0.88), 4608: (0.98, 0.94)},
    ("w8a16_dx", "ratio"): {512: (0.85, 0.75), 1536: (0.95, 0.85), 4608: (0.97, 0.92)},
    ("w8a8_forward", "ratio"): {512: (1.25, None), 1536: (1.55, 1.15), 4608: (1.75, 1.50)},
    ("w8a8_dx", "ratio"): {1536: (1.40, None), 4608: (1.60, 1.35)},
    ("w8a16_lora_forward", "overhead"): {1536: (0.06, None), 4608: (0.04, None)},
    ("w8a16_lora_backward", "overhead"): {1536: (0.09, None), 4608: (0.06, None)},
}
LINK_AIM, LINK_RATE_AIM, LEASE_AIM_US = 0.95, 55.0, 10.0


def load(paths):
    """-> {"burst": run, "sustained": run, "transfers": run}, those that were given. Files of one regime become one run."""
    runs = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            run = json.load(file)
        kind = run.get("regime") if run.get("bench") == "linear" else run.get("bench")
        if kind not in ("burst", "sustained", "transfers"):
            raise ValueError(f"{path}: holds neither cuda_linear_bench's nor cuda_transfer_bench's results")
        for other in runs.values():
            if other["device"]["name"] != run["device"]["name"]:
                raise ValueError(f"{path}: measured on {run['device']['name']}, another file on {other['device']['name']}")
        if kind not in runs:
            runs[kind] = run
            continue
        if kind == "transfers":
            raise ValueError(f"{path}: a second file of transfers")
        if run["rounds"] != runs[kind]["rounds"]:
            raise ValueError(f"{path}: {run['rounds']} rounds, another file of regime {kind} has {runs[kind]['rounds']}")
        runs[kind]["results"] += run["results"]
        runs[kind]["complete"] = runs[kind].get("complete") and run.get("complete")
    for kind in ("burst", "sustained"):
        shapes = [(r["m"], r["k"], r["n"]) for r in runs.get(kind, {"results": []})["results"]]
        twice = sorted({s for s in shapes if shapes.count(s) > 1})
        if twice:
            raise ValueError(f"regime {kind} has M, K, N = {twice[0]} twice")
    return runs


def number(value, field):
    return f"{round(100 * value)} %" if field == "overhead" else f"{value:.2f}"


def verdict(median, worst, aim, field):
    """Judged on the numbers, not on their printed digits."""
    sign = -1 if field == "overhead" else 1
    if sign * median < sign * aim[0]:
        return "short"
    return "reached" if aim[1] is None or sign * worst >= sign * aim[1] else "median reached, worst short"


def median_cell(results, route, field, m):
    values = [r[route][field] for r in results if r["m"] == m and route in r]
    if not values:
        return "-"
    middle, worst = statistics.median(values), (max if field == "overhead" else min)(values)
    cell = f"{number(middle, field)} [{number(worst, field)}]"
    aim = AIMS.get((route, field), {}).get(m)
    if aim:
        wanted = number(aim[0], field) + (f" [{number(aim[1], field)}]" if aim[1] is not None else "")
        cell += f"; aim {wanted}: {verdict(middle, worst, aim, field)}"
    return cell


def medians(results):
    rows = sorted({r["m"] for r in results})
    yield "| route | " + " | ".join(f"M = {m}" for m in rows) + " |\n|---|" + "---|" * len(rows)
    for route, field, name in ROUTES:
        if any(route in r for r in results):
            yield f"| {name} | " + " | ".join(median_cell(results, route, field, m) for m in rows) + " |"


def roofline(run, result, route):
    """The share of the roofline that the route reached, or None where the tensor cores' rate is not known."""
    device = run["device"]
    int8 = route.startswith("w8a8")
    per_clock = device["int8_per_clock" if int8 else "bf16_per_clock"]
    if not per_clock:
        return None
    m, k, n = result["m"], result["k"], result["n"]
    rate = per_clock * device["multiprocessors"] * result[route]["sm_mhz"] * 1e6
    weight = k * n * (2 if route.startswith("cublas") else 1) + (0 if route.startswith("cublas") else 4 * n)
    least = max(2 * m * k * n / rate, (weight + 2 * m * (k + n)) / device["memory_bytes_per_second"])
    return least / (result[route]["us"] * 1e-6)


def shape_table(run):
    yield ("| M | model | K x N | bf16 us | of roofline | W8A16 | of roofline | W8A8 | of roofline | + GELU | + LoRA | bf16 dX us | of roofline | W8A16 dX | of roofline "
           "| W8A8 dX | of roofline | + LoRA | SM MHz |\n|" + "---|" * 19)
    for r in sorted(run["results"], key=lambda r: r["m"]):
        def ratio(route):
            return number(r[route]["ratio"], "ratio") if route in r else "-"

        def share(route):
            reached = roofline(run, r, route)
            return "-" if reached is None else f"{100 * reached:.0f} %"

        def overhead(route):
            return number(r[route]["overhead"], "overhead") if route in r else "-"

        clocks = [value["sm_mhz"] for value in r.values() if isinstance(value, dict)]
        cells = [r["m"], r["model"], f"{r['k']} x {r['n']}", f"{r['cublas_forward']['us']:.1f}", share("cublas_forward"), ratio("w8a16_forward"),
                 share("w8a16_forward"), ratio("w8a8_forward"), share("w8a8_forward"), ratio("w8a16_gelu_forward"), overhead("w8a16_lora_forward"),
                 f"{r['cublas_dx']['us']:.1f}", share("cublas_dx"), ratio("w8a16_dx"), share("w8a16_dx"), ratio("w8a8_dx"), share("w8a8_dx"),
                 overhead("w8a16_lora_backward"), f"{min(clocks):.0f} to {max(clocks):.0f}"]
        yield "| " + " | ".join(str(c) for c in cells) + " |"


def clocks_of(run, m):
    """Least, median and highest SM clock over all routes of all shapes with M = m."""
    clocks = [value["sm_mhz"] for r in run["results"] if r["m"] == m for value in r.values() if isinstance(value, dict)]
    return min(clocks), statistics.median(clocks), max(clocks)


def clock_table(runs):
    yield "| regime | M | SM MHz, median over shapes and routes [least, highest] | bf16 peak there, T/s |\n|---|---|---|---|"
    for regime in ("burst", "sustained"):
        for m in sorted({r["m"] for r in runs.get(regime, {"results": []})["results"]}):
            low, middle, high = clocks_of(runs[regime], m)
            device = runs[regime]["device"]
            peak = device["bf16_per_clock"] * device["multiprocessors"] * middle * 1e6 / 1e12
            yield f"| {regime} | {m} | {middle:.0f} [{low:.0f}, {high:.0f}] | {f'{peak:.0f}' if peak else 'not known'} |"


def reached(good):
    return "reached" if good else "short"


def transfers(run):
    link, overlap, lease = run["link"], run["overlap"], run["lease"]
    shortest = min(overlap["compute_alone_ms"], overlap["copies_alone_ms"])
    hidden = (overlap["compute_alone_ms"] + overlap["copies_alone_ms"] - overlap["both_ms"]) / shortest
    yield "## Transfers\n"
    yield (f"From `cuda_transfer_bench --json`: {run['blocks']} blocks of {run['model']} ({link['bytes'] / 1e9:.2f} GB of codes, scales and biases) from page-locked "
           "memory through the contract's stream group,\none copy per block; medians of rounds in one run. Plain copies: `cudaMemcpyAsync` of the same bytes "
           "in the same sizes, queued at once.\n")
    yield "| what | measured | aim |\n|---|---|---|"
    yield (f"| rate of a pass without compute | {link['engine_gb_s']:.1f} GB/s, {100 * link['share']:.1f} % of plain copies ({link['plain_gb_s']:.1f} GB/s) | "
           f"{100 * LINK_AIM:.0f} %: {reached(link['share'] >= LINK_AIM)}; {LINK_RATE_AIM:.0f} GB/s: {reached(link['engine_gb_s'] >= LINK_RATE_AIM)} |")
    yield (f"| compute of {overlap['compute_alone_ms']:.0f} ms and copies of {overlap['copies_alone_ms']:.0f} ms at once | {overlap['both_ms']:.0f} ms: {100 * hidden:.0f} % "
           f"of the shorter is hidden; compute takes {overlap['compute_beside_copies_ms'] / overlap['compute_alone_ms']:.3f} of its time, copies "
           f"{overlap['copies_beside_compute_ms'] / overlap['copies_alone_ms']:.3f} | |")
    yield (f"| a prefetched lease on the compute stream | {lease['stream_us']:.1f} us; taken while the copy was still under way {lease['stream_us_host_ahead']:.1f} us; "
           f"added between kernels of 40 us {lease['between_kernels_us']:.1f} us | "
           f"{LEASE_AIM_US:.0f} us: {reached(max(lease['stream_us'], lease['stream_us_host_ahead']) <= LEASE_AIM_US)} |")
    yield (f"| the same on the host | acquire {lease['acquire_host_us']:.1f} us (99 % within {lease['acquire_host_us_p99']:.1f}), release "
           f"{lease['release_host_us']:.1f} us (99 % within {lease['release_host_us_p99']:.1f}) | |")
    if lease["host_ahead_stall_ms"] > 0.05:
        yield f"\nThe leases taken early stalled {lease['host_ahead_stall_ms']:.2f} ms: their copies were not there in time, and that number says too much."
    yield ("\nA step visits every block forward and then backward (twice the forward's compute), C slots of the largest block. The floor is what a link at the plain "
           "copies' rate\ncannot hide behind that compute.\n")
    yield "| compute per block, us | C | compute ms | step ms | exposed ms | floor ms | loaded GB |\n|---|---|---|---|---|---|---|"
    for s in sorted(run["steps"], key=lambda s: (s["asked_compute_us"], s["slots"])):
        yield (f"| {s['asked_compute_us']} | {s['slots']} | {s['compute_ms']:.1f} | {s['step_ms']:.1f} | {s['exposed_ms']:.1f} | {s['floor_ms']:.1f} | "
               f"{s['loaded_bytes'] / 1e9:.2f} |")


def sanitizers(paths):
    """A row per tool of compute-sanitizer: tests that passed and failed under it, and its own last words."""
    tools = {}
    for path in sorted(map(pathlib.Path, paths)):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "COMPUTE-SANITIZER" not in text:
            raise ValueError(f"{path}: no log of compute-sanitizer")
        tool = tools.setdefault(path.name.split(".")[0], {"passed": 0, "failed": 0, "words": []})
        for outcome in ("passed", "failed"):
            tool[outcome] += sum(int(n) for n in re.findall(rf"^\[  {outcome.upper()}  \] (\d+) tests?[.,]", text, re.MULTILINE))
        summary = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (.*)$", text, re.MULTILINE)
        tool["words"] += summary[-1:] or ["stopped before its end"]
    yield "## compute-sanitizer\n"
    yield "From its logs, which `ci/gpu` writes; tests of `cuda_test`, and of `cuda_stream_test` for memcheck_stream.\n"
    yield "| tool | tests passed | failed | what it found |"
    yield "|---|---|---|---|"
    for name, tool in tools.items():
        yield f"| {name} | {tool['passed']} | {tool['failed']} | {'; '.join(dict.fromkeys(tool['words']))} |"


def document(runs, logs):
    device = next(iter(runs.values()))["device"]
    yield "# The CUDA backend against cuBLASLt, and on the link\n"
    yield f"Generated by `bench/cuda/results.py` from the JSON of `cuda_linear_bench` and `cuda_transfer_bench` (`ci/gpu` runs them). Device: {device['name']}, {device['multiprocessors']} multiprocessors,"
    yield f"memory {device['memory_bytes_per_second'] / 1e12:.2f} TB/s (its clock times its width), highest SM clock {device['highest_mhz']:.0f} MHz.\n"
    linear = [kind for kind in ("burst", "sustained") if kind in runs]
    if linear:
        yield "Ratio = time of cuBLASLt bf16, the best of eight proposals, over time of the route; more than 1 is faster than bf16. GELU is compared with cuBLASLt's epilogue of"
        yield "bias and GELU (tanh), with the preactivation kept where ours is. Quantization of X and of G, LoRA's products, its gradients and every cleared flag are inside. Captured"
        yield "graphs, operands rotate through more than 220 MB, interleaved rounds, medians. All our sums are added in an order that the shape fixes (deterministic)."
        yield "LoRA's overhead is the time with the branch over the time without, less 1. \"In the producer against apart\": LayerNorm and modulation that write codes, then the product,"
        yield "against one read and write of X, the least that a separate producer costs, then the product with its own quantization.\n"
        yield "Two regimes. Burst: the device rests between routes at least as long as it works and stays below its power limit. Sustained: heated, then every route without a pause for"
        yield "0.3 s at a time. Clocks are measured on the multiprocessors, from just before a route to just behind it.\n"
        yield from clock_table(runs)
    if "burst" in runs:
        aimed = [r for r in runs["burst"]["results"] if r["model"] in AIMED_MODELS]
        if aimed:
            yield "\n## Burst: medians over FLUX.1 and SDXL [worst shape]\n"
            yield from medians(aimed)
    if "sustained" in runs:
        models = ", ".join(dict.fromkeys(r["model"] for r in runs["sustained"]["results"]))
        yield f"\n## Sustained: medians [worst shape]; models: {models}\n"
        yield from medians(runs["sustained"]["results"])
    if "transfers" in runs:
        yield ""
        yield from transfers(runs["transfers"])
    if logs:
        yield ""
        yield from sanitizers(logs)
    for regime in linear:
        yield f"\n## Every shape, {regime}\n"
        if not runs[regime].get("complete"):
            yield "The run was stopped before its end: shapes are missing, here and in the medians.\n"
        yield "Of roofline: the least time that the device allows, at the clock of that route, over the time taken.\n"
        yield from shape_table(runs[regime])


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    try:
        logs = [path for path in sys.argv[1:] if path.endswith(".log")]
        runs = load([path for path in sys.argv[1:] if path not in logs])
        if not runs:
            raise ValueError("no results of a bench beside the logs")
        print("\n".join(document(runs, logs)))
    except (OSError, ValueError) as e:
        sys.exit(f"results.py: {e}")
    except KeyError as e:
        sys.exit(f"results.py: a file lacks {e}")


if __name__ == "__main__":
    main()
