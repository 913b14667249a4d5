// The exact integer product of two int8 matrices through sgemm: products are at most 128 * 127, so a depth of 1024 sums to less
// than 2^24 and F32 holds every partial sum exactly, in any order; deeper sums continue in int32 (exact for depth <= 131,071).
#pragma once

#include <cstdint>

#include "optimized/cpu/context.hpp"
#include "optimized/cpu/linear/tiles.hpp"

namespace squareq::cpu {

/// Scratch of one product [rows, cols], rows and cols <= kBufferedRows / kBufferedDepth.
struct Int8Scratch {
  float* a = nullptr;        // [rows, depth]
  float* b = nullptr;        // [cols, depth] or [depth, cols]
  float* partial = nullptr;  // [rows, cols]
  std::int32_t* sum = nullptr;  // [rows, cols]

  void reserve(Scratch& scratch, std::int64_t rows, std::int64_t cols, std::int64_t depth);
};

/// The largest contraction that int32 holds: 2^31 / (128 * 128).
inline constexpr std::int64_t kInt8Depth = 131071;

/// sum[m, n] = sum_k a[m, k] w[n, k], a I8 [rows, depth].
void int8_forward(Context& context, const std::int8_t* a, std::int64_t a_stride, std::int64_t rows, const Weight& w, Span n, const Int8Scratch& s);

/// sum[m, k] = sum_n a[m, n] w[n, k], a I8 [rows, out].
void int8_backward(Context& context, const std::int8_t* a, std::int64_t a_stride, std::int64_t rows, const Weight& w, Span k, const Int8Scratch& s);

/// One row to int8: returns its scale max(absmax / 127, 1e-30); a row with NaN or infinity gets scale NaN and codes 0, so that
/// what is computed from it is NaN (SQ-QNT-021).
float quantize_row(const Kernels& kernels, const float* x, std::int64_t n, std::int8_t* q);

}  // namespace squareq::cpu
