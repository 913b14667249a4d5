"""SDNQ's training layer: int8 weights with a scale per row, int8 products in both directions, by its own Triton kernels."""
import torch

from .base import Layer, Library, frozen_linear


class Sdnq(Library):
    key, title, package, compiled = "sdnq", "SDNQ int8 training layer", "sdnq", True
    counted = "quantization of X per token, int8 product with scales; dX dequantizes W, quantizes it again per column, and dY per token"

    def __init__(self, device, options):
        super().__init__(device, options)
        import sdnq.kernel_wrappers
        import sdnq.training
        self.training = sdnq.training
        if device.type == "cuda" and sdnq.kernel_wrappers.sdnq_scaled_mm is None:
            raise ImportError("its Triton kernels did not load; it would run eager torch operations instead")

    def prepare(self, weight):
        model = self.training.sdnq_training_post_load_quant(
            torch.nn.Sequential(frozen_linear(weight)), weights_dtype="int8", group_size=-1, use_quantized_matmul=True, use_static_quantization=True,
            use_stochastic_rounding=False, minimum_allowed_numel=0, torch_dtype=weight.dtype)
        model.requires_grad_(False)
        return Layer(model[0])
