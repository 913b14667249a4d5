"""optimum-quanto's QLinear with qint8 weights and unquantized activations. Its own CUDA extension is not used by this path."""
import torch

from .base import Layer, Library, frozen_linear


class Quanto(Library):
    key, title, package = "quanto", "optimum-quanto qint8 weights", "optimum-quanto"
    counted = "dequantizing W to bf16 in every call, both directions"

    def __init__(self, device, options):
        super().__init__(device, options)
        import optimum.quanto
        self.quanto = optimum.quanto

    def prepare(self, weight):
        model = torch.nn.Sequential(frozen_linear(weight))
        self.quanto.quantize(model, weights=self.quanto.qint8)
        self.quanto.freeze(model)
        model.requires_grad_(False)  # freeze() makes the quantized weight a trainable parameter
        return Layer(model[0])
