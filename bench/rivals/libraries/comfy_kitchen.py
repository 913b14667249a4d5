"""comfy-kitchen's INT8 layout, as ComfyUI uses it: F.linear on its QuantizedTensor. dX by autograd, as the layout's own rules decide."""
import torch

from .base import Layer, Library


class Rowwise(Library):
    key, title, package = "comfy_kitchen", "comfy-kitchen int8, scale per row", "comfy-kitchen"
    counted = "quantization of X per token, int8 product, rescaling; dX dequantizes W in every call"
    options = {"per_channel": True}

    def __init__(self, device, options):
        super().__init__(device, options)
        import comfy_kitchen
        import comfy_kitchen.tensor
        self.tensor = comfy_kitchen.tensor.QuantizedTensor
        cuda = comfy_kitchen.registry.list_backends()["cuda"]
        if device.type == "cuda" and not cuda["available"]:
            raise ImportError(f"its CUDA backend did not load: {cuda['unavailable_reason']}")  # it would run eager torch operations instead

    def prepare(self, weight):
        quantized = self.tensor.from_float(weight, "TensorWiseINT8Layout", **self.options)
        return Layer(lambda x: torch.nn.functional.linear(x, quantized))


class Tensorwise(Rowwise):
    key, title = "comfy_kitchen_tensorwise", "comfy-kitchen int8, one scale"
    counted = "quantization of X (of dY) per token, int8 product, rescaling; dX also transposes W in every call"
    options = {}


class Convrot(Rowwise):
    key, title = "comfy_kitchen_convrot", "comfy-kitchen int8, rotated (ConvRot)"
    counted = "rotation and quantization of X per token, int8 product, rescaling; dX dequantizes and rotates W back in every call"
    options = {"per_channel": True, "convrot": True}
