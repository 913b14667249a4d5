// Between the host code that makes tensor maps and the kernels that read through them.
#pragma once

#include <cuda.h>

#include "optimized/cuda/kernels/product.hpp"

namespace squareq::cuda {

/// Both operands as TMA reads them, a box per slice of 128 bytes of depth, and the outputs as it writes them.
struct ProductMaps {
  CUtensorMap activations;  // box: one 128-byte chunk of depth x split.rows / kClusterSize rows
  CUtensorMap weight;       // forward: as many codes of depth x 128 features; transposed: 128 features x that depth
  CUtensorMap y, preactivation;  // box: 64 features x the rows that go out at a time
  bool mapped;                   // false: outputs go out row by row
};

/// Blocks that work on the same rows and neighbouring features; each loads its part of the activations for all.
inline constexpr int kClusterSize = 2;

cudaError_t wgmma_product_bf16(const WeightProduct& p, const ProductMaps& maps, Queue queue);
cudaError_t wgmma_product_f16(const WeightProduct& p, const ProductMaps& maps, Queue queue);
cudaError_t wgmma_product_i8(const WeightProduct& p, const ProductMaps& maps, Queue queue);

}  // namespace squareq::cuda
