// The elementwise loops of this backend, as a table of functions. kernels.inl is compiled once per instruction set and the best
// table that the machine can run is chosen at load time. No loop contracts or reassociates, so every table gives the same bits.
#pragma once

#include <cstdint>

namespace squareq::cpu {

/// `n` counts elements; pointers need only their element's alignment. 16-bit types travel as their bits.
struct Kernels {
  const char* isa;

  /// max |x| as bits of the element's own type without its sign: NaN and infinity compare above every finite value.
  std::uint32_t (*max_abs_f32)(const float* x, std::int64_t n);
  std::uint32_t (*max_abs_16)(const std::uint16_t* x, std::int64_t n);

  /// q = clamp(round_half_even(fp32(w * inv)), -127, 127) (SQ-QNT: reciprocal multiply). Finite w only.
  void (*quantize_f32)(const float* w, std::int64_t n, float inv, std::int8_t* q);
  void (*quantize_bf16)(const std::uint16_t* w, std::int64_t n, float inv, std::int8_t* q);
  void (*quantize_f16)(const std::uint16_t* w, std::int64_t n, float inv, std::int8_t* q);
  /// q = clamp(round_half_even(fp32(x / scale)), -127, 127), the rule of activations; NaN gives 0.
  void (*quantize_div)(const float* x, std::int64_t n, float scale, std::int8_t* q);

  /// out = fp32(q * scale)
  void (*dequantize)(const std::int8_t* q, std::int64_t n, float scale, float* out);
  void (*bf16_to_f32)(const std::uint16_t* x, std::int64_t n, float* out);
  void (*f16_to_f32)(const std::uint16_t* x, std::int64_t n, float* out);
  void (*f32_to_bf16)(const float* x, std::int64_t n, std::uint16_t* out);
  void (*f32_to_f16)(const float* x, std::int64_t n, std::uint16_t* out);

  void (*add)(const float* x, std::int64_t n, float* y);                        // y += x
  void (*multiply)(const float* a, const float* b, std::int64_t n, float* out); // out = a * b

  /// Activations, in place allowed; gradients: out = g * f'(pre).
  void (*gelu_tanh)(const float* x, std::int64_t n, float* out);
  void (*gelu_erf)(const float* x, std::int64_t n, float* out);
  void (*silu)(const float* x, std::int64_t n, float* out);
  void (*gelu_tanh_gradient)(const float* pre, const float* g, std::int64_t n, float* out);
  void (*gelu_erf_gradient)(const float* pre, const float* g, std::int64_t n, float* out);
  void (*silu_gradient)(const float* pre, const float* g, std::int64_t n, float* out);

  /// out = ((x - mean) / sqrt(variance + epsilon)) * (1 + scale) + shift, statistics in double over 16 fixed lanes.
  void (*layernorm_modulate)(const float* x, const float* shift, const float* scale, std::int64_t n, float epsilon, float* out);

  /// Sums in double over 16 fixed lanes, added to `lanes`: of x^2, of x w g. Where `n` is cut, pieces but the last are multiples of 16.
  void (*add_squares)(const float* x, std::int64_t n, double* lanes);
  void (*add_products)(const float* x, const float* w, const float* g, std::int64_t n, double* lanes);
  /// out = x r w
  void (*scale_by_weight)(const float* x, const float* w, std::int64_t n, float r, float* out);
  /// Neighbouring pairs turned by the table (cos, sin, cos, sin, ...), in place; `direction` is 1, or -1 for the transpose. `n` is even.
  void (*rotate_pairs)(const float* rope, std::int64_t n, float direction, float* values);
  /// out = r (w g - x r m), in place of g allowed; m is the mean of x r w g.
  void (*rms_norm_gradient)(const float* x, const float* w, const float* g, std::int64_t n, float r, float m, float* out);

  /// acc += int32(partial); partial holds exact integers.
  void (*accumulate_i32)(const float* partial, std::int64_t n, std::int32_t* acc);
  /// out = (float(acc) * row_scale) * column_scale; column_scale may be null (then 1).
  void (*rescale_i32)(const std::int32_t* acc, std::int64_t n, float row_scale, const float* column_scale, float* out);

  /// Adds the number of NaNs and infinities to counts[0] and counts[1].
  void (*count_nonfinite_f32)(const float* x, std::int64_t n, std::int64_t* counts);
  void (*count_nonfinite_f64)(const double* x, std::int64_t n, std::int64_t* counts);
  /// `infinity`: the type's bits of +infinity.
  void (*count_nonfinite_16)(const std::uint16_t* x, std::int64_t n, std::uint32_t infinity, std::int64_t* counts);
};

/// The best table for this machine. $SQUAREQ_CPU_ISA = baseline | avx2 | avx512 forces one; an unknown or unusable name throws
/// CFG_BACKEND.
const Kernels& select_kernels();

}  // namespace squareq::cpu
