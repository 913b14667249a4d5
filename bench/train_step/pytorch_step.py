#!/usr/bin/env python3
"""The rival of the step-time claim: the same LoRA training step in PyTorch eager, fp32, on dequantized weights.

The real diffusers class with the emoji model's INT8 round-trip weights, LoRA rank 16 on the attention and MLP linears of the blocks,
gradient checkpointing per block, AdamW. Prints one JSON object with the seconds of each step.
"""
import argparse
import json
import pathlib
import sys
import time

import torch
import torch.utils.checkpoint
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "fixtures/emoji/make"))
from model import Runner, inject, load_model, round_trip  # noqa: E402


class CheckpointedRunner(Runner):
    """Runner of the emoji recipe with one checkpoint per block."""

    def __call__(self, x, tokens, pooled, t):
        m, recompute = self.m, torch.utils.checkpoint.checkpoint
        temb = m.time_text_embed(t.float() * 1000, pooled.float())
        h, c = m.x_embedder(x), m.context_embedder(tokens)
        for block in list(m.transformer_blocks) + list(m.single_transformer_blocks):
            c, h = recompute(block, h, c, temb, self.rope, use_reentrant=False)
        return m.proj_out(m.norm_out(h, temb))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)

    emoji = ROOT / "fixtures/emoji"
    data = {k: v.float() for k, v in load_file(emoji / "cache/blueprint_train.safetensors").items()}
    model = round_trip(load_model(str(emoji / "transformer"), "cpu"), 127)
    adapters = inject(model, 0, "cpu")
    optimizer = torch.optim.AdamW([p for layer in adapters.values() for p in (layer.A, layer.B)], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    run = CheckpointedRunner(model, "cpu")

    seconds = []
    for _ in range(a.steps):
        start = time.perf_counter()
        i = torch.randint(0, len(data["latents"]), (a.batch,))
        t, noise = torch.sigmoid(torch.randn(a.batch)), torch.randn(a.batch, 64, 48)
        clean = data["latents"][i]
        v = run(clean + t[:, None, None] * (noise - clean), data["encoder_hidden_states"][i], data["pooled_projections"][i], t)
        loss = (v - (noise - clean)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"torch": torch.__version__, "threads": a.threads, "batch": a.batch, "seconds": seconds}))


if __name__ == "__main__":
    main()
