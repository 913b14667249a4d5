#!/usr/bin/env python3
"""torch.ops.squareq as PyTorch 2 sees it.

  opcheck.py LIBRARY      (libsquareq_torch.so, built against the torch of this Python)

Runs torch.library.opcheck on every operation, compares outputs and gradients with float64 autograd on data whose sums are exact
(spec/35-numerics.md, "Exact by construction": equality, no tolerance), compiles and trains the module of README.md, and reads the refusals.
On the CPU, and on a GPU where one is usable: there also inside a CUDA graph. Then every fault of MUTANTS is planted in turn, and the check that
it names must fail.
"""
import logging
import pathlib
import re
import sys
import warnings

import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = pathlib.Path(__file__).resolve().parent
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = {"gelu_tanh": lambda v: torch.nn.functional.gelu(v, approximate="tanh"), "gelu_erf": torch.nn.functional.gelu,
               "silu": torch.nn.functional.silu}


class Failed(Exception):
    pass


def require(good, what):
    if not good:
        raise Failed(what)


class Layer:
    """A weight, an adapter and activations of small integers; scales are powers of two, so that every sum is exact in fp32 and every 16-bit
    operand is exact."""

    def __init__(self, device, dtype, bias=True, n=7, k=12, r=3):
        integers = lambda size, limit, of: torch.randint(-limit, limit + 1, size).to(device, of)
        self.qweight = integers((n, k), 127, torch.int8)
        self.scale = torch.tensor([2.0 ** torch.randint(-6, -1, ()).item() for _ in range(n)], device=device)
        self.bias = integers((n,), 5, torch.float32) if bias else None
        self.lora_a = integers((r, k), 1, torch.float32)
        self.lora_b = integers((n, r), 1, torch.float32)
        self.scaling = 0.5
        self.x = integers((2, 5, k), 2, dtype)
        self.grad = integers((2, 5, n), 2, dtype)

    def weight(self):
        return self.qweight.double() * self.scale.double()[:, None]

    def frozen(self):
        return self.qweight, self.scale, self.bias

    def adapter(self):
        return self.lora_a, self.lora_b, self.scaling


def ops():
    return torch.ops.squareq


def calls(device, dtype):
    """(operation, arguments) for every operation that returns tensors."""
    layer = Layer(device, dtype)
    plain = Layer(device, dtype, bias=False)
    x, leaf = layer.x, layer.x.clone().requires_grad_()
    trained = [t.clone().requires_grad_() for t in (layer.lora_a, layer.lora_b)]
    y, preactivation = ops().linear_forward(x, *layer.frozen(), "default", "silu")
    _, h = ops().linear_lora_forward(x, *layer.frozen(), *layer.adapter())
    backward = (layer.grad, x, h, layer.qweight, layer.scale, *layer.adapter())
    apart = torch.empty(2, 5, 24, dtype=dtype, device=device)[..., ::2].copy_(x)
    yield "quantize", (torch.randn(7, 12, device=device).to(dtype),)
    yield "quantize", (torch.randn(12, 7, device=device).to(dtype).t(),)
    for to in FLOATS:
        yield "dequantize", (layer.qweight, layer.scale, to)
    yield "quantize_activation", (x,)
    yield "quantize_activation", (apart,)
    for activation in ("none", *ACTIVATIONS):
        yield "linear", (leaf, *layer.frozen(), "default", activation)
    yield "linear", (leaf, *plain.frozen(), "w8a8")
    yield "linear", (apart.detach().requires_grad_(), *layer.frozen())
    yield "linear", (x[0, 0].clone().requires_grad_(), *layer.frozen())
    yield "linear_forward", (x, *layer.frozen(), "default", "gelu_erf")
    yield "linear_backward", (layer.grad, None, layer.qweight, layer.scale)
    yield "linear_backward", (layer.grad, preactivation, layer.qweight, layer.scale, "default", "silu")
    yield "linear_lora", (leaf, *layer.frozen(), *trained, 0.5)
    yield "linear_lora", (leaf, *plain.frozen(), *trained, 0.5)
    yield "linear_lora", (x, *layer.frozen(), layer.lora_a, trained[1], 0.5)
    yield "linear_lora_forward", (x, *layer.frozen(), *layer.adapter())
    yield "linear_lora_backward", backward
    yield "linear_lora_backward", (*backward, "default", [False, True, False])


