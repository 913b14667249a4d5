// Products with a thin matrix of the low-rank branch on tensor cores: the wide operand is read once. Plain C++17: nvcc compiles this too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "optimized/cuda/kernels/queue.hpp"

namespace squareq::cuda {

/// Partial sums in fp32 of `wide` [rows, columns] with a thin matrix of the same dtype (BF16 or F16), in pieces of thin_piece() of what is summed over:
///   over_rows false: partial[piece][row, r]    = sum_c wide[row, c] thin[r, c]     thin is [rank, >= columns]
///   over_rows true:  partial[piece][column, r] = sum_m wide[m, column] thin[m, r]  thin is [rows, rank]
/// rank is a multiple of 16; partial holds thin_pieces() matrices of rank columns.
struct ThinProduct {
  const void* wide;
  const void* thin;
  std::int32_t dtype;
  std::int64_t wide_stride, thin_stride;
  bool over_rows;
  std::int32_t rows, columns, rank;
  float* partial;
};

inline std::int64_t pieces_of(std::int64_t total, std::int64_t piece) { return (total + piece - 1) / piece; }
/// Shorter pieces where there would be too few blocks to fill a device, which then wait for memory one tile after another.
inline constexpr std::int64_t kLongestThinPiece = 512, kShortestThinPiece = 128, kThinBlocks = 384;
inline std::int64_t thin_piece(bool over_rows, std::int64_t rows, std::int64_t columns) {
  const std::int64_t depth = over_rows ? rows : columns, tiles = pieces_of(over_rows ? columns : rows, 64);
  std::int64_t piece = kLongestThinPiece;
  while (piece > kShortestThinPiece && tiles * pieces_of(depth, piece) < kThinBlocks) piece /= 2;
  return piece;
}
inline std::int64_t thin_pieces(bool over_rows, std::int64_t rows, std::int64_t columns) {
  return pieces_of(over_rows ? rows : columns, thin_piece(over_rows, rows, columns));
}

cudaError_t thin_product(const ThinProduct& p, Queue queue);

/// Both products of the gradients `wide` [rows, columns] with the branch, `wide` read once:
///   partial_d[column piece][row, r]    = sum_c wide[row, c] adapter[r, c]    adapter is [rank, >= columns], the rounded B
///   partial_b[row piece][column, r]    = sum_m wide[m, column] h[m, r]       h is [rows, rank], at a multiple of 16 bytes
/// All of one dtype, BF16 or F16; rank 16 or 32.
struct ThinPair {
  const void* wide;
  const void* adapter;
  const void* h;
  std::int32_t dtype;
  std::int64_t wide_stride, adapter_stride;
  std::int32_t rows, columns, rank;
  float *partial_d, *partial_b;
};

inline constexpr std::int64_t kLargestPairRank = 32, kFewPairRows = 128;
/// Rows of a piece: as many as the registers hold sums of, fewer where the device would not be filled.
inline std::int64_t pair_rows(std::int64_t rank, std::int64_t rows) { return rows <= 2048 ? kFewPairRows : 8192 / rank; }
/// Columns of a piece: fewer where the device would not be filled, more where the pieces of D would take too much memory.
inline std::int64_t pair_columns(std::int64_t rank, std::int64_t rows, std::int64_t columns) {
  if (pieces_of(rows, pair_rows(rank, rows)) * pieces_of(columns, 256) < kThinBlocks / 2) return 128;
  return 256 * (1 + (rows * columns >> 27));
}
inline std::int64_t pair_row_pieces(std::int64_t rank, std::int64_t rows) { return pieces_of(rows, pair_rows(rank, rows)); }
inline std::int64_t pair_column_pieces(std::int64_t rank, std::int64_t rows, std::int64_t columns) { return pieces_of(columns, pair_columns(rank, rows, columns)); }

cudaError_t thin_pair(const ThinPair& p, Queue queue);

/// Adds the pieces up in their order: total[i, r], i < outer. Writes, where given:
///   rounded [outer, rank] in rounded_dtype; wide F32 [outer, true_rank] rows wide_stride apart, the rounded value widened;
///   gradient F32 = factor * total (added to it with `add`), at i * outer_stride + r * inner_stride, r < true_rank.
struct ThinSum {
  const float* partial;
  std::int64_t pieces, outer;
  std::int32_t rank, true_rank;
  void* rounded;
  std::int32_t rounded_dtype;
  float* wide;
  std::int64_t wide_stride;
  float* gradient;
  std::int64_t outer_stride, inner_stride;
  float factor;
  bool add;
};
struct ThinSums {
  ThinSum jobs[2];
  int count;
};
cudaError_t thin_sum(const ThinSums& sums, Queue queue);

}  // namespace squareq::cuda
