// How the branch's kernels bring a tile of 16-bit values into shared memory: blocks of four warps, sides of 64.
#pragma once

#include "optimized/cuda/kernels/fragment.cuh"
#include "optimized/cuda/kernels/launch.cuh"
#include "optimized/cuda/kernels/thin_product.hpp"

namespace squareq::cuda {
namespace {

constexpr int kThinThreads = 128, kSide = 64;

/// `tile_rows` rows of kChunks 8-column chunks of a tile: rows [row, ...) x columns [column, ...) of a matrix, zero outside. `place` says where a
/// row's chunk lies in the tile.
template <int kChunks, class Place>
__device__ void load_side(unsigned to, const void* from, std::int64_t stride, int row, int rows, int column, int columns, bool aligned, int tile_rows, const Place& place) {
  const auto* bytes = static_cast<const unsigned char*>(from);
  for (int i = threadIdx.x; i < tile_rows * kChunks; i += kThinThreads) {
    const int r = i / kChunks, chunk = i % kChunks;
    const int valid = row + r < rows ? (columns - column) * 2 - chunk * 16 : 0;
    copy_chunk(to + place(r, chunk), valid > 0 ? bytes + ((row + r) * stride + column) * 2 + chunk * 16 : bytes, valid, aligned);
  }
}

/// The same with rows 128 bytes apart.
template <int kChunks>
__device__ void load_side(unsigned to, const void* from, std::int64_t stride, int row, int rows, int column, int columns, bool aligned, int tile_rows = kSide) {
  load_side<kChunks>(to, from, stride, row, rows, column, columns, aligned, tile_rows, [](int r, int chunk) { return swizzled_128(r, chunk); });
}

}  // namespace
}  // namespace squareq::cuda
