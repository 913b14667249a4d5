// Error bounds, each derived in spec/35-numerics.md. No other number decides whether a result is near enough: the suite and `--shadow`
// share these.
#pragma once

#include <cmath>
#include <cstdint>

#include "squareq/contract.h"

namespace squareq::bounds {

/// Unit roundoff (half an ulp of 1) of a float dtype; 0 for F64, which is the oracle's own.
constexpr double unit_roundoff(std::int32_t dtype) {
  switch (dtype) {
    case SQ_F32: return 0x1p-24;
    case SQ_F16: return 0x1p-11;
    case SQ_BF16: return 0x1p-8;
    default: return 0;
  }
}

/// The smallest subnormal: what rounding may add near zero.
constexpr double smallest_subnormal(std::int32_t dtype) {
  switch (dtype) {
    case SQ_F32: return 0x1p-149;
    case SQ_BF16: return 0x1p-133;
    case SQ_F16: return 0x1p-24;
    default: return 0;
  }
}

/// w_t of the table: a 16-bit kernel may round one operand of a product to the activations' dtype.
constexpr double operand_roundoff(std::int32_t dtype) { return dtype == SQ_F32 ? 0 : unit_roundoff(dtype); }

/// gamma_n = n u / (1 - n u) of fp32: the relative error of any order of n roundings (Higham, Accuracy and Stability, lemma 3.1).
inline double gamma(double n) { return n * 0x1p-24 / (1 - n * 0x1p-24); }

/// Rounding `value`, known up to `error`, once to `dtype`.
inline double with_output_rounding(double value, double error, std::int32_t dtype) {
  return error + (std::fabs(value) + error) * unit_roundoff(dtype) + smallest_subnormal(dtype);
}

/// |w - q s| of a quantized weight.
inline double quantization_bound(double scale) { return scale * (0.5 + 0x1p-15); }

/// Largest slope of GELU (1.129) and SiLU (1.0998), and the fp32 evaluation of an activation at v.
inline constexpr double activation_slope = 1.13;
inline double activation_bound(double v) { return 8 * 0x1p-24 * std::fabs(v); }

/// G = dY act'(P): 64 u covers the cancellation in 1 - tanh^2 and a few ulp of tanh, erf and exp.
inline double derivative_bound(double dy, double g, std::int32_t dtype) {
  return 64 * 0x1p-24 * std::fabs(dy) + (0x1p-24 + operand_roundoff(dtype)) * std::fabs(g);
}

/// rms_norm_rope over heads of d elements. `size`: the sum of the magnitudes of what a result is made of.
inline double norm_rope_bound(double d, double size) { return (d + 16) * 0x1p-24 * size; }
inline double norm_rope_gradient_bound(double d, double size) { return 3 * norm_rope_bound(d, size); }

}  // namespace squareq::bounds
