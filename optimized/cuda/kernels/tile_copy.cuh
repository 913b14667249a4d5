// Tiles of a matrix into shared memory by cp.async, zeros from outside of the matrix.
#pragma once

#include <cstdint>

namespace squareq::cuda {

/// 16 bytes into shared memory, or 16 zeros; addresses are multiples of 16.
__device__ inline void copy_or_zero(unsigned to, const unsigned char* from, bool copies) {
  asm volatile("{ .reg .pred zero; setp.eq.u32 zero, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, zero; }" ::"r"(to), "l"(from), "r"(static_cast<unsigned>(copies)) : "memory");
}

/// 16 bytes into shared memory, of which the first `valid` come from `from`, the rest are 0. Where addresses allow no 16-byte copy, byte by byte.
__device__ inline void copy_chunk(unsigned to, const unsigned char* from, int valid, bool aligned) {
  valid = max(0, min(16, valid));
  if (aligned) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid) : "memory");
    return;
  }
  unsigned words[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i)
    if (i < valid) words[i / 4] |= static_cast<unsigned>(from[i]) << (i % 4 * 8);
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}

/// Whether rows `row_bytes` apart, from `data` on, can be copied in chunks of 16 bytes.
inline bool chunks_aligned(const void* data, std::int64_t row_bytes) {
  return (reinterpret_cast<std::uintptr_t>(data) | static_cast<std::uintptr_t>(row_bytes)) % 16 == 0;
}

/// Copies tiles of up to kRows rows of kChunks 16-byte chunks. Each of kThreadCount threads copies one chunk of every kStep-th row. A whole tile costs a
/// thread a few instructions per chunk: the size of a copy known only at run time, or a chunk's place computed anew, would cost it thirty.
template <int kThreadCount, int kChunks, int kRows>
class TileCopy {
 public:
  static constexpr int kStep = kThreadCount / kChunks;
  static_assert(kThreadCount % kChunks == 0 && kRows % kStep == 0);

  /// Of a matrix of `rows` rows of row_bytes bytes, `stride` bytes apart. aligned: as chunks_aligned() says. tile_rows: a multiple of kStep.
  __device__ TileCopy(const void* from, std::int64_t stride, int rows, int row_bytes, bool aligned, int tile_rows = kRows)
      : from_(static_cast<const unsigned char*>(from) + first_row() * stride + 16 * chunk()),
        stride_(stride),
        row_bytes_(row_bytes),
        rows_(rows),
        tile_rows_(tile_rows),
        aligned_(aligned) {}

  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / kChunks; }
  __device__ static int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }

  /// The tile from row `row` and byte `at` of the rows on. `to`: where this thread's first chunk goes; the next ones go kStep rows of `pitch` bytes further.
  __device__ void copy(unsigned to, int row, int at, int pitch) const {
    const unsigned char* from = from_ + row * stride_ + at;
    if (aligned_ && at + 16 * kChunks <= row_bytes_) {
#pragma unroll
      for (int r = 0; r < kRows; r += kStep)
        if (r < tile_rows_) copy_or_zero(to + r * pitch, from + r * stride_, row + first_row() + r < rows_);
    } else {
#pragma unroll 1
      for (int r = 0; r < tile_rows_; r += kStep) {
        const int valid = row + first_row() + r < rows_ ? row_bytes_ - at - 16 * chunk() : 0;
        copy_chunk(to + r * pitch, valid > 0 ? from + r * stride_ : from_, valid, aligned_);
      }
    }
  }

 private:
  const unsigned char* from_;  // this thread's chunk of the matrix's first tile
  std::int64_t stride_;
  int row_bytes_, rows_, tile_rows_;
  bool aligned_;
};

}  // namespace squareq::cuda
