// Products with a thin matrix of the low-rank branch on tensor cores: the wide operand is read once. Plain C++17: nvcc compiles this too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "optimized/cuda/kernels/queue.hpp"

namespace squareq::cuda {

inline std::int64_t pieces_of(std::int64_t total, std::int64_t piece) { return (total + piece - 1) / piece; }

/// How many tiles of 64 of a sum of `tiles` a block takes where `outer` blocks share each piece: so that the turns of `places` blocks at a time take
/// least, a block's start and end counted as two tiles. By shape alone: the same call has the same bits on every device.
inline std::int64_t tiles_per_piece(std::int64_t outer, std::int64_t tiles, std::int64_t places) {
  std::int64_t best = 0, least = 0;
  for (int turns = 1; turns <= 4; ++turns) {
    const std::int64_t wanted = turns * places / (outer > 0 ? outer : 1), pieces = wanted < 1 ? 1 : wanted;
    const std::int64_t each = pieces_of(tiles, pieces) < 2 ? 2 : pieces_of(tiles, pieces);
    const std::int64_t time = pieces_of(outer * pieces_of(tiles, each), places) * (each + 2);
    if (!best || time < least) best = each, least = time;
  }
  return best;
}

/// Partial sums in fp32 of `wide` [rows, columns] with a thin matrix of the same dtype (BF16 or F16), in pieces of thin_piece() of what is summed over:
///   over_rows false: partial[piece][row, r]    = sum_c wide[row, c] thin[r, c]     thin is [rank, >= columns]
///   over_rows true:  partial[piece][column, r] = sum_m wide[m, column] thin[m, r]  thin is [rows, rank]
/// rank is a multiple of 16; partial holds thin_pieces() matrices of rank columns. wide_brought: `wide` is the caller's, not made by the call's kernels, so
/// it is read before they are done.
struct ThinProduct {
  const void* wide;
  const void* thin;
  std::int32_t dtype;
  std::int64_t wide_stride, thin_stride;
  bool over_rows;
  std::int32_t rows, columns, rank;
  float* partial;
  bool wide_brought;
};

inline constexpr std::int64_t kThinPlaces = 528;  // four blocks on each of an H200's multiprocessors
inline std::int64_t thin_piece(bool over_rows, std::int64_t rows, std::int64_t columns) {
  return 64 * tiles_per_piece(pieces_of(over_rows ? columns : rows, 64), pieces_of(over_rows ? rows : columns, 64), kThinPlaces);
}
inline std::int64_t thin_pieces(bool over_rows, std::int64_t rows, std::int64_t columns) {
  return pieces_of(over_rows ? rows : columns, thin_piece(over_rows, rows, columns));
}

cudaError_t thin_product(const ThinProduct& p, Queue queue);

/// Both products of the gradients `wide` [rows, columns] with the branch, `wide` read once:
///   partial_d[column piece][row, r]    = sum_c wide[row, c] adapter[r, c]    adapter is [rank, >= columns], the rounded B
///   partial_b[row piece][column, r]    = sum_m wide[m, column] h[m, r]       h is [rows, rank], at a multiple of 16 bytes
/// All of one dtype, BF16 or F16; rank 16 or 32. wide_brought as above.
struct ThinPair {
  const void* wide;
  const void* adapter;
  const void* h;
  std::int32_t dtype;
  std::int64_t wide_stride, adapter_stride;
  std::int32_t rows, columns, rank;
  float *partial_d, *partial_b;
  bool wide_brought;
};

inline constexpr std::int64_t kLargestPairRank = 32, kFewPairRows = 128, kPairPlaces = 396;  // three blocks on each of an H200's multiprocessors
/// Rows of a piece: as many as the registers hold sums of, fewer where the device would not be filled.
inline std::int64_t pair_rows(std::int64_t rank, std::int64_t rows) { return rows <= 2048 ? kFewPairRows : 8192 / rank; }
inline std::int64_t pair_row_pieces(std::int64_t rank, std::int64_t rows) { return pieces_of(rows, pair_rows(rank, rows)); }
inline std::int64_t pair_columns(std::int64_t rank, std::int64_t rows, std::int64_t columns) {
  return 64 * tiles_per_piece(pair_row_pieces(rank, rows), pieces_of(columns, 64), kPairPlaces);
}
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
