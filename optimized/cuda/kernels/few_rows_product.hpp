// The product for few rows, as the host code asks for it. Plain C++17: nvcc compiles this too.
#pragma once

#include "optimized/cuda/kernels/product.hpp"

namespace squareq::cuda {

inline constexpr std::int64_t kMostFewRows = 32;

/// A forward product (not transposed) with BF16 or F16 activations of at most `row_tile` (16 or 32) rows; both operands start at, and have rows
/// at, multiples of 16 bytes. The depth is shared out over `parts` blocks (1 to 8) of a cluster. Compute capability 9.0.
cudaError_t few_rows_product(const WeightProduct& p, int row_tile, int parts, Queue queue);

}  // namespace squareq::cuda
