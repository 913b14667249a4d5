#!/usr/bin/env python3
"""A transformer checkpoint in FLUX.1-dev's layout with generated bf16 weights, and caches of training data for it.

  bench/whole_step/generate.py --out DIR [--pixels 512,1024]

DIR/transformer gets config.json, the shards and their index (23.8 GB for the defaults); DIR/cache_PIXELS.safetensors gets latents,
encoder_hidden_states and pooled_projections. Weights and biases are N(0, 0.02^2), weights of norms 1 + N(0, 0.02^2): one random chunk, begun at another
place for every tensor, which is enough where only time and memory are measured. Needs numpy. Prints one JSON object.
"""
import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import shutil
import sys
import time

import numpy as np

import layout as layouts

CHUNK = 1 << 24  # elements
STEP = 1_000_003 * 2  # bytes from one tensor's start in the chunk to the next one's


def bf16(values):
    """float32 -> bf16 bits, halves away from zero; the values are finite and small."""
    return ((values.astype(np.float32).view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def write_all(fd, data, at):
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done


class Shard:
    """One safetensors file: places first, bytes later."""

    def __init__(self, path, tensors):
        self.path, header, at = path, {"__metadata__": {"format": "pt"}}, 0
        self.places = []
        for name, shape in tensors:
            size = 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
            self.places.append((name, at, size))
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.head = len(text).to_bytes(8, "little") + text
        self.bytes = len(self.head) + at

    def write(self, source):
        """`source(name, size)` yields memoryviews that make up the tensor."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(fd, memoryview(self.head), 0)
            for name, at, size in self.places:
                at += len(self.head)
                for piece in source(name, size):
                    write_all(fd, piece, at)
                    at += len(piece)
        finally:
            os.close(fd)


def write_checkpoint(folder, layout, shards, threads, seed):
    tensors = list(layout.tensors().items())
    total, parts, at = layout.bytes(), [[] for _ in range(shards)], 0
    for name, shape in tensors:
        parts[min(at * shards // total, shards - 1)].append((name, shape))
        at += 2 * math.prod(shape)
    parts = [part for part in parts if part]
    normal = 0.02 * np.random.default_rng(seed).standard_normal(min(CHUNK, max(1 << 16, total // 8)), dtype=np.float32)
    chunk, ones = memoryview(bf16(normal).tobytes()), memoryview(bf16(1 + normal[: 1 << 16]).tobytes())
    start = {name: i * STEP for i, (name, _) in enumerate(tensors)}

    def source(name, size):
        repeated = ones if name.rsplit(".", 2)[-2].startswith("norm_") else chunk
        at = start[name] % len(repeated)
        while size:
            piece = repeated[at : at + min(size, len(repeated) - at)]
            yield piece
            size, at = size - len(piece), 0

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(layout.config(), indent=2) + "\n")
    files = [Shard(folder / f"diffusion_pytorch_model-{i + 1:05}-of-{len(parts):05}.safetensors", part) for i, part in enumerate(parts)]
    index = {"metadata": {"total_size": total}, "weight_map": {name: file.path.name for file in files for name, _, _ in file.places}}
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda file: file.write(source), files))
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return sum(file.bytes for file in files)


def write_cache(path, layout, pixels, rows, seed):
    """What a VAE and the text encoders would have left: N(0, 1) latents, N(0, 0.2^2) embeddings."""
    random = np.random.default_rng(seed + pixels)
    data = {
        "latents": ([rows, layouts.image_tokens(pixels), layout.channels], 1.0),
        "encoder_hidden_states": ([rows, layout.text_tokens, layout.text_dim], 0.2),
        "pooled_projections": ([rows, layout.pooled_dim], 0.2),
    }
    values = {name: memoryview(bf16(np.float32(size) * random.standard_normal(shape, dtype=np.float32)).tobytes()) for name, (shape, size) in data.items()}
    Shard(path, [(name, shape) for name, (shape, _) in data.items()]).write(lambda name, size: [values[name]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--pixels", default="512,1024", help="sides of the pictures, one cache each")
    parser.add_argument("--rows", type=int, default=4, help="samples of a cache")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--threads", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, default=0)
    layouts.add_flags(parser)
    a = parser.parse_args()
    try:
        layout = layouts.of_flags(a)
        pixels = [int(side) for side in a.pixels.split(",")]
        for side in pixels:
            layouts.image_tokens(side)
        if min(a.rows, a.shards, a.threads) < 1:
            raise ValueError("--rows, --shards and --threads must be at least 1")
    except ValueError as error:
        parser.error(str(error))
    transformer = a.out / "transformer"
    if transformer.exists():
        sys.exit(f"{transformer} exists; remove it or name another folder")
    a.out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(a.out).free
    if free < layout.bytes() + (64 << 20):
        sys.exit(f"{a.out} has {free} bytes free, the checkpoint needs {layout.bytes()}")
    begun = time.perf_counter()
    written = write_checkpoint(transformer, layout, a.shards, a.threads, a.seed)
    seconds = time.perf_counter() - begun
    for side in pixels:
        write_cache(a.out / f"cache_{side}.safetensors", layout, side, a.rows, a.seed)
    print(json.dumps({"checkpoint": str(transformer), "bytes": written, "parameters": layout.bytes() // 2, "seconds": seconds,
                      "caches": [str(a.out / f"cache_{side}.safetensors") for side in pixels]}))


if __name__ == "__main__":
    main()
