// Products in fp32 FMAs for what tensor cores would round: F32 activations, and gradients whose range 16 bits cannot hold. One block makes
// 64 x 64 sums, a thread 4 x 4.
#include "optimized/cuda/kernels/finish.cuh"

namespace squareq::cuda {
namespace {

constexpr int kTile = 64, kStep = 16, kPitch = kTile + 4;

/// to[inner][outer] = operand(first + outer, depth + inner), zero outside.
__device__ void load_slice(const Operand& from, int first, int outer, int begin, int depth, float (*to)[kPitch]) {
  for (int i = threadIdx.x; i < kTile * kStep; i += kThreads) {
    // Neighbouring lanes read neighbouring addresses, whichever way the operand lies.
    const int o = from.inner_stride == 1 ? i / kStep : i % kTile, d = from.inner_stride == 1 ? i % kStep : i / kTile;
    const bool inside = first + o < outer && begin + d < depth;
    to[d][o] = inside ? load_any(from.data, from.dtype, (first + o) * from.outer_stride + (begin + d) * from.inner_stride) : 0.0f;
  }
}

__device__ float branch(const Finish& f, int row, int column) {
  float sum = 0;
  for (int r = 0; r < f.rank; ++r)
    sum = __fmaf_rn(load_any(f.low_rows, f.low_dtype, static_cast<std::int64_t>(row) * f.rank + r),
                    load_any(f.low_columns, f.low_dtype, static_cast<std::int64_t>(column) * f.rank + r), sum);
  return sum;
}

__global__ void __launch_bounds__(kThreads) product(Operand left, Operand right, int rows, int columns, int depth, int row_tiles, Finish f) {
  __shared__ float a[kStep][kPitch], b[kStep][kPitch];
  __shared__ __align__(16) float tile[kTile][kPitch];
  const int first_row = blockIdx.x % row_tiles * kTile, first_column = blockIdx.x / row_tiles * kTile;
  const int my_row = threadIdx.x / 16 * 4, my_column = threadIdx.x % 16 * 4;
  float sum[4][4] = {};
  for (int d = 0; d < depth; d += kStep) {
    load_slice(left, first_row, rows, d, depth, a);
    load_slice(right, first_column, columns, d, depth, b);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kStep; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = __fmaf_rn(a[k][my_row + i], b[k][my_column + j], sum[i][j]);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = first_row + my_row + i, column = first_column + my_column + j;
      if (f.rank && row < rows && column < columns) sum[i][j] = __fmaf_rn(f.scaling, branch(f, row, column), scaled(f, sum[i][j], row, column));
      tile[my_row + i][my_column + j] = sum[i][j];
    }
  __syncthreads();
  store_tile<kTile, kTile, kThreads>(f, &tile[0][0], kPitch, first_row, first_column, rows, columns, threadIdx.x);
}

}  // namespace

cudaError_t plain_product(const Operand& left, const Operand& right, std::int32_t rows, std::int32_t columns, std::int32_t depth, const Finish& finish,
                          cudaStream_t stream) {
  if (rows == 0 || columns == 0) return cudaSuccess;
  const int row_tiles = (rows + kTile - 1) / kTile, column_tiles = (columns + kTile - 1) / kTile;
  product<<<static_cast<unsigned>(row_tiles) * static_cast<unsigned>(column_tiles), kThreads, 0, stream>>>(left, right, rows, columns, depth, row_tiles, finish);
  return cudaGetLastError();
}

}  // namespace squareq::cuda
