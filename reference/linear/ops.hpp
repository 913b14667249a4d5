// The operations of the group "linear", each in two steps: check everything, then compute. explain() runs only the first step.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>

#include "reference/arguments.hpp"
#include "reference/context.hpp"
#include "reference/numbers.hpp"
#include "reference/weight.hpp"

namespace squareq::reference {

void quantize(sq_context&, const sq_quantize_args*, bool run);
void dequantize(sq_context&, const sq_dequantize_args*, bool run);
void quantize_activation(sq_context&, const sq_quantize_activation_args*, bool run);
void linear_forward(sq_context&, const sq_linear_forward_args*, bool run);
void linear_backward(sq_context&, const sq_linear_backward_args*, bool run);
void numeric_guard(sq_context&, const sq_numeric_guard_args*, bool run);
void rms_norm_rope_forward(sq_context&, const sq_rms_norm_rope_forward_args*, bool run);
void rms_norm_rope_backward(sq_context&, const sq_rms_norm_rope_backward_args*, bool run);

/// The low-rank branch with its tensors checked. `x` is the branch's own input, or null.
struct Lora {
  float scaling = 0;
  std::int64_t rank = 0;
  sq_tensor a_t{};  // [rank, in]
  sq_tensor b_t{};  // [out, rank]
  const sq_tensor* x = nullptr;
};

/// Empty when `given` is null. `rows` and `dtype` are what lora->x must have.
std::optional<Lora> check_lora(const sq_lora* given, const Weight& weight, std::int64_t rows, std::int32_t dtype);

/// H^T [rank, rows]: H = X A, with A and H rounded to `dtype` (SQ-LOR-003). `x_t` is X^T [in, rows].
Matrix low_rank_input(const sq_context&, const Lora&, const Matrix& x_t, std::int64_t in, std::int64_t rows, std::int32_t dtype);

/// X^T [columns, rows] of a tensor [rows, columns], in fp32.
Matrix transposed(const sq_context&, const sq_tensor& x, std::int64_t columns, const char* tag);

/// Scale of one row of an int8 activation: max|x| / 127, at least 1e-30; NaN where an element is not finite (SQ-QNT-021).
float activation_scale(const float* x, std::int64_t count, std::int64_t stride);

/// clamp(round_half_even(x / scale), -127, 127); 0 where the scale is NaN.
inline std::int8_t quantize_value(float x, float scale) {
  return std::isnan(scale) ? std::int8_t{0} : static_cast<std::int8_t>(std::fmin(std::fmax(std::rint(x / scale), -127.0f), 127.0f));
}

}  // namespace squareq::reference
