// Matrix products and what is done to them before they are stored, as the host code asks for them. Plain C++17: nvcc compiles this too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

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
  const float* bias = nullptr;
  std::int32_t activation = 0;        // sq_activation
  bool add = false;                   // y, then F32, is added to
  Output y, preactivation;
};

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
};

/// Tensor cores through mma.sync, every architecture; any address and stride. token_tile: 64 or 128 rows per block.
cudaError_t mma_product(const WeightProduct& p, int token_tile, cudaStream_t stream);

/// Tensor cores through wgmma fed by TMA, compute capability 9.0 only: both operands must start at, and have rows at, multiples of 16 bytes.
/// token_tile: 64, 128 or 256. cudaErrorNotSupported where the driver offers no tensor maps.
cudaError_t wgmma_product(const WeightProduct& p, int token_tile, cudaStream_t stream);

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
