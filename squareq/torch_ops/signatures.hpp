// The operations of torch.ops.squareq: their C++ signatures, and how to call one as any other caller does, through libtorch's dispatcher.
//
// X [..., K] F32, BF16 or F16; qweight I8 [N, K], scale F32 [N], bias F32 [N]: a bp8_v2 weight (spec/30-quantization.md), frozen.
// lora_a F32 [r, K] and lora_b F32 [N, r] are the contract's a_t and b_t (spec/50-lora.md). compute: "default", "exact_w", "w8a8";
// activation: "none", "gelu_tanh", "gelu_erf", "silu" (spec/40-linear.md).
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>

#include <array>
#include <string>
#include <tuple>

namespace squareq::torch_ops {

using MaybeTensor = c10::optional<at::Tensor>;
using Text = c10::string_view;

/// weight [N, K] F32, F16, BF16 or F64 -> (qweight, scale).
using Quantize = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& weight);
/// [N, K] of `dtype`, F32, BF16 or F16.
using Dequantize = at::Tensor(const at::Tensor& qweight, const at::Tensor& scale, at::ScalarType dtype);
/// x [..., K] -> (q I8 [..., K], scale F32 [...]), format per_token_int8.
using QuantizeActivation = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& x);

/// y [..., N] = activation(x W^T + bias), in x's dtype.
using Linear = at::Tensor(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& scale, const MaybeTensor& bias, Text compute,
                          Text activation);
/// (y, preactivation [..., N]), for an activation that backward needs the preactivation of.
using LinearForward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& scale,
                                                         const MaybeTensor& bias, Text compute, Text activation);
/// dx [..., K] in grad's dtype, for grad [..., N].
using LinearBackward = at::Tensor(const at::Tensor& grad, const MaybeTensor& preactivation, const at::Tensor& qweight,
                                  const at::Tensor& scale, Text compute, Text activation);

/// y [..., N] = x W^T + scaling (x lora_a^T) lora_b^T + bias.
using LinearLora = at::Tensor(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& scale, const MaybeTensor& bias,
                              const at::Tensor& lora_a, const at::Tensor& lora_b, double scaling, Text compute);
/// (y, h F32 [..., r]), h = x lora_a^T as the branch used it.
using LinearLoraForward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& scale,
                                                             const MaybeTensor& bias, const at::Tensor& lora_a, const at::Tensor& lora_b,
                                                             double scaling, Text compute);
/// (dx [..., K], da F32 [r, K], db F32 [N, r]); what `output_mask` leaves out is undefined (None in Python) and costs nothing.
using LinearLoraBackward = std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& h,
                                                                          const at::Tensor& qweight, const at::Tensor& scale,
                                                                          const at::Tensor& lora_a, const at::Tensor& lora_b,
                                                                          double scaling, Text compute, std::array<bool, 3> output_mask);
/// The backend's JSON {"op", "kernel", "rejected"} for this call of linear or linear_lora, or of its backward; computes nothing.
using Explain = std::string(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& scale, const MaybeTensor& bias,
                            const MaybeTensor& lora_a, const MaybeTensor& lora_b, Text compute, Text activation, bool backward);

/// The operation `name` ("squareq::linear"). Throws c10::Error where it is not registered or has another signature.
template <class Signature>
c10::TypedOperatorHandle<Signature> operation(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace squareq::torch_ops
