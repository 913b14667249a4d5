// What the kernels offer to the host code. Plain C++17 and C types: nvcc compiles this too. Every launcher queues its work on `stream`,
// returns what the launch said, and reads and writes device memory only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "squareq/contract.h"

namespace squareq::cuda {

/// Rows of `columns` elements, `row_stride` elements apart, of sq_dtype `dtype`.
struct Rows {
  void* data;
  std::int32_t dtype;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t row_stride;
};

inline constexpr unsigned long long kNoBadElement = ~0ull;

/// What the rows of a weight are like, gathered before the first output byte is written.
struct WeightVerdict {
  unsigned long long first_bad;  // row * columns + column of the first element that rules the weight out, or kNoBadElement
  unsigned long long floored;    // rows that hit the scale floor
};

/// amax[n] = max |w[n, :]| in fp32 (SQ-QNT); adds to *verdict, which must start as {kNoBadElement, 0}. An element is bad where it is not
/// finite in fp32, or is the maximum of a row whose 127 * scale overflows.
cudaError_t measure_rows(const Rows& w, float* amax, WeightVerdict* verdict, cudaStream_t stream);

/// scale = max(amax / 127, 1e-8), q = clamp(round_half_even(w * (1 / scale))), zero in columns [w.columns, padded); zero_point = 0.
cudaError_t quantize_rows(const Rows& w, const float* amax, std::int8_t* qweight, std::int64_t qweight_stride, std::int64_t padded, float* scale,
                          float* zero_point, cudaStream_t stream);

/// out[i, k] = q[i, k] * scale[i]: fp32 product, then one rounding to out's dtype (F32, BF16 or F16).
cudaError_t dequantize_rows(const std::int8_t* qweight, std::int64_t qweight_stride, const float* scale, const Rows& out, cudaStream_t stream);

/// *first = the smallest index of an element of values[0, count) that is not 0; unchanged where there is none.
cudaError_t find_nonzero(const float* values, std::int64_t count, unsigned long long* first, cudaStream_t stream);

/// A strided tensor with as few dimensions as its strides allow; rank 1 where it is contiguous.
struct Strided {
  const void* data;
  std::int32_t dtype;
  std::int32_t rank;
  std::int64_t count;
  std::int64_t shape[SQ_MAX_RANK];
  std::int64_t strides[SQ_MAX_RANK];
};

/// counts[0] and totals[0] += NaN elements, counts[1] and totals[1] += infinite ones. `totals` may be page-locked host memory.
cudaError_t count_nonfinite(const Strided& x, std::int64_t* counts, std::int64_t* totals, cudaStream_t stream);

}  // namespace squareq::cuda
