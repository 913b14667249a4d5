"""What an adapter is: how one library takes a bf16 weight and multiplies with it, forward and, where it can, backward to X."""
import dataclasses
import importlib.metadata
from collections.abc import Callable


@dataclasses.dataclass
class Layer:
    """One layer as its library holds it.

    forward: X [M, K] bf16 -> Y [M, N] bf16. backward: dY [M, N] bf16 -> dX [M, K] bf16; None: by autograd through `forward`.
    """
    forward: Callable
    backward: Callable | None = None


class Library:
    """An adapter. Making one imports the library and raises, in the library's words, where that cannot be used here."""
    key = ""           # short and stable: flags and JSON
    title = ""         # for people
    package = None     # the distribution that `version` asks for
    counted = ""       # what the time of a call contains
    compiled = False   # compiles kernels for every new shape: planned apart

    def __init__(self, device, options):
        """`device`: torch.device that everything lives on; `options`: the program's flags."""
        self.device = device

    def version(self):
        return importlib.metadata.version(self.package)

    def prepare(self, weight):
        """`weight` [N, K] bf16 on the device -> Layer. Not timed: weights are frozen and quantized once."""
        raise NotImplementedError


def frozen_linear(weight):
    """torch.nn.Linear without a bias around `weight`, for libraries that convert modules."""
    import torch
    with torch.device("meta"):
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return linear
