"""The base of every ratio: a bf16 weight and torch's product (cuBLAS on NVIDIA GPUs)."""
import torch

from .base import Layer, Library


class TorchBf16(Library):
    key, title = "torch_bf16", "torch bf16"
    counted = "F.linear; torch.mm for dX"

    def version(self):
        return torch.__version__

    def prepare(self, weight):
        return Layer(lambda x: torch.nn.functional.linear(x, weight), lambda dy: torch.mm(dy, weight))
