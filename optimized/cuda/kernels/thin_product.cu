// Thin products: a block of four warps takes 64 of the wide matrix's outer index, up to 64 columns of the thin one and one piece of the sum.
#include "optimized/cuda/kernels/thin_side.cuh"

namespace squareq::cuda {
namespace {

constexpr int kTileBytes = kSide * 128, kThinStages = 3;

template <class T, bool kOverRows>
__global__ void __launch_bounds__(kThinThreads) thin_kernel(const __grid_constant__ ThinProduct p, int piece, bool wide_aligned, bool thin_aligned) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int outer_size = kOverRows ? p.columns : p.rows, depth = kOverRows ? p.rows : p.columns;
  const int outer = blockIdx.x * kSide, first_rank = blockIdx.y * kSide;
  const int begin = blockIdx.z * piece, end = min(depth, begin + piece);
  const int ranks = min(kSide, p.rank - first_rank), slices = (end - begin + kSide - 1) / kSide;
  const unsigned base = shared_address(shared);

  const auto fetch = [&](int slice) {
    if (slice < slices) {
      const unsigned wide = base + slice % kThinStages * 2 * kTileBytes, thin = wide + kTileBytes;
      const int at = begin + slice * kSide;
      if constexpr (kOverRows) {
        load_side<8>(wide, p.wide, p.wide_stride, at, end, outer, p.columns, wide_aligned);
        if (ranks == 16) load_side<2>(thin, p.thin, p.thin_stride, at, end, first_rank, p.rank, thin_aligned);
        else load_side<8>(thin, p.thin, p.thin_stride, at, end, first_rank, p.rank, thin_aligned);
      } else {
        load_side<8>(wide, p.wide, p.wide_stride, outer, p.rows, at, end, wide_aligned);
        load_side<8>(thin, p.thin, p.thin_stride, first_rank, p.rank, at, end, thin_aligned, ranks);
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  wait_for_former();
  let_next_start();
  float sums[8][4] = {};
  for (int slice = 0; slice < kThinStages - 1; ++slice) fetch(slice);
  for (int slice = 0; slice < slices; ++slice) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kThinStages - 2) : "memory");
    __syncthreads();
    fetch(slice + kThinStages - 1);
    const unsigned wide = base + slice % kThinStages * 2 * kTileBytes, thin = wide + kTileBytes;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      unsigned a[4];
      // Matrices 0 to 3 of the left operand: (outer, depth) halves (0,0), (1,0), (0,1), (1,1).
      if constexpr (kOverRows) load_matrices_transposed(a, wide + swizzled_128(16 * step + (lane >> 4) * 8 + (lane & 7), 2 * warp + (lane >> 3 & 1)));
      else load_matrices(a, wide + swizzled_128(16 * warp + (lane >> 3 & 1) * 8 + (lane & 7), 2 * step + (lane >> 4)));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (16 * j >= ranks) break;
        unsigned b[4];
        // Of the right one: (rank, depth) halves (0,0), (0,1), (1,0), (1,1).
        if constexpr (kOverRows) load_matrices_transposed(b, thin + swizzled_128(16 * step + (lane >> 3 & 1) * 8 + (lane & 7), 2 * j + (lane >> 4)));
        else load_matrices(b, thin + swizzled_128(16 * j + (lane >> 4) * 8 + (lane & 7), 2 * step + (lane >> 3 & 1)));
        Multiply<T>::step(sums[2 * j], a, b[0], b[1]);
        Multiply<T>::step(sums[2 * j + 1], a, b[2], b[3]);
      }
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  float* partial = p.partial + static_cast<std::int64_t>(blockIdx.z) * outer_size * p.rank;
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = outer + 16 * warp + 8 * half + (lane >> 2), column = 8 * j + 2 * (lane & 3);
      if (row < outer_size && column < ranks)
        *reinterpret_cast<float2*>(partial + static_cast<std::int64_t>(row) * p.rank + first_rank + column) = make_float2(sums[j][2 * half], sums[j][2 * half + 1]);
    }
}

template <class T, bool kOverRows>
cudaError_t launch_thin(const ThinProduct& p, Queue queue) {
  constexpr int kShared = kThinStages * 2 * kTileBytes;
  const auto kernel = thin_kernel<T, kOverRows>;
  if (const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared); status != cudaSuccess) return status;
  const int outer = kOverRows ? p.columns : p.rows;
  const dim3 grid(static_cast<unsigned>((outer + kSide - 1) / kSide), static_cast<unsigned>((p.rank + kSide - 1) / kSide),
                  static_cast<unsigned>(thin_pieces(kOverRows, p.rows, p.columns)));
  return launch(kernel, grid, kThinThreads, kShared, 1, queue, p, static_cast<int>(thin_piece(kOverRows, p.rows, p.columns)), chunks_aligned(p.wide, p.wide_stride * 2), chunks_aligned(p.thin, p.thin_stride * 2));
}

}  // namespace

cudaError_t thin_product(const ThinProduct& p, Queue queue) {
  if (p.rows == 0 || p.columns == 0) return cudaSuccess;
  if (p.dtype == SQ_BF16) return p.over_rows ? launch_thin<__nv_bfloat16, true>(p, queue) : launch_thin<__nv_bfloat16, false>(p, queue);
  if (p.dtype == SQ_F16) return p.over_rows ? launch_thin<__half, true>(p, queue) : launch_thin<__half, false>(p, queue);
  return cudaErrorInvalidValue;
}

}  // namespace squareq::cuda
