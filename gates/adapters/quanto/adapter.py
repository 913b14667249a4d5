"""optimum-quanto's INT8 linear layer (qint8 weights, one scale per row), as the library computes it.

  pip install optimum-quanto==0.2.7
  squareq gates --adapter "python gates/adapters/quanto/adapter.py" --profile linear

What is the library's: scales, codes, dequantized values, Y = X W^T + b and dX through autograd, each in the dtype in which a model of that
dtype would run them (its scale and bias have the model's dtype). What is the adapter's: argument checks, the padding, and torch's
activation after the layer, where a model would apply it. No number is corrected on its way.
"""
import pathlib
import sys

import torch
from optimum.quanto import AbsmaxOptimizer, WeightQBytesTensor, qint8, quantize_weight

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from protocol import serve  # noqa: E402
from tensors import ACTIVATIONS, DTYPES, FLOATS, NAMES, Call, Weight, activation_of, check_names, explain_of, need  # noqa: E402

torch.set_num_threads(1)
MODELS = ("F32", "BF16")  # the dtypes of a model that is described, and judged


def quanto_weight(w, dtype):
    """The library's tensor with the codes and scales given, in a model of `dtype`."""
    codes = w.codes.clone(memory_format=torch.contiguous_format)  # in memory that torch aligned: its int8 kernels expect that
    return WeightQBytesTensor.create(qint8, 0, codes.size(), codes.stride(), codes, w.scale.to(dtype)[:, None])


def quantize(request):
    call = Call(request)
    check_names(request)
    w = call.get("w", [*FLOATS, "F64"], [None, None], "CALL_NULL")
    n, k = w.shape
    need(n > 0 and k > 0, "CALL_SHAPE", "w", f"has shape [{n}, {k}], must be at least [1, 1]")
    pack = max(request["pack_k"], 1)
    padded = -(-k // pack) * pack
    for name, dtype, shape in (("qweight", "I8", [n, padded]), ("scale", "F32", [n]), ("zero_point", "F32", [n])):
        call.want(name, [dtype], shape, "CALL_PART")
    call.checked("quantize_weight")
    q = quantize_weight(w, qtype=qint8, axis=0, scale=AbsmaxOptimizer()(w, qint8, axis=0))
    codes = torch.zeros(n, padded, dtype=torch.int8)
    codes[:, :k] = q._data
    call.answer(qweight=codes, scale=q._scale.reshape(n), zero_point=torch.zeros(n))
    return {"floored_rows": 0}  # the library has no floor


def dequantize(request):
    call = Call(request)
    w, first = Weight(call), request["first_row"]
    call.want("out", FLOATS, [None, w.k], "CALL_NULL")
    last = first + call.wanted["out"]["shape"][0]
    need(0 <= first and last <= w.n, "CALL_SHAPE", "out", f"is asked for with rows [{first}, {last}) of {w.n}")
    call.checked("WeightQBytesTensor.dequantize")
    call.answer(out=quanto_weight(w, DTYPES[call.wanted["out"]["dtype"]]).dequantize()[first:last])


def plain(call):
    """The activation of a call without a low-rank branch, which the library does not have."""
    need("lora" not in call.request, "CALL_UNSUPPORTED", "lora", "is not offered")
    return activation_of(call)


def linear(x, w):
    return torch.nn.functional.linear(x.clone(), quanto_weight(w, x.dtype), None if w.bias is None else w.bias.to(x.dtype))


def linear_forward(request):
    call = Call(request)
    activation, w = plain(call), Weight(call)
    x = call.get("x", MODELS, [None, w.k], "CALL_NULL")
    call.want("y", [NAMES[x.dtype], "F32"], [x.shape[0], w.n], "CALL_NULL")
    call.want("preactivation", ["F32", call.wanted["y"]["dtype"]], [x.shape[0], w.n])
    call.checked("torch.nn.functional.linear")
    v = linear(x, w)
    call.answer(y=ACTIVATIONS[activation](v), preactivation=v)


def linear_backward(request):
    call = Call(request)
    activation, w = plain(call), Weight(call)
    dy = call.get("dy", MODELS, [None, w.n], "CALL_NULL")
    dtype = NAMES[dy.dtype]
    p = call.get("preactivation", ["F32", dtype], [dy.shape[0], w.n], None if activation == "none" else "CALL_NULL")
    call.want("dx", [dtype], [dy.shape[0], w.k])
    call.checked("autograd of torch.nn.functional.linear")
    if activation != "none":
        z = p.to(dy.dtype).requires_grad_()
        dy = torch.autograd.grad(ACTIVATIONS[activation](z), z, dy)[0]
    x = torch.zeros(dy.shape[0], w.k, dtype=dy.dtype, requires_grad=True)  # dX does not depend on X
    call.answer(dx=torch.autograd.grad(linear(x, w), x, dy)[0])


OPERATIONS = {f.__name__: f for f in (quantize, dequantize, linear_forward, linear_backward)}
COMMANDS = {**OPERATIONS, "explain": explain_of(OPERATIONS)}
DESCRIBE = {"name": "optimum-quanto", "version": "0.2.7", "abi_version": 1, "device": "cpu", "deterministic": True, "groups": ["linear"],
            "operations": list(COMMANDS), "formats": ["bp8_v2"], "activation_dtypes": ["f32", "bf16"], "rounding_classes": ["R1", "R2"]}

if __name__ == "__main__":
    serve(DESCRIBE, COMMANDS)