def check_opcheck(device):
    count, names = 0, set()
    for dtype in FLOATS:
        for name, arguments in calls(device, dtype):
            results = opcheck(getattr(ops(), name).default, arguments, raise_exception=False)
            for test, result in results.items():
                require(result == "SUCCESS", f"{name}, {dtype}, {test}: {str(result)[:400]}")
            require(len(results) == 4, f"{name}: opcheck ran {sorted(results)}")
            count += 1
            names.add(name)
    require(len(names) == 9, f"checked {sorted(names)}")
    return f"{count} calls of {len(names)} operations"


def exact(layer, leaves):
    """y of `leaves` (x, lora_a, lora_b: float64), differentiable by libtorch's autograd."""
    x, a, b = leaves
    v = x @ layer.weight().T + layer.scaling * (x @ a.T) @ b.T
    return v if layer.bias is None else v + layer.bias.double()


def check_gradients(device):
    count = 0
    for dtype in FLOATS:
        for bias in (True, False):
            layer = Layer(device, dtype, bias)
            leaves = [t.clone().requires_grad_() for t in (layer.x, layer.lora_a, layer.lora_b)]
            doubles = [t.detach().double().requires_grad_() for t in leaves]
            want_y = exact(layer, doubles)
            want = torch.autograd.grad(want_y, doubles, layer.grad.double())
            y = ops().linear_lora(leaves[0], *layer.frozen(), *leaves[1:], layer.scaling)
            for name, got, right in zip(("y", "dx", "da", "db"), (y, *torch.autograd.grad(y, leaves, layer.grad)), (want_y, *want)):
                require(bool(right.abs().max() > 0), f"{name} is trivial")
                require(torch.equal(got, right.to(got.dtype)), f"linear_lora, {dtype}: {name} is not exact: {(got - right).abs().max().item()} off")
            with torch.no_grad():
                same = ops().linear_lora(leaves[0], *layer.frozen(), *leaves[1:], layer.scaling)
            require(torch.equal(same, y), f"linear_lora, {dtype}: y without gradients differs")
            y = ops().linear(leaves[0], *layer.frozen())
            require(y.requires_grad, "linear has no gradient")
            zero = [doubles[0], torch.zeros_like(doubles[1]), doubles[2]]
            want_y = exact(layer, zero)
            (dx,) = torch.autograd.grad(y, leaves[0], layer.grad)
            (want_dx,) = torch.autograd.grad(want_y, doubles[0], layer.grad.double())
            require(torch.equal(y, want_y.to(dtype)) and torch.equal(dx, want_dx.to(dtype)), f"linear, {dtype}: y or dx is not exact")
            count += 7
    return f"{count} tensors equal float64's"


def check_activations(device):
    """Not exact: 8 u |v| of the activation and 64 u |dY| of its derivative are far above what exact sums leave (spec/35-numerics.md)."""
    layer = Layer(device, torch.float32)
    layer.scale = layer.scale / 64
    u = 2.0**-24
    for name, function in ACTIVATIONS.items():
        x = layer.x.clone().requires_grad_()
        y = ops().linear(x, *layer.frozen(), "default", name)
        (dx,) = torch.autograd.grad(y, x, layer.grad)
        double = layer.x.double().requires_grad_()
        v = double @ layer.weight().T + layer.bias.double()
        want = function(v)
        (want_dx,) = torch.autograd.grad(want, double, layer.grad.double(), retain_graph=True)
        (g,) = torch.autograd.grad(want, v, layer.grad.double())
        y_bound = 8 * u * v.abs() + u * want.abs() + 1e-40
        e_g = 64 * u * layer.grad.double().abs() + u * g.abs()
        n = layer.qweight.size(0)
        dx_bound = (e_g + (n + 3) * u * (g.abs() + e_g)) @ layer.weight().abs() + u * want_dx.abs() + 1e-40
        require(bool(((y.double() - want).abs() <= y_bound).all()), f"{name}: y is beyond its bound")
        require(bool(((dx.double() - want_dx).abs() <= dx_bound).all()), f"{name}: dx is beyond its bound")
    return f"{len(ACTIVATIONS)} activations within their bounds"


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function.namespace == "squareq":
            self.seen.append(function._opname)
        return function(*arguments, **(named or {}))


def check_dispatch(device):
    """Forward and backward are operations that a mode sees, not kernels called behind its back."""
    layer = Layer(device, torch.float32)
    x = layer.x.clone().requires_grad_()
    for call, wanted in (
        (lambda: ops().linear(x, *layer.frozen()), ["linear", "linear_backward"]),
        (lambda: ops().linear(x, *layer.frozen(), "default", "silu"), ["linear_forward", "linear_backward"]),
        (lambda: ops().linear_lora(x, *layer.frozen(), *layer.adapter()), ["linear_lora_forward", "linear_lora_backward"]),
    ):
        with Recorder() as recorder:
            call().sum().backward()
        require(recorder.seen == wanted, f"dispatched {recorder.seen}, expected {wanted}")
    with Recorder() as recorder, torch.no_grad():
        ops().linear_lora(x, *layer.frozen(), *layer.adapter())
    require(recorder.seen == ["linear_lora"], f"without gradients: {recorder.seen}")
    return "backward passes are operations"


