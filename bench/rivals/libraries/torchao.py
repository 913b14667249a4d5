"""torchao's int8 configurations, through quantize_(), eager and under torch.compile; and its prototype for training with int8 weights.

Compiled ones get the settings of Inductor that quantize_() would make for the whole process (`set_inductor_config`), for themselves only.
"""
import torch

from .base import Layer, Library, frozen_linear

INDUCTOR = {"coordinate_descent_tuning": True, "coordinate_descent_check_all_directions": True, "force_fuse_int_mm_with_mul": True,
            "triton.unique_kernel_names": True}


class WeightOnly(Library):
    key, title, package = "torchao_weight_only", "torchao int8 weight-only", "torchao"
    counted = "W to bf16, product, scale; dX reuses the bf16 W that the forward kept"

    def __init__(self, device, options):
        super().__init__(device, options)
        import torchao.quantization
        self.quantization = torchao.quantization
        if self.compiled:
            dynamo = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, 8192)  # one entry per shape; past the limit torch would run eager silently
            dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 8192)
            dynamo.fail_on_recompile_limit_hit = True
            torch._functorch.config.donated_buffer = False  # one forward, many backwards: what it keeps must not be written over
            self.linear = torch.compile(lambda x, weight: torch.nn.functional.linear(x, weight), dynamic=False, fullgraph=True, options=INDUCTOR)
        else:
            self.linear = torch.nn.functional.linear

    def config(self):
        return self.quantization.Int8WeightOnlyConfig(set_inductor_config=False)

    def prepare(self, weight):
        model = torch.nn.Sequential(frozen_linear(weight))
        self.quantization.quantize_(model, self.config())
        model.requires_grad_(False)
        quantized = model[0].weight
        return Layer(lambda x: self.linear(x, quantized))


class Dynamic(WeightOnly):
    key, title = "torchao_dynamic", "torchao int8 dynamic activations"
    counted = "quantization of X per token, int8 product, rescaling"

    def config(self):
        return self.quantization.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)


class Training(WeightOnly):
    key, title = "torchao_training", "torchao int8 weight-only training (prototype)"
    counted = "W to bf16 in every call, both directions, scale on Y (on dY)"

    def __init__(self, device, options):
        super().__init__(device, options)
        import torchao.prototype.quantized_training
        self.training = torchao.prototype.quantized_training

    def config(self):
        return self.training.int8_weight_only_quantized_training()


class WeightOnlyCompiled(WeightOnly):
    key, title, compiled = "torchao_weight_only_compiled", "torchao int8 weight-only, torch.compile", True
    counted = "W to bf16, product, scale, as Inductor fuses them; dX as its partitioner decides (a bf16 W may be kept)"


class DynamicCompiled(Dynamic):
    key, title, compiled = "torchao_dynamic_compiled", "torchao int8 dynamic activations, torch.compile", True
    counted = "quantization of X per token, int8 product, rescaling, as Inductor fuses them"
