#!/usr/bin/env python3
"""The rival of the whole-step claim: the same LoRA training step in PyTorch, bf16, everything resident.

The real diffusers class, PEFT adapters of rank 16 on the linears that `lora.targets: default` trains, diffusers' gradient checkpointing, fused AdamW,
gradients clipped to norm 1, scaled-dot-product attention. The model is made on the meta device and filled with random
numbers on the GPU: values do not matter for time. Steps are timed from synchronize to synchronize. Prints one JSON object.

--attention: which kernels scaled-dot-product attention may take.
  default    torch's own choice, which on recent GPUs is cuDNN
  flash      torch's choice without cuDNN: flash, memory-efficient or written out

--adapters: how the low-rank branch computes, each timed in turn.
  autocast   fp32 adapters under torch.autocast(bf16), as diffusers' training scripts run
  fp32       fp32 adapters, no autocast: what PEFT's autocast_adapter_dtype alone gives
  bf16       bf16 adapters and optimizer state: less work than squareq's, shown for comparison only
"""
import argparse
import contextlib
import json
import statistics
import sys
import time

import layout as layouts

VARIANTS = ("autocast", "fp32", "bf16")
ATTENTION = ("default", "flash")
RANK = 16


def fill(model):
    """Random numbers where to_empty left none; norms 1."""
    for name, parameter in model.named_parameters():
        if ".norm_" in name:
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0.0, 0.02)


def make_model(layout, device):
    import torch
    from diffusers import FluxTransformer2DModel

    config = {key: value for key, value in layout.config().items() if not key.startswith("_")}
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config)
    expected = layout.tensors()
    found = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    if found != expected:
        differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        sys.exit(f"diffusers' class has other tensors than the layout: {differing[0]} is {found.get(differing[0])}, expected {expected.get(differing[0])}")
    model = model.to(torch.bfloat16).to_empty(device=device)
    fill(model)
    return model.requires_grad_(False).train()


def add_adapters(model, layout):
    import torch
    from peft import LoraConfig

    targets = layout.targets()
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    names = sorted(name.removesuffix(".lora_A.default.weight") for name, _ in model.named_parameters() if name.endswith(".lora_A.default.weight"))
    if names != targets:
        sys.exit(f"PEFT put adapters on {len(names)} linears, wanted {len(targets)}; first difference: {sorted(set(names) ^ set(targets))[:3]}")
    adapters = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return len(names), adapters


class Step:
    """One training step after the other, on the same few samples that wait on the host."""

    def __init__(self, model, adapters, layout, pixels, variant, device):
        import torch

        self.model, self.adapters, self.device, self.variant = model, adapters, device, variant
        dtype = torch.bfloat16 if variant == "bf16" else torch.float32
        for parameter in adapters:
            parameter.data, parameter.grad = parameter.data.to(dtype), None
        self.optimizer = torch.optim.AdamW(adapters, lr=1e-4, weight_decay=0.0, fused=device.type == "cuda")
        tokens, side = layouts.image_tokens(pixels), pixels // 16
        host = lambda *shape: torch.randn(shape).pin_memory() if device.type == "cuda" else torch.randn(shape)  # noqa: E731
        self.clean, self.text, self.pooled = host(1, tokens, layout.channels), 0.2 * host(1, layout.text_tokens, layout.text_dim), 0.2 * host(1, layout.pooled_dim)
        ids = torch.zeros(side, side, 3)
        ids[..., 1] += torch.arange(side)[:, None]
        ids[..., 2] += torch.arange(side)[None, :]
        self.img_ids, self.txt_ids = ids.reshape(-1, 3).to(device), torch.zeros(layout.text_tokens, 3, device=device)

    def __call__(self):
        import torch

        send = lambda x, dtype: x.to(self.device, non_blocking=True).to(dtype)  # noqa: E731
        clean, text, pooled = send(self.clean, torch.float32), send(self.text, torch.bfloat16), send(self.pooled, torch.bfloat16)
        t, noise = torch.sigmoid(torch.randn(1, device=self.device)), torch.randn_like(clean)
        noisy = (clean + t[:, None, None] * (noise - clean)).to(torch.bfloat16)
        guidance = torch.full([1], 1.0, device=self.device)
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.variant == "autocast" else contextlib.nullcontext()
        with autocast:
            v = self.model(hidden_states=noisy, encoder_hidden_states=text, pooled_projections=pooled, timestep=t, guidance=guidance,
                           img_ids=self.img_ids, txt_ids=self.txt_ids, return_dict=False)[0]
        loss = (v.float() - (noise - clean)).pow(2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.adapters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def attention_kernels(choice):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if choice == "default":
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def measure(step, steps, device):
    import torch

    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, loss = [], None
    synchronize()
    for _ in range(steps):
        begun = time.perf_counter()
        loss = step()
        synchronize()
        seconds.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    reserved = torch.cuda.max_memory_reserved() if device.type == "cuda" else None
    return {"seconds": seconds, "peak_bytes": peak, "reserved_bytes": reserved, "loss": float(loss)}


def link_bytes_per_second(device, size=340_844_544, times=8):
    """Page-locked host memory to the device, one FLUX.1 double block's extent at a time; median."""
    import torch

    host, on_device = torch.empty(size, dtype=torch.uint8).pin_memory(), torch.empty(size, dtype=torch.uint8, device=device)
    rates = []
    for _ in range(times):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        on_device.copy_(host, non_blocking=True)
        end.record()
        end.synchronize()
        rates.append(size / (begin.elapsed_time(end) * 1e-3))
    return statistics.median(rates)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", default="512,1024")
    parser.add_argument("--adapters", default="autocast,fp32")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--attention", choices=ATTENTION, default="default")
    parser.add_argument("--compile", metavar="MODE", help="torch.compile the blocks with this mode (default, max-autotune-no-cudagraphs); off unless given")
    layouts.add_flags(parser)
    a = parser.parse_args()
    variants = a.adapters.split(",")
    try:
        layout = layouts.of_flags(a)
        sides = [int(side) for side in a.pixels.split(",")]
        for side in sides:
            layouts.image_tokens(side)
        if unknown := [v for v in variants if v not in VARIANTS]:
            raise ValueError(f"--adapters {unknown[0]}: expected some of {', '.join(VARIANTS)}")
        if a.steps < 1:
            raise ValueError("--steps must be at least 1")
    except ValueError as error:
        parser.error(str(error))

    import diffusers
    import peft
    import torch

    if a.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no GPU; --device cpu tests the chain")
    device = torch.device(a.device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    link = link_bytes_per_second(device) if a.device == "cuda" else None
    model = make_model(layout, device)
    count, adapters = add_adapters(model, layout)
    model.enable_gradient_checkpointing()
    if a.compile:
        for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
            block.compile(mode=a.compile)
    runs = []
    for variant in sorted(variants, key=VARIANTS.index):  # bf16 last: it throws the masters' low bits away
        for side in sides:
            step = Step(model, adapters, layout, side, variant, device)
            with attention_kernels(a.attention):
                runs.append({"adapters": variant, "pixels": side, **measure(step, a.steps, device)})
            del step
    print(json.dumps({
        "torch": torch.__version__, "diffusers": diffusers.__version__, "peft": peft.__version__, "compile": a.compile, "attention": a.attention,
        "device": torch.cuda.get_device_name() if a.device == "cuda" else "cpu", "adapter_linears": count,
        "adapter_parameters": sum(p.numel() for p in adapters), "link_bytes_per_s": link, "runs": runs,
    }))


if __name__ == "__main__":
    main()