def readme_module():
    code = re.search(r"^```python\n(.*?)^```$", (ROOT.parent / "README.md").read_text(encoding="utf-8"), re.M | re.S).group(1)
    names = {}
    exec(re.sub(r'torch\.ops\.load_library\(.*\)', "", code), names)
    return names["LoraLinear"]


def check_training(device):
    """The module of README.md learns a low-rank change of its own weight; compiled and not, step by step to the bit."""
    torch.manual_seed(3)
    linear = torch.nn.Linear(24, 16)
    change = torch.randn(16, 2) @ torch.randn(2, 24) / 24
    x = torch.randn(4, 32, 24, device=device)
    target = x @ (linear.weight.detach() + change).to(device).T + linear.bias.detach().to(device)
    runs = []
    for compiled in (False, True):
        torch.manual_seed(4)
        module = readme_module()(linear, rank=4).to(device)
        if compiled:
            torch._dynamo.reset()
        forward = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True) if compiled else module
        optimizer = torch.optim.Adam(module.parameters(), 2e-2)
        losses = []
        for step in range(60):
            rows = slice(0, 4 if step % 2 else 3)  # another shape every other step
            loss = (forward(x[rows]) - target[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        runs.append((losses, [p.detach().clone() for p in module.parameters()]))
        require(losses[-1] < 0.05 * losses[0], f"loss went from {losses[0]:.4f} to {losses[-1]:.4f}")
    require(runs[0][0] == runs[1][0], "losses differ between eager and compiled")
    require(all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1])), "adapters differ between eager and compiled")
    return f"loss {runs[0][0][0]:.3f} -> {runs[0][0][-1]:.4f}, the same compiled"


def check_refusals(device):
    layer = Layer(device, torch.float32)
    compiled = torch.compile(lambda x: ops().linear(x, *layer.frozen()), backend="aot_eager", fullgraph=True)
    other = "meta" if device == "cpu" else "cpu"
    for call, words in (
        (lambda: ops().linear(layer.x[..., :9], *layer.frozen()), ("CALL_SHAPE", "[2, 5, 9]", "[7, 12]")),
        (lambda: compiled(layer.x[..., :9]), ("CALL_SHAPE", "9", "12")),
        (lambda: ops().linear(layer.x.double(), *layer.frozen()), ("CALL_DTYPE", "f64", "f32")),
        (lambda: ops().linear(layer.x, layer.qweight, layer.scale[:3], None), ("CALL_SHAPE", "scale", "3", "7")),
        (lambda: ops().linear(layer.x, layer.qweight.to(other), layer.scale, None), ("CALL_DEVICE",)),
        (lambda: ops().linear(layer.x, layer.qweight.t().contiguous().t(), layer.scale, None), ("CALL_SHAPE", "qweight", "stride")),
        (lambda: ops().linear(layer.x, layer.qweight, layer.scale, torch.nn.Parameter(layer.bias)), ("CALL_VALUE", "bias", "frozen")),
        (lambda: ops().quantize(torch.full((3, 4), float("nan"), device=device)), ("DT_WEIGHT_NONFINITE",)),
        (lambda: ops().set_backend("cpu", "fastest"), ("CFG_BACKEND", "libsquareq_fastest.so")),
        (lambda: ops().backend("tpu"), ("CFG_VALUE", "tpu")),
    ):
        try:
            call()
        except Exception as e:  # torch.compile wraps a RuntimeError in its own
            require(isinstance(e, RuntimeError), f"{type(e).__name__}: {e}")
            require(all(word in str(e) for word in words), f"expected {words} in: {e}")
            continue
        raise Failed(f"accepted what should say {words}")
    return "10 refusals"


def check_graph(device):
    """A forward and backward pass captured once gives, for new data, the bits of an eager one; capture fails where anything waits."""
    layer = Layer(device, torch.bfloat16, n=256, k=512, r=16)
    leaves = [t.clone().requires_grad_() for t in (layer.x, layer.lora_a, layer.lora_b)]

    def step():
        y = ops().linear_lora(leaves[0], *layer.frozen(), *leaves[1:], layer.scaling)
        return (y, *torch.autograd.grad(y, leaves, layer.grad))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves[0].copy_(torch.randn_like(leaves[0]))
    graph.replay()
    for name, got, want in zip(("y", "dx", "da", "db"), captured, step()):
        require(bool(want.abs().max() > 0) and torch.equal(got, want), f"{name} of the graph differs from the eager one")
    return "captured and replayed"


