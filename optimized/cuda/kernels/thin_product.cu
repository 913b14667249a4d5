// Thin products: a block of four warps takes 64 of the wide matrix's outer index, up to 64 columns of the thin one and one piece of the sum.
#include "optimized/cuda/kernels/fragment.cuh"
#include "optimized/cuda/kernels/launch.cuh"
#include "optimized/cuda/kernels/thin_product.hpp"

namespace squareq::cuda {
namespace {

constexpr int kThinThreads = 128, kSide = 64;  // four warps; of a tile of the wide matrix

/// kRankTiles (1, 2, 4) times 16 columns of the thin matrix at most: down 128-byte rows, or along rows of 32 bytes each.
template <bool kOverRows, int kRankTiles>
struct ThinShared {
  static constexpr int kThinPitch = kOverRows ? 32 * kRankTiles : 128, kThinRows = kOverRows ? kSide : 16 * kRankTiles;
  static constexpr int kWide = kSide * 128, kStage = kWide + kThinRows * kThinPitch;
  static constexpr int kStages = kRankTiles == 1 ? 5 : kRankTiles == 2 ? 4 : 3, kBytes = kStages * kStage;  // for four blocks of a multiprocessor

  __device__ static unsigned thin(int row, int chunk) {
    return kWide + (kThinPitch == 32 ? swizzled_32(row, chunk) : kThinPitch == 64 ? swizzled_64(row, chunk) : swizzled_128(row, chunk));
  }
};

template <class T, bool kOverRows, int kRankTiles>
__global__ void __launch_bounds__(kThinThreads) thin_kernel(const __grid_constant__ ThinProduct p, int piece, bool wide_aligned, bool thin_aligned) {
  using Shared = ThinShared<kOverRows, kRankTiles>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int outer_size = kOverRows ? p.columns : p.rows, depth = kOverRows ? p.rows : p.columns;
  const int outer = blockIdx.x * kSide, first_rank = blockIdx.y * kSide;
  const int begin = blockIdx.z * piece, end = min(depth, begin + piece);
  const int ranks = min(16 * kRankTiles, p.rank - first_rank), slices = (end - begin + kSide - 1) / kSide;
  const unsigned base = shared_address(shared);

  using Wide = TileCopy<kThinThreads, 8, kSide>;
  using Thin = TileCopy<kThinThreads, Shared::kThinPitch / 16, Shared::kThinRows>;
  const Wide wide_copy(p.wide, p.wide_stride * 2, kOverRows ? end : p.rows, 2 * (kOverRows ? p.columns : end), wide_aligned);
  const Thin thin_copy(p.thin, p.thin_stride * 2, kOverRows ? end : p.rank, 2 * (kOverRows ? p.rank : end), thin_aligned, kOverRows ? kSide : ranks);
  const unsigned wide_to = swizzled_128(Wide::first_row(), Wide::chunk()), thin_to = Shared::thin(Thin::first_row(), Thin::chunk());
  const auto next = [&](unsigned stage) { return stage + Shared::kStage == base + Shared::kBytes ? base : stage + Shared::kStage; };
  const auto fetch_wide = [&](int slice, unsigned stage) {
    const int at = begin + slice * kSide;
    if (slice < slices) wide_copy.copy(stage + wide_to, kOverRows ? at : outer, 2 * (kOverRows ? outer : at), 128);
  };
  /// Behind fetch_wide() of the same slice.
  const auto fetch_thin = [&](int slice, unsigned stage) {
    const int at = begin + slice * kSide;
    if (slice < slices) thin_copy.copy(stage + thin_to, kOverRows ? at : first_rank, 2 * (kOverRows ? first_rank : at), Shared::kThinPitch);
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  // Where a lane's rows lie. Matrices 0 to 3 of the left operand: (outer, depth) halves (0,0), (1,0), (0,1), (1,1); of the right one: (rank, depth)
  // halves (0,0), (0,1), (1,0), (1,1). Depth runs down the rows of transposed matrices, along the rows of the others, where chunks are exclusive-ored.
  const int low = lane & 7, second = lane >> 3 & 1, fourth = lane >> 4;
  const unsigned left = kOverRows ? swizzled_128(fourth * 8 + low, 2 * warp + second) : swizzled_128(16 * warp + second * 8 + low, fourth);
  const unsigned right = kOverRows ? Shared::thin(second * 8 + low, fourth) : Shared::thin(fourth * 8 + low, second);

  if (!p.wide_brought) wait_for_former();
  for (int slice = 0; slice < Shared::kStages - 1; ++slice) fetch_wide(slice, base + slice * Shared::kStage);
  wait_for_former();
  let_next_start();
  for (int slice = 0; slice < Shared::kStages - 1; ++slice) fetch_thin(slice, base + slice * Shared::kStage);
  float sums[2 * kRankTiles][4] = {};
  unsigned stage = base, filled = base + (Shared::kStages - 1) * Shared::kStage;
  for (int slice = 0; slice < slices; ++slice, stage = next(stage), filled = next(filled)) {
    asm volatile("cp.async.wait_group %0;" ::"n"(Shared::kStages - 2) : "memory");
    __syncthreads();
    fetch_wide(slice + Shared::kStages - 1, filled);
    fetch_thin(slice + Shared::kStages - 1, filled);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      unsigned a[4];
      if constexpr (kOverRows) load_matrices_transposed(a, stage + left + 16 * step * 128);
      else load_matrices(a, (stage + left) ^ (32 * step));
#pragma unroll
      for (int j = 0; j < kRankTiles; ++j) {
        if (kRankTiles == 4 && 16 * j >= ranks) break;
        unsigned b[4];
        if constexpr (kOverRows) load_matrices_transposed(b, (stage + right + 16 * step * Shared::kThinPitch) ^ (32 * j));
        else load_matrices(b, ((stage + right) ^ (32 * step)) + 16 * j * 128);
        Multiply<T>::step(sums[2 * j], a, b[0], b[1]);
        Multiply<T>::step(sums[2 * j + 1], a, b[2], b[3]);
      }
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  float* partial = p.partial + static_cast<std::int64_t>(blockIdx.z) * outer_size * p.rank;
#pragma unroll
  for (int j = 0; j < 2 * kRankTiles; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = outer + 16 * warp + 8 * half + (lane >> 2), column = 8 * j + 2 * (lane & 3);
      if (row < outer_size && column < ranks)
        *reinterpret_cast<float2*>(partial + static_cast<std::int64_t>(row) * p.rank + first_rank + column) = make_float2(sums[j][2 * half], sums[j][2 * half + 1]);
    }
}

template <class T, bool kOverRows, int kRankTiles>
cudaError_t launch_thin(const ThinProduct& p, Queue queue) {
  constexpr int kShared = ThinShared<kOverRows, kRankTiles>::kBytes;
  const auto kernel = thin_kernel<T, kOverRows, kRankTiles>;
  if (const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared); status != cudaSuccess) return status;
  const int outer = kOverRows ? p.columns : p.rows;
  const dim3 grid(static_cast<unsigned>((outer + kSide - 1) / kSide), static_cast<unsigned>((p.rank + kSide - 1) / kSide),
                  static_cast<unsigned>(thin_pieces(kOverRows, p.rows, p.columns)));
  return launch(kernel, grid, kThinThreads, kShared, 1, queue, p, static_cast<int>(thin_piece(kOverRows, p.rows, p.columns)), chunks_aligned(p.wide, p.wide_stride * 2), chunks_aligned(p.thin, p.thin_stride * 2));
}

template <class T>
cudaError_t launch_thin(const ThinProduct& p, Queue queue) {
  switch (p.rank) {
    case 16: return p.over_rows ? launch_thin<T, true, 1>(p, queue) : launch_thin<T, false, 1>(p, queue);
    case 32: return p.over_rows ? launch_thin<T, true, 2>(p, queue) : launch_thin<T, false, 2>(p, queue);
    default: return p.over_rows ? launch_thin<T, true, 4>(p, queue) : launch_thin<T, false, 4>(p, queue);
  }
}

}  // namespace

cudaError_t thin_product(const ThinProduct& p, Queue queue) {
  if (p.rows == 0 || p.columns == 0) return cudaSuccess;
  if (p.dtype == SQ_BF16) return launch_thin<__nv_bfloat16>(p, queue);
  if (p.dtype == SQ_F16) return launch_thin<__half>(p, queue);
  return cudaErrorInvalidValue;
}

}  // namespace squareq::cuda
