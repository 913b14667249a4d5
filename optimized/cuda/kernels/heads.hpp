// Queries and keys made ready for attention. Plain C++17: nvcc compiles this too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "optimized/cuda/kernels/kernels.hpp"

namespace squareq::cuda {

/// RMSNorm of every head of `size` elements, then the rotation of its neighbouring pairs (spec/40-linear.md, SQ-LIN-060 to 065). Rows are tokens.
struct Heads {
  Rows x;                    // [M, heads size]
  std::int64_t size;
  const void* weight;        // [size]
  std::int32_t weight_dtype;
  const float* rope;         // [positions, size] rows rope_stride apart: cos, sin of every pair; null: no rotation
  std::int64_t rope_stride, positions;
  float epsilon;
  Rows dy;                   // backward only; like x
  Rows out;                  // y, or dx; like x, and may be x (forward) or dy (backward) itself
};

inline constexpr std::int64_t kMostHeads = 2 * 65535;  // of a row: what a grid's second index reaches

cudaError_t rms_norm_rope(const Heads& job, cudaStream_t stream);
cudaError_t rms_norm_rope_gradient(const Heads& job, cudaStream_t stream);

}  // namespace squareq::cuda
