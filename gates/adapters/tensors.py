"""Tensors of an adapter that computes with torch: the files of one request, and checks of what they hold.

The checks answer wrong arguments as spec/40-linear.md demands, so that an implementation behind an adapter meets only right ones.
"""
import pathlib

import torch
from protocol import Refused
from safetensors.torch import load_file, save_file

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "I8": torch.int8}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ("F32", "BF16", "F16")
ACTIVATIONS = {
    "none": lambda v: v,
    "gelu_tanh": lambda v: torch.nn.functional.gelu(v, approximate="tanh"),
    "gelu_erf": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


class Explained(Exception):
    """Ends, after its checks, a call that `explain` asks about; args[0] is the explanation."""


def explain_of(operations):
    """The command `explain`: an operation by name, run up to its `Call.checked`."""

    def explain(request):
        operation = request["operation"]
        need(operation in operations, "CALL_UNSUPPORTED", "operation", f"is {operation}, must be one of {list(operations)}")
        try:
            operations[operation](request)
        except Explained as explained:
            return explained.args[0]

    return explain


def need(good, code, name, text):
    if not good:
        raise Refused(code, f"{name} {text}", name)


def same(shape, expected):
    return len(shape) == len(expected) and all(e is None or s == e for s, e in zip(shape, expected))


class Call:
    """One request: its inputs by name, and the outputs that it asks for. `None` in a shape is any size."""

    def __init__(self, request):
        self.request, self.wanted, self.known = request, request.get("outputs", {}), set()
        self.folder = pathlib.Path(request["folder"]) if "folder" in request else None  # no tensors, no folder
        self.inputs = load_file(self.folder / "inputs.safetensors") if self.folder else {}

    def get(self, name, dtypes, shape, missing=None):
        """A checked input; an absent one is None, or refused with the code `missing`."""
        t = self.inputs.get(name)
        need(t is not None or not missing, missing, name, "is missing")
        if t is not None:
            need(t.dtype in [DTYPES[d] for d in dtypes], "CALL_DTYPE", name, f"has dtype {t.dtype}, must be one of {dtypes}")
            need(same(t.shape, shape), "CALL_SHAPE", name, f"has shape {list(t.shape)}, must be {shape}")
        return t

    def want(self, name, dtypes, shape, missing=None):
        """Checks an output that is asked for, and says whether it is; one that is not is refused with the code `missing`."""
        asked = self.wanted.get(name)
        self.known.add(name)
        need(asked or not missing, missing, name, "is not asked for")
        if asked:
            need(asked["dtype"] in dtypes, "CALL_DTYPE", name, f"is asked for as {asked['dtype']}, must be one of {dtypes}")
            need(same(asked["shape"], shape), "CALL_SHAPE", name, f"is asked for with shape {asked['shape']}, must be {shape}")
        return bool(asked)

    def checked(self, kernel):
        """Ends the checks: an output that no `want` knew is refused, and where `explain` asks, nothing is computed."""
        for name in self.wanted:
            need(name in self.known, "CALL_VALUE", name, f"is asked for, must be one of {sorted(self.known)}")
        if self.request["command"] == "explain":
            raise Explained({"op": self.request["operation"], "kernel": kernel, "rejected": []})

    def answer(self, **outputs):
        # Copies: two outputs may be one tensor (y and its pre-activation without an activation), which save_file refuses.
        save_file({n: outputs[n].to(DTYPES[a["dtype"]]).clone(memory_format=torch.contiguous_format) for n, a in self.wanted.items()}, self.folder / "outputs.safetensors")


def check_names(fields):
    """What a weight and `quantize` both say: the layer's name, and a format."""
    for key in ("name", "format"):
        need(fields[key] is not None, "CALL_NULL", key, "is null")
    need(fields["format"] == "bp8_v2", "CALL_UNSUPPORTED", "format", f"is {fields['format']}, must be bp8_v2")


class Weight:
    """The parts of a bp8_v2 layer: codes I8 [N, K] without their padding, scale F32 [N], bias F32 [N] or None."""

    def __init__(self, call):
        w = call.request.get("weight")
        need(w, "CALL_NULL", "weight", "is missing")
        check_names(w)
        for part in w["parts"]:
            need(part in ("qweight", "scale", "zero_point", "bias") and w["parts"].count(part) == 1, "CALL_VALUE", part, "is unknown or given twice")
        self.n, self.k = w["out_features"], w["in_features"]
        need(self.n > 0 and self.k > 0, "CALL_SHAPE", "weight", f"has shape [{self.n}, {self.k}], must be at least [1, 1]")
        q = call.get("weight.qweight", ["I8"], [self.n, None], "CALL_PART")
        need(q.shape[1] >= self.k, "CALL_SHAPE", "qweight", f"has {q.shape[1]} columns for {self.k} in_features")
        self.codes = q[:, : self.k]
        self.scale = call.get("weight.scale", ["F32"], [self.n], "CALL_PART")
        zero = call.get("weight.zero_point", ["F32"], [self.n])
        if zero is not None and zero.any():
            raise Refused("DT_ZP_NONZERO", f"zero_point is {zero[zero != 0][0].item()}, must be 0", "zero_point")
        self.bias = call.get("weight.bias", ["F32"], [self.n])


def activation_of(call):
    """The activation asked for. Int8 activations are refused: these adapters offer class R1 only."""
    activation, compute = call.request["activation"], call.request["compute"]
    need(activation in ACTIVATIONS, "CALL_VALUE", "activation", f"is {activation}, must be one of {list(ACTIVATIONS)}")
    need(compute in ("default", "exact_w", "w8a8"), "CALL_VALUE", "compute", f"is {compute}, must be default, exact_w or w8a8")
    need(compute != "w8a8" and "xq" not in call.request, "CALL_UNSUPPORTED", "compute", "with int8 activations is not offered")
    return activation
