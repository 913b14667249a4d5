// Matrix products and what is done to them before they are stored, as the host code asks for them. Plain C++17: nvcc compiles this too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "optimized/cuda/kernels/queue.hpp"

namespace squareq::cuda {

/// Where values go: rows `stride` elements apart, F32, BF16 or F16. data null: nowhere.
struct Output {
  void* data = nullptr;
  std::int32_t dtype = 0;
  std::int64_t stride = 0;
};

/// What happens to a sum of products before it is stored, in this order, all in fp32:
///   v = sum * factor * row_scale[row] * column_scale[column] + scaling * sum_r low_rows[row, r] low_columns[column, r] + bias[column]
///   preactivation = v, y = activation(v), each rounded once. Null pointers leave a factor or a term out.
struct Finish {
  float factor = 1;
  const float* row_scale = nullptr;
  const float* column_scale = nullptr;
  const void* low_rows = nullptr;     // [rows, rank], rows `rank` elements apart
  const void* low_columns = nullptr;  // [columns, rank]
  std::int32_t low_dtype = 0;         // BF16 or F16 (rank a multiple of 16, zeros beyond the true one), or F32
  std::int32_t rank = 0;              // 0: no branch
  float scaling = 0;
  bool exact_scaling = false;         // low_columns times scaling is exact in low_dtype
  const float* bias = nullptr;
  std::int32_t activation = 0;        // sq_activation
  bool add = false;                   // y, then F32, is added to
  Output y, preactivation;
};

/// How the wgmma kernel shares a product out: tiles of `rows` by 2 x 128 features over clusters of two blocks. The slices of the first `tiles` tiles
/// are shared out evenly, so that a tile may have parts in several clusters; the rest go to one cluster each.
struct WorkSplit {
  std::int32_t rows = 0, clusters = 0, tiles = 0;
  std::int32_t share = 0, longer = 0;  // slices of the split tiles per cluster; the first `longer` clusters have one more
  std::uint32_t reciprocal = 0;        // ceil(2^32 / slices of a tile): a multiplication finds the tile of a slice
  void* partial = nullptr;      // with tiles > 0: split_bytes() of workspace
  unsigned* arrived = nullptr;  // split_flags() of them, zero before the launch
};
inline std::int64_t split_bytes(const WorkSplit& s) { return s.tiles ? std::int64_t{s.clusters} * s.rows * 256 * 4 : 0; }
inline std::int64_t split_flags(const WorkSplit& s) { return s.tiles ? std::int64_t{s.clusters} * 4 : 0; }

/// sum over depth of activations[row, d] * weight(column, d). `transposed` false: weight is [columns, depth] (forward); true: it is
/// [depth, columns] (dX), from the same bytes. Codes that meet a transposed weight lie in the order of gradient_rows().
struct WeightProduct {
  const void* activations;
  std::int32_t dtype;  // BF16, F16 or I8
  std::int64_t activation_stride;
  const std::int8_t* weight;
  std::int64_t weight_stride;
  bool transposed;
  std::int32_t rows, columns, depth;
  std::int32_t activation_depth;  // columns of the activations that may be read: depth, or whole groups of 16 where codes are permuted
  Finish finish;
  const float* depth_scale = nullptr;  // [depth], wgmma on a transposed weight in BF16 only: multiplies the weight's codes, rounded once
  WorkSplit split;                     // wgmma only
  bool made = false;                   // the activations were made by this call: not there before wait_for_former()
};

/// Tensor cores through mma.sync, every architecture; any address and stride. token_tile: 64 or 128 rows per block.
cudaError_t mma_product(const WeightProduct& p, int token_tile, cudaStream_t stream);

/// Tensor cores through wgmma fed by TMA, compute capability 9.0 only: both operands must start at, and have rows at, multiples of 16 bytes.
/// split.rows: 64, 128 or 256. cudaErrorNotSupported where the driver offers no tensor maps.
cudaError_t wgmma_product(const WeightProduct& p, Queue queue);

/// An operand of the plain product: element (outer, inner) lies at outer * outer_stride + inner * inner_stride.
struct Operand {
  const void* data;
  std::int32_t dtype;  // F32, BF16, F16 or I8
  std::int64_t outer_stride, inner_stride;
};

/// sum over depth of left(row, d) * right(column, d) in fp32 FMAs, in ascending order of d; depth may be 0.
cudaError_t plain_product(const Operand& left, const Operand& right, std::int32_t rows, std::int32_t columns, std::int32_t depth, const Finish& finish,
                          cudaStream_t stream);

}  // namespace squareq::cuda
