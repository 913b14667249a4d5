"""INT8 linear layers with LoRA, and attention's queries and keys, in numpy and torch: an adapter that conforms to the profiles linear and
lora-training, and the example to start a new one from.

  squareq gates --adapter "python gates/adapters/numpy_torch/adapter.py"

Formulas: spec/30-quantization.md, 40-linear.md, 50-lora.md. W [N, K] = qweight * scale, X [M, K], Y [M, N], A^T [r, K], B^T [N, r].
An operation checks everything, says so (`call.checked`, where `explain` ends), and only then computes.
"""
import math
import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from protocol import Refused, serve  # noqa: E402
from tensors import ACTIVATIONS, FLOATS, NAMES, Call, Weight, activation_of, check_names, explain_of, need  # noqa: E402

torch.set_num_threads(1)  # the suite's layers are small, and one thread adds in one order


def values(w):
    """W in fp32, [N, K]: one product per element."""
    return w.codes.float() * w.scale[:, None]


class Lora:
    """A [K, r] and B [r, N] rounded to the activations' dtype; with 16-bit activations H and D are rounded too."""

    def __init__(self, call, weight, x, like):
        """`like` [M, any]: its rows, and its dtype where neither the layer nor the branch has an X."""
        self.c = float(call.request["lora"]["scaling"])
        need(math.isfinite(self.c), "CALL_VALUE", "scaling", f"is {self.c}, must be finite")
        a_t = call.get("lora.a_t", ["F32"], [None, weight.k], "CALL_NULL")
        self.rank = a_t.shape[0]
        need(self.rank > 0, "CALL_SHAPE", "lora.a_t", "has rank 0, must be at least 1")
        b_t = call.get("lora.b_t", ["F32"], [weight.n, self.rank], "CALL_NULL")
        self.own = call.get("lora.x", FLOATS if x is None else [NAMES[x.dtype]], [like.shape[0], weight.k])  # the branch's own input: dropout
        self.x = x if self.own is None else self.own
        self.dtype = (like if self.x is None else self.x).dtype
        self.a, self.b = self.rounded(a_t).T, self.rounded(b_t).T

    def rounded(self, t):
        return t.to(self.dtype).float()

    def h(self):
        return self.rounded(self.x.float() @ self.a)


