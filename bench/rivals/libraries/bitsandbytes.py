"""bitsandbytes' LLM.int8() layer with threshold 0 (no outlier columns). Its 8-bit block-wise format has no linear layer of its own."""
import logging

from .base import Layer, Library


class Bitsandbytes(Library):
    key, title, package = "bitsandbytes", "bitsandbytes Linear8bitLt", "bitsandbytes"
    counted = "X to fp16 and its quantization per token, int8 product, rescaling; dX dequantizes W to bf16 in every call"

    def __init__(self, device, options):
        super().__init__(device, options)
        import bitsandbytes
        self.bnb = bitsandbytes
        if device.type == "cuda" and not getattr(bitsandbytes.cextension.lib, "compiled_with_cuda", False):
            raise ImportError("its CUDA library did not load: " + str(getattr(bitsandbytes.cextension.lib, "error_msg", "no reason given")).strip())
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # one warning per call that X is cast

    def prepare(self, weight):
        codes, scale, _ = self.bnb.functional.int8_vectorwise_quant(weight.half())
        linear = self.bnb.nn.Linear8bitLt(1, 1, bias=False, has_fp16_weights=False, threshold=0.0)
        linear.weight = self.bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scale)
        return Layer(linear)
