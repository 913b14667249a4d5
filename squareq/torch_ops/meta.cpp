// The operations on the meta device, which torch.compile and FakeTensor reason with: shapes and dtypes, and what the contract would refuse
// of them. Shapes may be symbolic.
#include <torch/library.h>

#include <fmt/format.h>

#include <array>
#include <initializer_list>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "squareq/torch_ops/errors.hpp"
#include "squareq/torch_ops/outputs.hpp"
#include "squareq/torch_ops/signatures.hpp"

namespace squareq::torch_ops {

namespace {

using at::ScalarType;
using at::Tensor;

constexpr std::initializer_list<ScalarType> kActivations{at::kFloat, at::kBFloat16, at::kHalf};

void require_dtype(const char* op, const char* name, ScalarType dtype, std::initializer_list<ScalarType> allowed) {
  std::string list;
  for (const ScalarType one : allowed) {
    if (dtype == one) return;
    list += (list.empty() ? "" : " or ") + std::string(c10::toString(one));
  }
  throw Error(Code::CALL_DTYPE, fmt::format("{}: {} is {}, must be {}", op, name, c10::toString(dtype), list));
}

void require(const char* op, const char* name, const Tensor& t, std::initializer_list<ScalarType> dtypes) {
  if (!t.is_meta()) throw Error(Code::CALL_DEVICE, fmt::format("{}: {} is on {}, other tensors are on meta", op, name, t.device().str()));
  require_dtype(op, name, t.scalar_type(), dtypes);
}

void require_shape(const char* op, const char* name, const Tensor& t, std::vector<c10::SymInt> shape) {
  const auto sizes = t.sym_sizes();
  bool same = sizes.size() == shape.size();
  for (std::size_t i = 0; same && i < shape.size(); ++i) same = sizes[i] == shape[i];
  if (!same)
    throw Error(Code::CALL_SHAPE,
                fmt::format("{}: {} has shape {}, must be {}", op, name, c10::str(sizes), c10::str(c10::SymIntArrayRef(shape))));
}

void require_weight(const char* op, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias) {
  require_matrix(op, "qweight", qweight);
  require(op, "qweight", qweight, {at::kChar});
  require(op, "scale", scale, {at::kFloat});
  require_shape(op, "scale", scale, {qweight.sym_size(0)});
  if (!bias) return;
  require(op, "bias", *bias, {at::kFloat});
  require_shape(op, "bias", *bias, {qweight.sym_size(0)});
}

void require_branch(const char* op, const Tensor& qweight, const Tensor& a, const Tensor& b) {
  require_columns(op, "lora_a", a, qweight, 1);
  require_matrix(op, "lora_a", a);
  require(op, "lora_a", a, {at::kFloat});
  require(op, "lora_b", b, {at::kFloat});
  require_shape(op, "lora_b", b, {qweight.sym_size(0), a.sym_size(0)});
}

/// `t` [..., C] against the rows of `rows` [..., any] and a number of columns.
void require_rows(const char* op, const char* name, const Tensor& t, const Tensor& rows, const c10::SymInt& columns) {
  std::vector<c10::SymInt> shape(rows.sym_sizes().begin(), rows.sym_sizes().end());
  shape.back() = columns;
  require_shape(op, name, t, std::move(shape));
}

Tensor output_of(const char* op, const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias, Text compute) {
  compute_of(op, compute);
  require_weight(op, qweight, scale, bias);
  require(op, "x", x, kActivations);
  require_columns(op, "x", x, qweight, 1);
  return empty_rows(x, qweight.sym_size(0), x.scalar_type());
}

std::tuple<Tensor, Tensor> quantize(const Tensor& weight) {
  constexpr const char* op = "squareq::quantize";
  require_matrix(op, "weight", weight);
  require(op, "weight", weight, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  return {empty_as(weight, at::kChar), empty_per_row(weight, at::kFloat)};
}

Tensor dequantize(const Tensor& qweight, const Tensor& scale, ScalarType dtype) {
  constexpr const char* op = "squareq::dequantize";
  require_weight(op, qweight, scale, {});
  require_dtype(op, "dtype", dtype, kActivations);
  return empty_as(qweight, dtype);
}

std::tuple<Tensor, Tensor> quantize_activation(const Tensor& x) {
  constexpr const char* op = "squareq::quantize_activation";
  require(op, "x", x, kActivations);
  if (x.dim() < 1) throw Error(Code::CALL_SHAPE, std::string(op) + ": x has shape [], must have at least 1 dimension");
  return {empty_as(x, at::kChar), empty_per_row(x, at::kFloat)};
}

Tensor linear(const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias, Text compute, Text activation) {
  constexpr const char* op = "squareq::linear";
  activation_of(op, activation);
  return output_of(op, x, qweight, scale, bias, compute);
}

std::tuple<Tensor, Tensor> linear_forward(const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias,
                                          Text compute, Text activation) {
  constexpr const char* op = "squareq::linear_forward";
  saved_activation_of(op, activation);
  const Tensor y = output_of(op, x, qweight, scale, bias, compute);
  return {y, empty_as(y, y.scalar_type())};
}

Tensor linear_backward(const Tensor& grad, const MaybeTensor& preactivation, const Tensor& qweight, const Tensor& scale, Text compute,
                       Text activation) {
  constexpr const char* op = "squareq::linear_backward";
  compute_of(op, compute);
  require_weight(op, qweight, scale, {});
  require(op, "grad", grad, kActivations);
  require_columns(op, "grad", grad, qweight, 0);
  if (activation_of(op, activation) != SQ_ACT_NONE) {
    if (!preactivation)
      throw Error(Code::CALL_NULL, fmt::format("{}: preactivation is missing, activation '{}' needs it", op,
                                               std::string(activation.data(), activation.size())));
    require(op, "preactivation", *preactivation, {grad.scalar_type(), at::kFloat});
    require_rows(op, "preactivation", *preactivation, grad, qweight.sym_size(0));
  }
  return empty_rows(grad, qweight.sym_size(1), grad.scalar_type());
}

Tensor linear_lora(const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias, const Tensor& lora_a,
                   const Tensor& lora_b, double, Text compute) {
  constexpr const char* op = "squareq::linear_lora";
  const Tensor y = output_of(op, x, qweight, scale, bias, compute);
  require_branch(op, qweight, lora_a, lora_b);
  return y;
}

std::tuple<Tensor, Tensor> linear_lora_forward(const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias,
                                               const Tensor& lora_a, const Tensor& lora_b, double, Text compute) {
  constexpr const char* op = "squareq::linear_lora_forward";
  const Tensor y = output_of(op, x, qweight, scale, bias, compute);
  require_branch(op, qweight, lora_a, lora_b);
  return {y, empty_rows(x, lora_a.sym_size(0), at::kFloat)};
}

std::tuple<Tensor, Tensor, Tensor> linear_lora_backward(const Tensor& grad, const Tensor& x, const Tensor& h, const Tensor& qweight,
                                                        const Tensor& scale, const Tensor& lora_a, const Tensor& lora_b, double,
                                                        Text compute, std::array<bool, 3> output_mask) {
  constexpr const char* op = "squareq::linear_lora_backward";
  compute_of(op, compute);
  require_weight(op, qweight, scale, {});
  require_branch(op, qweight, lora_a, lora_b);
  require(op, "grad", grad, kActivations);
  require_columns(op, "grad", grad, qweight, 0);
  require(op, "x", x, kActivations);
  require_rows(op, "x", x, grad, qweight.sym_size(1));
  require(op, "h", h, {at::kFloat});
  require_rows(op, "h", h, grad, lora_a.sym_size(0));
  return {output_mask[0] ? empty_rows(grad, qweight.sym_size(1), grad.scalar_type()) : Tensor(),
          output_mask[1] ? empty_as(lora_a, at::kFloat) : Tensor(), output_mask[2] ? empty_as(lora_b, at::kFloat) : Tensor()};
}

}  // namespace

TORCH_LIBRARY_IMPL(squareq, Meta, m) {
  m.impl("quantize", coded<&quantize>);
  m.impl("dequantize", coded<&dequantize>);
  m.impl("quantize_activation", coded<&quantize_activation>);
  m.impl("linear", coded<&linear>);
  m.impl("linear_forward", coded<&linear_forward>);
  m.impl("linear_backward", coded<&linear_backward>);
  m.impl("linear_lora", coded<&linear_lora>);
  m.impl("linear_lora_forward", coded<&linear_lora_forward>);
  m.impl("linear_lora_backward", coded<&linear_lora_backward>);
}

}  // namespace squareq::torch_ops
