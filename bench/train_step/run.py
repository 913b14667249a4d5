#!/usr/bin/env python3
"""Step time of LoRA training on the emoji model: squareq's `cpu` backend against PyTorch eager fp32 on dequantized weights.

  bench/train_step/run.py --squareq build/cpu/bin/squareq --slab SLAB [--python PYTHON_WITH_TORCH_AND_DIFFUSERS] [--rounds 3]

Both train rank 16 on the same 66 linears, batch 16, fp32, one checkpoint per block, the same number of threads; squareq streams with two
resident blocks. The programs take turns, so that a drift of the machine's speed hits both; the ratio is that of the median steps of each
round (first steps left out), and the median of the rounds is the result. Ratio = squareq / PyTorch: below 1 squareq is faster.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WARM_UP = 3


def squareq_seconds(a, folder):
    config = json.loads((ROOT / "fixtures/emoji/quickstart.json").read_text())
    config["model"] = {"slab": str(a.slab)}
    config["data"]["train"] = [str(ROOT / "fixtures/emoji/cache/blueprint_train.safetensors")]
    config["schedule"]["warmup"] = 0
    config["train"].update(steps=a.steps, batch=16, accumulation=1, checkpointing=True, dtype="f32")
    config["output"] = {"dir": str(folder / "run")}
    path = folder / "run.json"
    path.write_text(json.dumps(config))
    subprocess.run([a.squareq, "train", "--config", path, "--backend", a.backend, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    lines = (folder / "run" / "telemetry.jsonl").read_text().splitlines()
    return [json.loads(line)["wall_ms"] / 1e3 for line in lines]


def pytorch_seconds(a):
    done = subprocess.run([a.python, HERE / "pytorch_step.py", "--steps", str(a.steps), "--batch", "16"], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squareq", type=pathlib.Path, default=ROOT / "build/cpu/bin/squareq")
    parser.add_argument("--slab", type=pathlib.Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    a = parser.parse_args()
    a.squareq, a.slab = a.squareq.resolve(), a.slab.resolve()
    rounds = []
    for _ in range(a.rounds):
        with tempfile.TemporaryDirectory() as folder:
            ours = statistics.median(squareq_seconds(a, pathlib.Path(folder))[WARM_UP:])
        theirs = statistics.median(pytorch_seconds(a)[WARM_UP:])
        rounds.append({"squareq_s": ours, "pytorch_s": theirs, "ratio": ours / theirs})
    print(json.dumps({"rounds": rounds, "ratio": statistics.median(r["ratio"] for r in rounds)}, indent=2))


if __name__ == "__main__":
    main()
