// How the branch's kernels bring a tile of 16-bit values into shared memory: blocks of four warps, sides of 64.
#pragma once

#include "optimized/cuda/kernels/fragment.cuh"
#include "optimized/cuda/kernels/launch.cuh"
#include "optimized/cuda/kernels/thin_product.hpp"

namespace squareq::cuda {
namespace {

constexpr int kThinThreads = 128, kSide = 64;

/// Copies tiles of up to kMost rows and kChunks 8-column chunks from a matrix, zeros from outside of it. A thread copies one chunk of every kStep-th row.
template <int kChunks, int kMost>
class SideCopy {
 public:
  static constexpr int kStep = kThinThreads / kChunks;

  __device__ SideCopy(const void* from, std::int64_t stride, int rows, int columns, bool aligned, int tile_rows = kMost)
      : from_(static_cast<const unsigned char*>(from) + (first_row() * stride + 8 * chunk()) * 2),
        stride_(stride),
        rows_(rows),
        columns_(columns),
        tile_rows_(tile_rows),
        aligned_(aligned) {}

  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / kChunks; }
  __device__ static int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }

  /// The tile from (row, column) on. `to`: where this thread's first chunk lies, the next ones kStep rows of `pitch` bytes further.
  __device__ void copy(unsigned to, int row, int column, int pitch) const {
    const unsigned char* at = from_ + (row * stride_ + column) * 2;
    if (aligned_ && column + 8 * kChunks <= columns_) {
#pragma unroll
      for (int r = 0; r < kMost; r += kStep)
        if (r < tile_rows_) copy_or_zero(to + r * pitch, at + r * stride_ * 2, row + first_row() + r < rows_);
    } else {
#pragma unroll 1
      for (int r = 0; r < tile_rows_; r += kStep) {
        const int valid = row + first_row() + r < rows_ ? (columns_ - column - 8 * chunk()) * 2 : 0;
        copy_chunk(to + r * pitch, valid > 0 ? at + r * stride_ * 2 : from_, valid, aligned_);
      }
    }
  }

 private:
  const unsigned char* from_;  // this thread's chunk of the matrix's first tile
  std::int64_t stride_;
  int rows_, columns_, tile_rows_;
  bool aligned_;
};

}  // namespace
}  // namespace squareq::cuda
