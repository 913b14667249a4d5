#!/usr/bin/env python3
"""A whole LoRA training step on FLUX.1-dev's layout: squareq W8A16 and W8A8, resident and streamed, against PyTorch bf16 resident.

  bench/whole_step/run.py --squareq build/cuda/bin/squareq --work DIR [--python PYTHON] [--out result.json]

Makes the checkpoint, the caches and the slab in DIR where they are not there yet (24 GB for the checkpoint, deleted once the slab stands, and
12 GB for the slab), then runs in rounds: PyTorch and ours take turns, every second round in reverse order, so that a drift of the machine hits
both. A run's value is the median of its steps without the first three; a ratio is taken within a round, the result is the median of the rounds.
The result file is written anew after every run; what was not run for lack of time is listed. README.md says what is measured and what not.
Exit status: 0 everything ran; 1 a run failed or was left out; 2 wrong flags, missing program, or a Python that cannot run the rival.
"""
import argparse
import ctypes
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time

import layout as layouts

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WARM_UP = 3
STREAMED, RESIDENT = "streamed", "resident"
FREE = "-free"  # ends the name of a run whose attention may add in any order
TARGET_BYTES = 3_000_000_000  # peak device memory at 512 x 512


def refuse(message):
    print(f"run.py: {message}", file=sys.stderr)
    sys.exit(2)


class DeviceMemory:
    """The most bytes in use on the whole device while a block of code runs, by NVML every 5 ms; null where NVML cannot be loaded.

    CUDA contexts count: `above` is against what was in use before, so it holds the program's context too.
    """

    def __init__(self):
        self.peak = self.before = None
        try:
            self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
            self.handle = ctypes.c_void_p()
            first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            index = int(first) if first.isdigit() else 0
            usable = self.nvml.nvmlInit_v2() == 0 and self.nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self.handle)) == 0
        except OSError:
            usable = False
        if not usable:
            self.nvml = None

    def used(self):
        numbers = (ctypes.c_ulonglong * 3)()  # total, free, used
        return numbers[2] if self.nvml.nvmlDeviceGetMemoryInfo(self.handle, numbers) == 0 else 0

    def watch(self):
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self.used())

    def __enter__(self):
        if self.nvml:
            self.before = self.peak = self.used()
            self.done = threading.Event()
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_):
        if self.nvml:
            self.done.set()
            self.thread.join()

    @property
    def above(self):
        return self.peak - self.before if self.nvml else None


class Failed(Exception):
    pass


class Died(Failed):
    """The program ended by itself, with another status than 0."""


