// Products with a thin matrix of the low-rank branch on tensor cores: the wide operand is read once. Plain C++17: nvcc compiles this too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace squareq::cuda {

/// Partial sums in fp32 of `wide` [rows, columns] with a thin matrix of the same dtype (BF16 or F16), in pieces of kThinPiece of what is summed over:
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

inline constexpr std::int32_t kThinPiece = 512;
inline std::int64_t thin_pieces(bool over_rows, std::int64_t rows, std::int64_t columns) { return ((over_rows ? rows : columns) + kThinPiece - 1) / kThinPiece; }

cudaError_t thin_product(const ThinProduct& p, cudaStream_t stream);

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
cudaError_t thin_sum(const ThinSum& job, cudaStream_t stream);

}  // namespace squareq::cuda
