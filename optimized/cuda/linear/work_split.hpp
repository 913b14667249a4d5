// How the wgmma kernel's tiles are shared out over a device.
#pragma once

#include <cstdint>

#include "optimized/cuda/kernels/product.hpp"

namespace squareq::cuda {

/// The tile and the split with the smallest estimate of time. `depth_bytes`: of a row of activations. Depends on nothing else, so that a call's sums are
/// added in the same order every time.
WorkSplit share_out(std::int64_t rows, std::int64_t columns, std::int64_t depth_bytes, int multiprocessors);

}  // namespace squareq::cuda