def call(command, limit_s, env=None):
    """stdout of a program that ends well within its time; Failed with its last words otherwise."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=limit_s, env=env)
    except subprocess.TimeoutExpired:
        raise Failed(f"{pathlib.Path(command[0]).name} ran past {limit_s:.0f} s") from None
    if done.returncode:
        words = " | ".join(line for line in (done.stderr.strip() or done.stdout.strip()).splitlines()[-4:])
        raise Died(f"{pathlib.Path(command[0]).name} ended with {done.returncode}: {words}")
    return done.stdout


def call_json(command, limit_s):
    text = call(command, limit_s)
    try:
        return json.loads(text)
    except ValueError:
        raise Failed(f"{pathlib.Path(command[0]).name} answered no JSON: {text[:200]!r}") from None


class Bench:
    def __init__(self, a, layout):
        self.a, self.layout = a, layout
        self.begun = time.monotonic()
        self.durations = {}
        self.slab = a.work / "flux"
        self.rival_attention = [a.rival_attention] if a.rival_attention != "try" else ["default", "flash"]  # in this order
        self.result = {"layout": layout.config(), "steps": a.steps, "warm_up": WARM_UP, "rounds_asked": a.rounds, "slots": a.slots, "prepare": {}, "runs": [], "left_out": [], "rival_died": []}

    def left(self):
        return self.a.limit_s - (time.monotonic() - self.begun)

    def save(self):
        text = json.dumps(self.result, indent=2) + "\n"
        partial = self.a.out.with_name(self.a.out.name + ".partial")
        partial.write_text(text)
        partial.replace(self.a.out)

    # ------------------------------------------------------------------ preparation

    def prepare(self):
        caches = [self.a.work / f"cache_{side}.safetensors" for side in self.a.sides]
        have_slab = self.slab.with_suffix(".manifest.json").exists()
        if have_slab and all(cache.exists() for cache in caches):
            self.check_slab()
            return
        if have_slab:
            refuse(f"{self.a.work} holds a slab but not {', '.join(str(c) for c in caches if not c.exists())}; take an empty --work folder")
        transformer = self.a.work / "transformer"
        if not (transformer / "diffusion_pytorch_model.safetensors.index.json").exists():
            shutil.rmtree(transformer, ignore_errors=True)
            self.result["prepare"]["generate"] = call_json(
                [self.a.python, HERE / "generate.py", "--out", self.a.work, "--pixels", ",".join(map(str, self.a.sides)), *layouts.flags_of(self.layout)], self.left())
        built = call_json([self.a.squareq, "build", "--model", transformer, "--out", self.a.work, "--name", self.slab.name, "--json"], self.left())
        if self.layout == layouts.Layout() and not built["architecture"]["published"]:
            raise Failed("squareq does not recognise the generated checkpoint as FLUX.1-dev")
        self.result["prepare"]["build"] = {key: built[key] for key in ("seconds", "source_bytes", "slab_bytes", "layers")}
        if not self.a.keep_checkpoint:
            shutil.rmtree(transformer)
        self.save()

    def check_slab(self):
        """A slab of another layout in --work would be timed without a word."""
        found = call_json([self.a.squareq, "inspect", self.slab, "--json"], self.left())
        linears = sum(1 for shape in self.layout.tensors().values() if len(shape) == 2)
        if len(found["layers"]) != linears:
            refuse(f"{self.slab} has {len(found['layers'])} layers, the layout has {linears}; take another --work folder")

    # ------------------------------------------------------------------ one run of each kind

    def squareq(self, compute, place, side, deterministic):
        folder = self.a.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        slots = self.a.slots if place == STREAMED else 0
        config = {
            "model": {"slab": str(self.slab)},
            "data": {"train": str(self.a.work / f"cache_{side}.safetensors"), "caption_dropout": 0},
            "lora": {"rank": 16},
            "train": {"steps": self.a.steps, "batch": 1, "checkpointing": True, "dtype": "bf16", "clip": 1, "deterministic": deterministic},
            "memory": {"resident_blocks": slots},
            "output": {"dir": str(folder), "save_every": 0},
        }
        if compute == "w8a8":
            config["train"]["compute"] = "w8a8"
        path = self.a.work / "run.json"
        path.write_text(json.dumps(config, indent=2))
        with DeviceMemory() as memory:
            call([self.a.squareq, "train", "--config", path, "--backend", self.a.device, "--overwrite", "--quiet"], min(self.left(), self.a.run_limit_s))
        lines = [json.loads(line) for line in (folder / "telemetry.jsonl").read_text().splitlines()]
        report = json.loads((folder / "report.json").read_text())
        if report["deterministic"] != deterministic:
            raise Failed(f"asked for deterministic {deterministic}, the report says {report['deterministic']}")
        if report["skipped_steps"]:
            raise Failed(f"{report['skipped_steps']} steps were skipped for NaN or infinity")
        if report["adapter_layers"] != len(self.layout.targets()):  # the rival trains exactly these
            raise Failed(f"squareq trains {report['adapter_layers']} linears, the rival {len(self.layout.targets())}")
        steady = lines[WARM_UP:]
        median = lambda key: statistics.median(line[key] for line in steady)  # noqa: E731
        # Older programs count the weights only.
        peak = max(line["vram_peak_bytes"] for line in lines)
        run = {
            "seconds": median("wall_ms") / 1e3, "all_seconds": [line["wall_ms"] / 1e3 for line in lines],
            "h2d_bytes": int(median("h2d_bytes")), "copy_s": median("copy_time_ms") / 1e3, "stall_s": median("stall_time_ms") / 1e3,
            "compute_s": median("compute_time_ms") / 1e3, "launches": int(median("launches")),
            "weight_bytes": report["peak_weight_bytes"], "peak_bytes": peak if peak > report["peak_weight_bytes"] else None,
            "reserved_bytes": int(max(line["vram_reserved_mb"] for line in lines) * 2**20) if peak > report["peak_weight_bytes"] else None,
            "device_bytes_with_context": memory.above, "pinned_bytes": lines[-1]["pinned_bytes"],
            "adapter_linears": report["adapter_layers"], "adapter_parameters": report["adapter_parameters"], "loss": report["losses"][-1],
            "backend": report["backend"], "deterministic": report["deterministic"], "planned": self.plan(place, side),
        }
        shutil.rmtree(folder)  # checkpoints and adapters of half a gigabyte
        return run

    def plan(self, place, side):
        flags = ["--resident-blocks", self.a.slots] if place == STREAMED else []
        plan = call_json([self.a.squareq, "plan", "--model", self.slab, "--resolution", side, "--rank", 16, "--dtype", "bf16",
                                "--text-tokens", self.layout.text_tokens, *flags, "--json"], self.left())["plan"]
        return {"weight_bytes": plan["weight_bytes"], "device_bytes": plan["device_bytes"], "step_bytes": plan["train_step"]["bytes"]}

    def pytorch(self, sides):
        command = [self.a.python, HERE / "pytorch_step.py", "--pixels", ",".join(map(str, sides)), "--steps", self.a.steps, "--device", self.a.device,
                   "--adapters", self.a.adapters, *layouts.flags_of(self.layout)]
        if self.a.compile:
            command += ["--compile", self.a.compile]
        while True:
            attention = self.rival_attention[0]
            try:
                with DeviceMemory() as memory:
                    answer = call_json([*command, "--attention", attention], min(self.left(), self.a.run_limit_s))
                break
            except Died as error:
                if len(self.rival_attention) == 1:
                    raise
                # Later rounds begin with what is left: one that dies here dies there too.
                del self.rival_attention[0]
                self.result["rival_died"].append({"attention": attention, "why": str(error), "instead": self.rival_attention[0]})
                self.save()
                print(f"pytorch with {attention} attention died, running it with {self.rival_attention[0]}: {error}", file=sys.stderr)
        for run in answer["runs"]:
            run["all_seconds"] = run["seconds"]
            run["seconds"] = statistics.median(run["seconds"][WARM_UP:])
        answer["device_bytes_with_context"] = memory.above
        return answer

    # ------------------------------------------------------------------ rounds

    def one(self, round_index, name, work):
        ours = [seconds for other, seconds in self.durations.items() if other != "pytorch"]
        expected = self.durations.get(name, max(ours, default=0) if name != "pytorch" else 0)
        if self.left() < expected + 5:
            self.result["left_out"].append({"round": round_index, "name": name, "why": f"{self.left():.0f} s left of {self.a.limit_s} s"})
            return
        begun = time.monotonic()
        try:
            run = {"round": round_index, "name": name, **work()}
        except Failed as error:
            self.result["left_out"].append({"round": round_index, "name": name, "why": str(error)})
            print(f"{name}: {error}", file=sys.stderr)
            return
        self.durations[name] = run["process_s"] = time.monotonic() - begun
        self.result["runs"].append(run)
        self.save()
        if not self.a.quiet:
            shown = f"{run['seconds']:.4f} s" if "seconds" in run else ", ".join(f"{r['adapters']} {r['pixels']}: {r['seconds']:.4f} s" for r in run["runs"])
            print(f"round {round_index} {name}: {shown}   ({run['process_s']:.0f} s in all)", file=sys.stderr)

    def rounds(self):
        modes = {"yes": (True,), "no": (False,), "both": (True, False)}[self.a.deterministic]
        ours = [(f"{compute}-{place}-{side}" + ("" if deterministic else FREE), (compute, place, side, deterministic))
                for side in self.a.sides for compute in ("w8a16", "w8a8") for place in (STREAMED, RESIDENT) for deterministic in modes]
        ours = [(name, what) for name, what in ours if self.a.only.search(name)]
        rivals = [side for side in self.a.sides if self.a.only.search(f"pytorch-{side}")]
        jobs = [(name, lambda what=what: self.squareq(*what)) for name, what in ours]
        if rivals:
            jobs.insert(0, ("pytorch", lambda: self.pytorch(rivals)))
        if not jobs:
            refuse(f"--only {self.a.only.pattern} matches no configuration")
        for index in range(self.a.rounds):
            for name, work in jobs if index % 2 == 0 else reversed(jobs):
                self.one(index, name, work)


# ------------------------------------------------------------------ what the runs say


def median_or_none(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def summary(result):
    """Table rows and verdicts. The rival of a ratio is the fastest of its variants with fp32 adapters in the same round."""
    rival, link = {}, []
    for run in result["runs"]:
        if run["name"] != "pytorch":
            continue
        link.append(run["link_bytes_per_s"])
        for r in run["runs"]:
            if r["adapters"] != "bf16":
                key = (run["round"], r["pixels"])
                rival[key] = min(rival.get(key, r), r, key=lambda x: x["seconds"])
    link = median_or_none(link)
    names = sorted({run["name"] for run in result["runs"] if run["name"] != "pytorch"}, key=lambda n: (int(n.split("-")[2]), n))
    by_name = {name: [run for run in result["runs"] if run["name"] == name] for name in names}
    seconds = {name: statistics.median(run["seconds"] for run in by_name[name]) for name in names}
    rows = []
    for name in names:
        compute, place, side, *free = name.split("-")
        runs = by_name[name]
        first = runs[0]
        ratios = [run["seconds"] / rival[(run["round"], int(side))]["seconds"] for run in runs if (run["round"], int(side)) in rival]
        row = {"name": name, "seconds": seconds[name], "ratio": median_or_none(ratios), "ratios": ratios, "h2d_bytes": first["h2d_bytes"],
               "stall_s": statistics.median(run["stall_s"] for run in runs), "peak_bytes": median_or_none([run["peak_bytes"] for run in runs]), "reserved_bytes": median_or_none([run["reserved_bytes"] for run in runs]),
               "device_bytes_with_context": median_or_none([run["device_bytes_with_context"] for run in runs]),
               "planned_bytes": first["planned"]["device_bytes"], "weight_bytes": first["weight_bytes"], "planned_weight_bytes": first["planned"]["weight_bytes"]}
        alone = seconds.get("-".join([compute, RESIDENT, side, *free]))
        if place == STREAMED and alone and link:
            row["bound_s"] = max(alone, first["h2d_bytes"] / link)
            row["over_bound"] = seconds[name] / row["bound_s"]
        rows.append(row)
    others = {}
    for run in result["runs"]:
        if run["name"] == "pytorch":
            for r in run["runs"]:
                others.setdefault((r["pixels"], r["adapters"]), []).append({**r, "attention": run["attention"]})
    pytorch = [{"pixels": side, "adapters": variant, "seconds": statistics.median(r["seconds"] for r in runs), "peak_bytes": runs[0]["peak_bytes"],
                "attention": sorted({r["attention"] for r in runs})} for (side, variant), runs in sorted(others.items())]
    return {"link_bytes_per_s": link, "squareq": rows, "pytorch": pytorch, "targets": targets(rows)}


def targets(rows):
    by_name, found = {row["name"]: row for row in rows}, []

    def judge(what, name, value, limit):
        found.append({"target": what, "configuration": name, "value": value, "limit": limit, "met": None if value is None else value <= limit})

    def of(name, key):
        return by_name.get(name, {}).get(key)

    for compute, limit in (("w8a16", 1.02), ("w8a8", 0.75)):
        name = f"{compute}-{STREAMED}-1024"
        judge("time over PyTorch bf16 resident", name, of(name, "ratio"), limit)
        if name + FREE in by_name:
            judge("time over PyTorch bf16 resident", name + FREE, of(name + FREE, "ratio"), limit)
    for compute in ("w8a16", "w8a8"):
        name = f"{compute}-{STREAMED}-512"
        judge("time over max(compute, bytes / link)", name, of(name, "over_bound"), 1.10)
        peak, planned = of(name, "peak_bytes"), of(name, "planned_bytes")
        judge("peak device bytes, context excluded", name, peak, TARGET_BYTES)
        judge("the same with what the allocator keeps", name, of(name, "reserved_bytes"), TARGET_BYTES)
        judge("distance of measured and planned bytes", name, abs(peak / planned - 1) if peak and planned else None, 0.02)
    return found


def show(result):
    s = result["summary"]
    gib = lambda value: "-" if value is None else f"{value / 1e9:.2f}"  # noqa: E731
    number = lambda value: "-" if value is None else f"{value:.3f}"  # noqa: E731
    print(f"\n{'configuration':<25} {'s/step':>9} {'/ PyTorch':>10} {'/ bound':>8} {'GB moved':>9} {'stall s':>8} {'peak GB':>8} {'planned':>8} {'+context':>9}")
    for r in s["pytorch"]:
        print(f"{'pytorch-' + r['adapters'] + '-' + str(r['pixels']):<25} {r['seconds']:>9.4f} {'':>10} {'':>8} {'':>9} {'':>8} {gib(r['peak_bytes']):>8}   attention: {', '.join(r['attention'])}")
    for r in s["squareq"]:
        print(f"{r['name']:<25} {r['seconds']:>9.4f} {number(r['ratio']):>10} {number(r.get('over_bound')):>8} {gib(r['h2d_bytes']):>9} {r['stall_s']:>8.4f} "
              f"{gib(r['peak_bytes']):>8} {gib(r['planned_bytes']):>8} {gib(r['device_bytes_with_context']):>9}")
    if s["link_bytes_per_s"]:
        print(f"link: {s['link_bytes_per_s'] / 1e9:.1f} GB/s, page-locked host memory to the device")
    print()
    for t in s["targets"]:
        verdict = "not measured" if t["met"] is None else "met" if t["met"] else "MISSED"
        value = "-" if t["value"] is None else f"{t['value'] / 1e9:.3f} GB" if t["limit"] == TARGET_BYTES else f"{t['value']:.3f}"
        limit = f"{t['limit'] / 1e9:.0f} GB" if t["limit"] == TARGET_BYTES else f"{t['limit']:.2f}"
        print(f"{t['configuration']:<25} {t['target']:<40} {value:>10} (limit {limit}): {verdict}")
    for death in result["rival_died"]:
        print(f"PyTorch with {death['attention']} attention died; its rows are with {death['instead']}: {death['why']}")
    for lost in result["left_out"]:
        print(f"not run: round {lost['round']} {lost['name']}: {lost['why']}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squareq", type=pathlib.Path, default=ROOT / "build/cuda/bin/squareq")
    parser.add_argument("--python", default=sys.executable, help="one with torch, diffusers, peft and numpy (default: this one)")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for checkpoint, caches, slab and runs: 37 GB for FLUX.1-dev")
    parser.add_argument("--out", type=pathlib.Path, help="result file (default: WORK/result.json)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the chain at a tiny layout, no time worth a word")
    parser.add_argument("--pixels", default="512,1024")
    parser.add_argument("--slots", type=int, default=2, help="device slots of the streamed runs; all blocks pass through them")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help=f"of each run; the first {WARM_UP} are left out")
    parser.add_argument("--deterministic", choices=("yes", "no", "both"), default="yes", help=f"train.deterministic of squareq's runs; the names of those without end in {FREE}")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="regular expression over w8a16-streamed-1024, w8a8-resident-512, pytorch-1024, ...")
    parser.add_argument("--adapters", default="autocast,fp32,bf16", help="variants of the rival (pytorch_step.py)")
    parser.add_argument("--rival-attention", choices=("try", "default", "flash"), default="try",
                        help="kernels of the rival (pytorch_step.py); try: default, and should its process die, flash, which result and table then say")
    parser.add_argument("--compile", metavar="MODE", help="torch.compile the rival's blocks with this mode")
    parser.add_argument("--limit-s", type=float, default=480, help="start nothing that would end later than this; preparation included")
    parser.add_argument("--run-limit-s", type=float, default=150, help="of one process")
    parser.add_argument("--keep-checkpoint", action="store_true", help="keep the float checkpoint once the slab is built")
    parser.add_argument("--prepare-only", action="store_true", help="make checkpoint, caches and slab, run nothing")
    parser.add_argument("--quiet", action="store_true")
    layouts.add_flags(parser)
    a = parser.parse_args()
    try:
        layout = layouts.of_flags(a)
        a.sides = [int(side) for side in a.pixels.split(",")]
        for side in a.sides:
            layouts.image_tokens(side)
        if a.steps <= WARM_UP:
            raise ValueError(f"--steps is {a.steps}, the first {WARM_UP} are left out")
        if a.rounds < 1 or a.slots < 1:
            raise ValueError("--rounds and --slots must be at least 1")
    except ValueError as error:
        parser.error(str(error))
    return a, layout


def check_tools(a):
    """Everything that would otherwise fail minutes later."""
    if not a.squareq.is_file() or not os.access(a.squareq, os.X_OK):
        refuse(f"no program at {a.squareq}: build the preset 'cuda', or name it with --squareq")
    a.squareq = a.squareq.resolve()
    try:
        version = call([a.squareq, "--version"], 60).strip()
    except (Failed, OSError) as error:
        refuse(f"{a.squareq} does not run: {error}")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        refuse(f"{a.squareq} is not squareq: its --version says {version[:80]!r}")
    probe = "import json, numpy, torch, diffusers, peft; print(json.dumps({'torch': torch.__version__, 'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None}))"
    try:
        python = json.loads(call([a.python, "-c", probe], 300).strip().splitlines()[-1])
    except (Failed, OSError, ValueError) as error:
        refuse(f"{a.python} cannot run the rival (it needs torch, diffusers, peft and numpy; carry.sh packs the last three): {error}")
    if a.device == "cuda" and not python["gpu"]:
        refuse(f"torch {python['torch']} of {a.python} sees no GPU; --device cpu tests the chain at a tiny layout")
    return {"squareq": version, **python}


def main():
    a, layout = parse()
    tools = check_tools(a)
    a.work.mkdir(parents=True, exist_ok=True)
    a.work = a.work.resolve()
    a.out = (a.out or a.work / "result.json").resolve()
    a.out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(a, layout)
    bench.result["tools"] = tools
    try:
        bench.prepare()
    except Failed as error:
        print(f"run.py: preparation failed: {error}", file=sys.stderr)
        return 1
    if a.prepare_only:
        print(json.dumps(bench.result["prepare"]))
        return 0
    bench.rounds()
    bench.result["summary"] = summary(bench.result)
    bench.result["total_s"] = time.monotonic() - bench.begun
    bench.save()
    show(bench.result)
    return 1 if bench.result["left_out"] else 0


if __name__ == "__main__":
    sys.exit(main())
