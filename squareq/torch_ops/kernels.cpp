// The operations on the CPU and on GPUs: one body each, the tensors' device picks the backend. Nothing here waits for a device; quantize
// does, inside the backend, because it refuses weights that are not finite.
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "squareq/torch_ops/backends.hpp"
#include "squareq/torch_ops/calls.hpp"
#include "squareq/torch_ops/errors.hpp"
#include "squareq/torch_ops/outputs.hpp"
#include "squareq/torch_ops/signatures.hpp"
#include "squareq/training/tensor_bridge.hpp"
#include "squareq/training/token_codes.hpp"
#include "squareq/training/torch_compat.hpp"

namespace squareq::torch_ops {

namespace {

using at::Tensor;
using training::view_of;

std::tuple<Tensor, Tensor> quantize(const Tensor& weight) {
  constexpr const char* op = "squareq::quantize";
  require_matrix(op, "weight", weight);
  const Tensor rows = rows_of(weight);
  const Tensor qweight = empty_as(weight, at::kChar), scale = empty_per_row(weight, at::kFloat), zero_point = at::empty_like(scale);
  const sq_tensor w = view_of(rows);
  const std::array<sq_part, 3> out{{{"qweight", view_of(qweight)}, {"scale", view_of(scale)}, {"zero_point", view_of(zero_point)}}};
  auto args = sized<sq_quantize_args>();
  args.pack_k = 1;
  args.format = "bp8_v2";
  args.name = op;
  args.stream = training::stream_of(weight.device());
  args.w = &w;
  args.out = out.data();
  args.out_count = out.size();
  const Context context = context_on(weight.device());
  call(context.linear().quantize, context, args);
  return {qweight, scale};
}

Tensor dequantize(const Tensor& qweight, const Tensor& scale, at::ScalarType dtype) {
  constexpr const char* op = "squareq::dequantize";
  require_matrix(op, "qweight", qweight);
  training::BoundWeight weight;
  const std::array<std::pair<const char*, Tensor>, 2> parts{{{"qweight", qweight}, {"scale", scale}}};
  training::bind_tensors(weight, op, qweight.size(0), qweight.size(1), parts);
  const Tensor result = empty_as(qweight, dtype);
  const sq_tensor out = view_of(result);
  auto args = sized<sq_dequantize_args>();
  args.stream = training::stream_of(qweight.device());
  args.weight = &weight.ref;
  args.out = &out;
  const Context context = context_on(qweight.device());
  call(context.linear().dequantize, context, args);
  return result;
}

std::tuple<Tensor, Tensor> quantize_activation(const Tensor& x) {
  if (x.dim() < 1) throw Error(Code::CALL_SHAPE, "squareq::quantize_activation: x has shape [], must have at least 1 dimension");
  const training::TokenCodes codes = training::token_codes(context_on(x.device()), rows_of(x));
  return {codes.q.view(x.sizes()), codes.scale.view(x.sizes().slice(0, x.dim() - 1))};
}

Tensor linear(const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias, Text compute, Text activation) {
  constexpr const char* op = "squareq::linear";
  const ForwardCall forward({op, qweight, scale, bias}, x, nullptr, compute_of(op, compute), activation_of(op, activation), false);
  forward.run();
  return forward.y;
}

std::tuple<Tensor, Tensor> linear_forward(const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias,
                                          Text compute, Text activation) {
  constexpr const char* op = "squareq::linear_forward";
  const ForwardCall forward({op, qweight, scale, bias}, x, nullptr, compute_of(op, compute), saved_activation_of(op, activation), true);
  forward.run();
  return {forward.y, forward.preactivation};
}

Tensor linear_backward(const Tensor& grad, const MaybeTensor& preactivation, const Tensor& qweight, const Tensor& scale, Text compute,
                       Text activation) {
  constexpr const char* op = "squareq::linear_backward";
  const BackwardCall backward({op, qweight, scale, {}}, grad, {preactivation.value_or(Tensor()), {}, {}}, nullptr, compute_of(op, compute),
                              activation_of(op, activation), {true, false, false});
  backward.run();
  return backward.dx;
}

Tensor linear_lora(const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias, const Tensor& lora_a,
                   const Tensor& lora_b, double scaling, Text compute) {
  constexpr const char* op = "squareq::linear_lora";
  const LowRankArguments branch{lora_a, lora_b, scaling};
  const ForwardCall forward({op, qweight, scale, bias}, x, &branch, compute_of(op, compute), SQ_ACT_NONE, false);
  forward.run();
  return forward.y;
}

std::tuple<Tensor, Tensor> linear_lora_forward(const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias,
                                               const Tensor& lora_a, const Tensor& lora_b, double scaling, Text compute) {
  constexpr const char* op = "squareq::linear_lora_forward";
  const LowRankArguments branch{lora_a, lora_b, scaling};
  const ForwardCall forward({op, qweight, scale, bias}, x, &branch, compute_of(op, compute), SQ_ACT_NONE, true);
  forward.run();
  return {forward.y, forward.h};
}

std::tuple<Tensor, Tensor, Tensor> linear_lora_backward(const Tensor& grad, const Tensor& x, const Tensor& h, const Tensor& qweight,
                                                        const Tensor& scale, const Tensor& lora_a, const Tensor& lora_b, double scaling,
                                                        Text compute, std::array<bool, 3> output_mask) {
  constexpr const char* op = "squareq::linear_lora_backward";
  const LowRankArguments branch{lora_a, lora_b, scaling};
  const BackwardCall backward({op, qweight, scale, {}}, grad, {{}, x, h}, &branch, compute_of(op, compute), SQ_ACT_NONE, output_mask);
  backward.run();
  return {backward.dx, backward.da, backward.db};
}

std::string explain(const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias, const MaybeTensor& lora_a,
                    const MaybeTensor& lora_b, Text compute, Text activation, bool backward) {
  constexpr const char* op = "squareq::explain";
  if (lora_a.has_value() != lora_b.has_value())
    throw Error(Code::CALL_NULL, std::string(op) + ": " + (lora_a ? "lora_a is given, lora_b is not" : "lora_b is given, lora_a is not"));
  std::optional<LowRankArguments> branch;
  if (lora_a) branch.emplace(LowRankArguments{*lora_a, *lora_b, 1});
  const WeightArguments weight{op, qweight, scale, bias};
  const ForwardCall forward(weight, x, branch ? &*branch : nullptr, compute_of(op, compute), activation_of(op, activation), true);
  const Context context = context_on(x.device());
  const auto ask = [&](sq_op what, const void* args) {
    std::string text;
    sq_error e = make_error();
    check(context.linear().explain(context.get(), what, args, append_text, &text, &e), e);
    return text;
  };
  if (!backward) return ask(SQ_OP_LINEAR_FORWARD, &forward.args());
  const bool adapter = branch.has_value();
  const BackwardCall back(weight, forward.y, {forward.preactivation, adapter ? x : Tensor(), forward.h}, adapter ? &*branch : nullptr,
                          compute_of(op, compute), activation_of(op, activation), {true, adapter, adapter});
  return ask(SQ_OP_LINEAR_BACKWARD, &back.args());
}

void implement(torch::Library& m) {
  m.impl("quantize", coded<&quantize>);
  m.impl("dequantize", coded<&dequantize>);
  m.impl("quantize_activation", coded<&quantize_activation>);
  m.impl("linear", coded<&linear>);
  m.impl("linear_forward", coded<&linear_forward>);
  m.impl("linear_backward", coded<&linear_backward>);
  m.impl("linear_lora", coded<&linear_lora>);
  m.impl("linear_lora_forward", coded<&linear_lora_forward>);
  m.impl("linear_lora_backward", coded<&linear_lora_backward>);
  m.impl("explain", coded<&explain>);
}

}  // namespace

TORCH_LIBRARY_IMPL(squareq, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(squareq, CUDA, m) { implement(m); }

}  // namespace squareq::torch_ops
