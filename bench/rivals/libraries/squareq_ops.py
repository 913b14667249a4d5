"""Ours, through the operations that libsquareq_torch.so registers (flag --squareq-ops)."""
import pathlib

import torch

from .base import Layer, Library


class W8A16(Library):
    key, title, compute = "squareq_w8a16", "squareq W8A16", "default"
    counted = "everything: scales and rounding are inside the kernels; dX from the INT8 weight, nothing kept"

    def __init__(self, device, options):
        super().__init__(device, options)
        if options.squareq_ops is None:
            raise ImportError("not asked for: --squareq-ops PATH names libsquareq_torch.so")
        torch.ops.load_library(str(pathlib.Path(options.squareq_ops).resolve()))
        self.backend = pathlib.Path(torch.ops.squareq.backend(device.type)).name

    def version(self):
        return f"this tree, {self.backend}"

    def prepare(self, weight):
        qweight, scale = torch.ops.squareq.quantize(weight)
        return Layer(lambda x: torch.ops.squareq.linear(x, qweight, scale, None, self.compute))


class W8A8(W8A16):
    key, title, compute = "squareq_w8a8", "squareq W8A8", "w8a8"
    counted = "quantization of X (of dY with W's scale) per token, int8 product, rescaling; dX from the same INT8 weight"
