"""What one writes with torch alone: dequantize and multiply, and the integer product `_int_mm` with its scales in eager operations."""
import torch

from .base import Layer, Library


def quantize_rows(x):
    """x [R, C] -> codes [R, C] int8 in [-127, 127] and scale [R, 1] fp32, by the largest magnitude of each row."""
    x = x.float()
    scale = x.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127
    return torch.round(x / scale).to(torch.int8), scale


class Dequantize(Library):
    key, title = "dequantize", "dequantize + mm (torch eager)"
    counted = "dequantizing W to bf16 in every call, both directions"

    def version(self):
        return torch.__version__

    def prepare(self, weight):
        codes, scale = quantize_rows(weight)
        scale = scale.to(weight.dtype)
        return Layer(lambda x: torch.nn.functional.linear(x, codes * scale), lambda dy: torch.mm(dy, codes * scale))


class IntMm(Library):
    """W8A8. dX: the scale of W is on the summed axis, so it goes into dY, which is then quantized; W is read along its rows as it lies."""
    key, title = "int_mm", "torch._int_mm"
    counted = "quantization of X (of dY with W's scale) per token, rescaling of the int32 result, all eager"

    def version(self):
        return torch.__version__

    def columns(self, codes):
        return codes

    def prepare(self, weight):
        codes, scale = quantize_rows(weight)
        row = scale.t().contiguous()

        def forward(x):
            q, s = quantize_rows(x)
            return (torch._int_mm(q, codes.t()).float() * s * row).to(x.dtype)

        def backward(dy):
            q, s = quantize_rows(dy.float() * row)
            return (torch._int_mm(q, self.columns(codes)).float() * s).to(dy.dtype)

        return Layer(forward, backward)


class IntMmTransposed(IntMm):
    key, title = "int_mm_transposed", "torch._int_mm, W transposed in every dX"
    counted = IntMm.counted + "; for dX also the copy of W that lies the way the int8 product likes"

    def columns(self, codes):
        return codes.t().contiguous().t()
