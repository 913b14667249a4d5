// Passes over the rows of activations and gradients. Plain C++17: nvcc compiles this too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "optimized/cuda/kernels/kernels.hpp"
#include "optimized/cuda/kernels/queue.hpp"

namespace squareq::cuda {

/// What is done to x before it is quantized. LayerNorm-and-modulate: row m uses group m / rows_per_group of shift and scale.
struct Producer {
  std::int32_t kind;  // sq_producer
  Rows shift, scale;
  std::int64_t rows_per_group;
  float epsilon;
};

/// scale[m] = max(max |producer(x[m, :])| / 127, 1e-30), q[m, k] = clamp(round_half_even(producer(x[m, k]) / scale[m])) (SQ-QNT-020 to 024); zeros
/// in columns [x.columns, padded).
cudaError_t quantize_tokens(const Rows& x, const Producer& producer, std::int8_t* q, std::int64_t q_stride, std::int64_t padded, float* scale, cudaStream_t stream);

/// G = dY act'(P), and what a product with the weight needs of it. `dy` and `preactivation` are [rows, out]; preactivation.data may be null.
struct GradientRows {
  Rows dy, preactivation;
  std::int32_t activation;
  const float* scale;        // of the weight, [out]
  void* g;                   // optional out [rows, out], contiguous rows: G in g_dtype (F32 or BF16)
  std::int32_t g_dtype;
  void* scaled;              // optional out [rows, scaled_stride], at a multiple of 16 bytes: G scale in scaled_dtype, zeros from column out on
  std::int32_t scaled_dtype; // F32; BF16; F16: times 2^-e, e per row, so that small gradients keep their digits; I8: quantized per row and permuted
  std::int64_t scaled_stride; // a multiple of 16
  float* row_scale;          // out [rows], with F16 (2^e) and I8 (the row's scale)
};
cudaError_t gradient_rows(const GradientRows& job, cudaStream_t stream);

/// out[i, j] = from[i, j] or, transposed, from[j, i], rounded; zeros in columns [columns, padded_columns) and rows [rows, padded_rows), which are whole in
/// `out`. `from` is F32 with rows `stride` elements apart.
struct Rounding {
  const float* from;
  std::int64_t stride;
  bool transposed;
  std::int64_t rows, columns;
  void* out;
  std::int64_t padded_rows, padded_columns;
};

/// All of a call's matrices of `dtype` in one launch.
struct Roundings {
  static constexpr int kMost = 5;
  Rounding jobs[kMost];
  std::int32_t count = 0, dtype = 0;
};
cudaError_t round_matrices(const Roundings& roundings, Queue queue);

/// target[i, j] = value of `from` in target's dtype (F32, BF16, F16).
cudaError_t copy_matrix(const Rows& from, const Rows& target, cudaStream_t stream);

}  // namespace squareq::cuda
