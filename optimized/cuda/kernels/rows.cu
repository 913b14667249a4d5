// Adapters to the activations' dtype, matrices from one dtype to another.
#include "optimized/cuda/kernels/eight.cuh"
#include "optimized/cuda/kernels/launch.cuh"
#include "optimized/cuda/kernels/rows.hpp"

namespace squareq::cuda {
namespace {

__host__ __device__ inline std::int64_t square_tiles(const Rounding& r) { return (r.padded_rows + 31) / 32 * ((r.padded_columns + 31) / 32); }

/// 32 x 32 elements per block of 32 x 8 threads, through shared memory, so that both sides are read and written along their rows.
__global__ void round_matrices_kernel(const __grid_constant__ Roundings roundings) {
  let_next_start();  // at once: the products behind it begin with what the caller brought
  wait_for_former();
  __shared__ float tile[32][33];
  std::int64_t index = blockIdx.x;
  int job = 0;
  for (; index >= square_tiles(roundings.jobs[job]); ++job) index -= square_tiles(roundings.jobs[job]);
  const Rounding& r = roundings.jobs[job];
  const std::int64_t row_tiles = (r.padded_rows + 31) / 32;
  const std::int64_t first_row = index % row_tiles * 32, first_column = index / row_tiles * 32;
  for (int i = threadIdx.y; i < 32; i += 8) {
    const std::int64_t row = r.transposed ? first_row + threadIdx.x : first_row + i, column = r.transposed ? first_column + i : first_column + threadIdx.x;
    const bool inside = row < r.rows && column < r.columns;
    const float value = inside ? (r.transposed ? r.from[column * r.stride + row] : r.from[row * r.stride + column]) : 0.0f;
    tile[r.transposed ? threadIdx.x : i][r.transposed ? i : threadIdx.x] = value;
  }
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8) {
    const std::int64_t row = first_row + i, column = first_column + threadIdx.x;
    if (row < r.padded_rows && column < r.padded_columns) store_any(r.out, roundings.dtype, row * r.padded_columns + column, tile[i][threadIdx.x]);
  }
}

__global__ void copy_matrix_kernel(Rows from, Rows target) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < from.rows * from.columns; i += step) {
    const std::int64_t row = i / from.columns, column = i % from.columns;
    store_any(target.data, target.dtype, row * target.row_stride + column, load_any(from.data, from.dtype, row * from.row_stride + column));
  }
}

}  // namespace

cudaError_t round_matrices(const Roundings& roundings, Queue queue) {
  std::int64_t tiles = 0;
  for (int i = 0; i < roundings.count; ++i) tiles += square_tiles(roundings.jobs[i]);
  if (tiles == 0) return cudaSuccess;
  return launch(round_matrices_kernel, static_cast<unsigned>(tiles), dim3(32, 8), 0, 1, queue, roundings);
}

cudaError_t copy_matrix(const Rows& from, const Rows& target, cudaStream_t stream) {
  if (from.rows * from.columns == 0) return cudaSuccess;
  copy_matrix_kernel<<<grid_for(from.rows * from.columns, kThreads), kThreads, 0, stream>>>(from, target);
  return cudaGetLastError();
}

}  // namespace squareq::cuda
