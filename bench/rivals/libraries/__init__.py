"""Every adapter, the base first. A new library is one file here and one line below."""
from . import bitsandbytes, by_hand, comfy_kitchen, quanto, sdnq, squareq_ops, torch_bf16, torchao

BASE = torch_bf16.TorchBf16
ALL = [BASE, squareq_ops.W8A16, squareq_ops.W8A8, by_hand.Dequantize, by_hand.IntMm, by_hand.IntMmTransposed, bitsandbytes.Bitsandbytes,
       torchao.WeightOnly, torchao.Dynamic, torchao.Training, quanto.Quanto, comfy_kitchen.Rowwise, comfy_kitchen.Tensorwise,
       comfy_kitchen.Convrot, torchao.WeightOnlyCompiled, torchao.DynamicCompiled, sdnq.Sdnq]
