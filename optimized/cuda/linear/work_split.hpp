// How the wgmma kernel's tiles are shared out over a device.
#pragma once

#include <cstdint>

#include "optimized/cuda/kernels/product.hpp"

namespace squareq::cuda {

/// A product's rows (tokens), columns and depth; bytes of an element of its activations; whether the weight is transposed (dX).
struct ProductSize {
  std::int64_t rows, columns, depth, width;
  bool transposed;
};

/// The tile and the split with the smallest estimate of time. Depends on nothing else, so that a call's sums are added in the same order every time.
WorkSplit share_out(const ProductSize& size, int multiprocessors);

}  // namespace squareq::cuda