def quantize(request):
    call = Call(request)
    check_names(request)
    w = call.get("w", [*FLOATS, "F64"], [None, None], "CALL_NULL").float().numpy()
    (n, k), pack = w.shape, max(request["pack_k"], 1)
    need(n > 0 and k > 0, "CALL_SHAPE", "w", f"has shape [{n}, {k}], must be at least [1, 1]")
    q = np.zeros((n, -(-k // pack) * pack), np.int8)
    for name, dtype, shape in (("qweight", "I8", q.shape), ("scale", "F32", [n]), ("zero_point", "F32", [n])):
        call.want(name, [dtype], shape, "CALL_PART")
    with np.errstate(over="ignore", invalid="ignore"):
        quotient = np.abs(w).max(axis=1) / np.float32(127)
        scale = np.maximum(quotient, np.float32(1e-8))
        bad = ~np.isfinite(np.float32(127) * scale)  # so it is where the row holds a NaN or an infinity
    if bad.any():
        row = bad.argmax()
        column = np.where(np.isnan(w[row]), np.inf, np.abs(w[row])).argmax()  # the first that is not finite, else the largest
        raise Refused("DT_WEIGHT_NONFINITE", f"weight [{row}, {column}] is {w[row, column]}: not finite, or 127 times its row's scale is not", "w")
    call.checked("numpy")
    q[:, :k] = np.clip(np.rint(w * (np.float32(1) / scale)[:, None]), -127, 127)
    call.answer(qweight=torch.from_numpy(q), scale=torch.from_numpy(scale), zero_point=torch.zeros(n))
    return {"floored_rows": int((quotient < np.float32(1e-8)).sum())}


def dequantize(request):
    call = Call(request)
    w, first = Weight(call), request["first_row"]
    call.want("out", FLOATS, [None, w.k], "CALL_NULL")
    last = first + call.wanted["out"]["shape"][0]
    need(0 <= first and last <= w.n, "CALL_SHAPE", "out", f"is asked for with rows [{first}, {last}) of {w.n}")
    call.checked("fp32 product")
    call.answer(out=values(w)[first:last])


def linear_forward(request):
    call = Call(request)
    w, activation = Weight(call), activation_of(call)
    x = call.get("x", FLOATS, [None, w.k], "CALL_NULL")
    m = x.shape[0]
    lora = Lora(call, w, x, x) if "lora" in request else None
    call.want("y", [NAMES[x.dtype], "F32"], [m, w.n], "CALL_NULL")
    call.want("preactivation", [call.wanted["y"]["dtype"], "F32"], [m, w.n])
    need(lora or "h" not in call.wanted, "CALL_VALUE", "h", "is asked for without a branch")
    call.want("h", ["F32"], [m, lora and lora.rank])
    call.checked("torch.matmul, W in fp32")
    v, h = x.float() @ values(w).T, None
    if lora:
        h = lora.h()
        v = v + lora.c * (h @ lora.b)
    if w.bias is not None:
        v = v + w.bias
    call.answer(y=ACTIVATIONS[activation](v.double()).float(), preactivation=v, h=h)


def linear_backward(request):
    call = Call(request)
    w, activation = Weight(call), activation_of(call)
    need(isinstance(request["accumulate"], bool), "CALL_VALUE", "accumulate", f"is {request['accumulate']}, must be 0 or 1")
    g = call.get("dy", FLOATS, [None, w.n], "CALL_NULL")
    m, dtype = g.shape[0], NAMES[g.dtype]
    x = call.get("x", FLOATS, [m, w.k])
    p = call.get("preactivation", [dtype, "F32"], [m, w.n], None if activation == "none" else "CALL_NULL")
    lora = Lora(call, w, x, g) if "lora" in request else None
    rank, own, branch_x = (lora.rank, lora.own, lora.x) if lora else (None, None, x)
    need(dtype == "F32" or branch_x is None or branch_x.dtype == g.dtype, "CALL_DTYPE", "dy", f"has dtype {dtype}, must be F32 or as x")
    h = call.get("h", ["F32"], [m, rank])
    need(lora or h is None, "CALL_VALUE", "h", "is given without a branch")
    for name, allowed, shape in (("dx", dtype, [m, w.k]), ("dx_lora", dtype, [m, w.k]), ("da_t", "F32", [rank, w.k]), ("db_t", "F32", [w.n, rank])):
        asked = call.want(name, [allowed], shape)
        need(not asked or lora or name == "dx", "CALL_VALUE", name, "is asked for without a branch")
    need(own is not None or "dx_lora" not in call.wanted, "CALL_VALUE", "dx_lora", "is asked for without lora.x")
    need(branch_x is not None or "da_t" not in call.wanted, "CALL_NULL", "x", "is missing: da_t needs it")
    need(branch_x is not None or h is not None or "db_t" not in call.wanted, "CALL_NULL", "x", "is missing: db_t needs it or h")
    call.checked("torch.matmul, W in fp32")
    g, out = g.float(), {}
    if activation != "none":
        z = p.double().requires_grad_()
        g = g * torch.autograd.grad(ACTIVATIONS[activation](z).sum(), z)[0].float()
    out["dx"] = g @ values(w)
    if lora:
        d = lora.rounded(g @ lora.b.T)
        out["dx_lora"] = lora.c * (d @ lora.a.T)
        if own is None:
            out["dx"] = out["dx"] + out["dx_lora"]
        if "da_t" in call.wanted:
            out["da_t"] = lora.c * (branch_x.float().T @ d).T
        if "db_t" in call.wanted:
            out["db_t"] = lora.c * ((lora.h() if h is None else h).T @ g).T
        if request["accumulate"]:
            out.update({n: call.inputs[n] + out[n] for n in ("da_t", "db_t") if n in call.wanted})
    call.answer(**out)


class Heads:
    """X [M, H d], the norm's weight [d], and the table [P, d] of (cos, sin) pairs or None, all in fp64."""

    def __init__(self, call):
        self.epsilon = float(call.request["epsilon"])
        need(math.isfinite(self.epsilon) and self.epsilon > 0, "CALL_VALUE", "epsilon", f"is {self.epsilon}, must be finite and above 0")
        x = call.get("x", FLOATS, [None, None], "CALL_NULL")
        weight = call.get("weight", FLOATS, [None], "CALL_NULL")
        self.shape, self.dtype, self.d = list(x.shape), NAMES[x.dtype], len(weight)
        need(self.d > 0 and x.shape[1] > 0 and x.shape[1] % self.d == 0, "CALL_SHAPE", "x", f"has {x.shape[1]} columns, must have whole heads of {self.d}")
        rope = call.get("rope", ["F32"], [None, self.d])
        if rope is not None:
            need(self.d % 2 == 0, "CALL_SHAPE", "rope", f"turns pairs, a head has {self.d} elements")
            need(len(rope) > 0 and len(x) % len(rope) == 0, "CALL_SHAPE", "rope", f"has {len(rope)} rows, must divide the {len(x)} of x")
            rope = rope.double().view(-1, 1, self.d // 2, 2).repeat(len(x) // len(rope), 1, 1, 1)  # row m takes row m mod P
        self.x, self.weight, self.rope = x.double(), weight.double(), rope

    def forward(self, x):
        heads = x.view(len(x), x.shape[1] // self.d, self.d)
        n = heads / torch.sqrt(heads.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight
        if self.rope is None:
            return n.reshape(x.shape)
        even, odd = n.unflatten(-1, (-1, 2)).unbind(-1)
        c, s = self.rope.unbind(-1)
        return torch.stack([even * c - odd * s, even * s + odd * c], -1).reshape(x.shape)


def rms_norm_rope_forward(request):
    call = Call(request)
    heads = Heads(call)
    call.want("y", [heads.dtype], heads.shape, "CALL_NULL")
    call.checked("torch, fp64")
    call.answer(y=heads.forward(heads.x).float())


def rms_norm_rope_backward(request):
    call = Call(request)
    heads = Heads(call)
    dy = call.get("dy", [heads.dtype], heads.shape, "CALL_NULL").double()
    call.want("dx", [heads.dtype], heads.shape, "CALL_NULL")
    call.checked("torch.autograd, fp64")
    x = heads.x.requires_grad_()
    call.answer(dx=torch.autograd.grad(heads.forward(x), x, dy)[0].float())


OPERATIONS = {f.__name__: f for f in (quantize, dequantize, linear_forward, linear_backward, rms_norm_rope_forward, rms_norm_rope_backward)}
COMMANDS = {**OPERATIONS, "explain": explain_of(OPERATIONS)}
DESCRIBE = {"name": "numpy_torch", "version": "1.0.0", "abi_version": 1, "device": "cpu", "deterministic": True, "groups": ["linear", "lora"],
            "operations": list(COMMANDS), "formats": ["bp8_v2"], "activation_dtypes": ["f32", "bf16", "f16"], "rounding_classes": ["R1"]}

if __name__ == "__main__":
    serve(DESCRIBE, COMMANDS)