CHECKS = {"opcheck": check_opcheck, "gradients": check_gradients, "activations": check_activations, "dispatch": check_dispatch,
          "training": check_training, "refusals": check_refusals}




def weights(q, s):
    return q.float() * s[:, None]


def faulty_lora_backward(grad, x, h, q, s, a, b, scaling, compute="default", mask=(True, True, True)):
    rows, inputs = grad.float().flatten(0, -2), x.float().flatten(0, -2)
    results = ((grad.float() @ (weights(q, s) + scaling * b @ a)).to(grad.dtype), scaling * (rows @ b).T @ inputs, rows.T @ h.flatten(0, -2))
    return tuple(t if wanted else None for t, wanted in zip(results, mask))


# (fault, operation, dispatch key, what is put in its place, the check that must notice)
MUTANTS = (
    ("y of linear is FP32 on the meta device", "linear", "Meta", lambda x, q, s, b, c="default", a="none": x.new_empty((*x.shape[:-1], q.size(0)), dtype=torch.float32),
     "opcheck"),
    ("h is x's dtype on the meta device", "linear_lora_forward", "Meta",
     lambda x, q, s, b, la, lb, f, c="default": (x.new_empty((*x.shape[:-1], q.size(0))), x.new_empty((*x.shape[:-1], la.size(0)))), "opcheck"),
    ("linear has no gradient", "linear", "Autograd", torch.library.fallthrough_kernel, "gradients"),
    ("dx without the scale", "linear_backward", "CPU", lambda g, p, q, s, c="default", a="none": (g.float() @ q.float()).to(g.dtype), "gradients"),
    ("dx ignores the activation", "linear_backward", "CPU", lambda g, p, q, s, c="default", a="none": (g.float() @ weights(q, s)).to(g.dtype), "activations"),
    ("db without scaling", "linear_lora_backward", "CPU", faulty_lora_backward, "gradients"),
    ("no adapter where nothing is differentiated", "linear_lora", "CPU", lambda x, q, s, b, la, lb, f, c="default": ops().linear(x, q, s, b), "gradients"),
    ("no adapter where something is", "linear_lora_forward", "CPU",
     lambda x, q, s, b, la, lb, f, c="default": (ops().linear(x, q, s, b), x.float() @ la.T), "gradients"),
    ("a gradient made behind the dispatcher's back", "linear_lora", "Autograd",
     lambda x, q, s, b, la, lb, f, c="default": x @ weights(q, s).T + f * (x @ la.T) @ lb.T + (0 if b is None else b), "dispatch"),
    ("an adapter that learns nothing", "linear_lora_backward", "CPU",
     lambda g, x, h, q, s, la, lb, f, c="default", m=None: (g @ weights(q, s), torch.zeros_like(la), torch.zeros_like(lb)), "training"),
    ("any K is taken", "linear", "CPU", lambda x, q, s, b, c="default", a="none": x @ weights(q, s).T[: x.size(-1)].to(x.dtype), "refusals"),
)


def plant(operation, key, fault, check):
    """What the check says of the fault; None where it does not notice."""
    library = torch.library.Library("squareq", "IMPL")
    library.impl(operation, fault, key, allow_override=True)
    torch._dynamo.reset()
    try:
        CHECKS[check]("cpu")
    except Failed as e:
        return str(e)
    finally:
        library._destroy()
    return None


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.ops.load_library(pathlib.Path(sys.argv[1]).resolve())
    # What torch has to say about refusals and faults.
    warnings.filterwarnings("ignore", message=".*[Oo]verrid|Error detected in")
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            print("cuda: not run, there is no GPU")
            continue
        print(f"{device}: {ops().backend(device)}")
        for name, check in {**CHECKS, **({"graph": check_graph} if device == "cuda" else {})}.items():
            torch.manual_seed(1)
            print(f"{device} {name}: {check(device)}", flush=True)
    survivors = []
    for fault, *where, check in MUTANTS:
        torch.manual_seed(1)
        verdict = plant(*where, check)
        print(f"mutant, {fault}: {'SURVIVES ' + check if verdict is None else check + ' says ' + verdict[:150]}", flush=True)
        survivors += [fault] if verdict is None else []
    CHECKS["gradients"]("cpu")  # nothing of them is left
    if survivors:
        sys.exit(f"opcheck.py: mutants that survive: {survivors}")
    print(f"{len(MUTANTS)} mutants noticed")


if __name__ == "__main__":
    main()
