// A product on tensor cores through mma.sync, fed by cp.async: 128 features by kRows rows per block of eight warps, each 32 features by half of
// the rows. Included once per activation dtype, so that these compile side by side.
#pragma once

#include "optimized/cuda/kernels/fragment.cuh"

namespace squareq::cuda {
namespace {

template <class T, bool kTransposed, int kRows>
struct MmaTile {
  static constexpr int kActivationBytes = kRows * kRowBytes;
  static constexpr int kWeightBytes = kFeatures * kDepth<T>;
  static constexpr int kStage = kActivationBytes + kWeightBytes;
  static constexpr int kStages = 3;  // fits the 99 KiB that the smallest of these devices gives a block
  static constexpr int kSums = kRows * kTilePitch * 4;
  static constexpr int kShared = kStages * kStage > kSums ? kStages * kStage : kSums;

  using Activations = TileCopy<kThreads, kRowBytes / 16, kRows>;
  using Weight = TileCopy<kThreads, kWeightRow<T, kTransposed> / 16, kWeightBytes / kWeightRow<T, kTransposed>>;
};

template <class T, bool kTransposed, int kRows>
__global__ void __launch_bounds__(kThreads, 2) mma_kernel(const __grid_constant__ WeightProduct p, int row_tiles, bool activations_aligned, bool weight_aligned) {
  using Tile = MmaTile<T, kTransposed, kRows>;
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int kRowGroups = kRows / 16;  // of 8 rows, per warp
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int feature_group = warp / 2 * 2, first_group = warp % 2 * kRowGroups;
  const int first_row = static_cast<int>(blockIdx.x % row_tiles) * kRows, first_feature = static_cast<int>(blockIdx.x / row_tiles) * kFeatures;
  const unsigned base = shared_address(shared);
  const int slices = (p.depth + kDepth<T> - 1) / kDepth<T>;

  typename Multiply<T>::Sum sums[2][kRowGroups][4] = {};
  using Activations = typename Tile::Activations;
  using WeightCopy = typename Tile::Weight;
  const Activations activation_copy(p.activations, p.activation_stride * static_cast<int>(sizeof(T)), p.rows, p.activation_depth * static_cast<int>(sizeof(T)), activations_aligned);
  const WeightCopy weight_copy(p.weight, p.weight_stride, kTransposed ? p.depth : p.columns, kTransposed ? p.columns : p.depth, weight_aligned);
  const unsigned activations_to = swizzled_128(Activations::first_row(), Activations::chunk());
  const unsigned weight_to = Tile::kActivationBytes + weight_offset<T, kTransposed>(WeightCopy::first_row(), WeightCopy::chunk());
  const auto fetch = [&](int slice, unsigned stage) {
    if (slice < slices) {
      const int depth = slice * kDepth<T>;
      activation_copy.copy(stage + activations_to, first_row, depth * static_cast<int>(sizeof(T)), kRowBytes);
      weight_copy.copy(stage + weight_to, kTransposed ? depth : first_feature, kTransposed ? first_feature : depth, kWeightRow<T, kTransposed>);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  const auto next = [&](unsigned stage) { return stage + Tile::kStage == base + Tile::kStages * Tile::kStage ? base : stage + Tile::kStage; };

  using Fragment = WeightFragment<T, kTransposed>;
  unsigned weight_at[2][Fragment::kPlaces];
#pragma unroll
  for (int i = 0; i < 2; ++i) Fragment::place(weight_at[i], feature_group + i, 0, lane);
  const unsigned activations_at = swizzled_128(8 * first_group + (lane >> 4) * 8 + (lane & 7), lane >> 3 & 1);
  for (int slice = 0; slice < Tile::kStages - 1; ++slice) fetch(slice, base + slice * Tile::kStage);
  unsigned stage = base, filled = base + (Tile::kStages - 1) * Tile::kStage;
  for (int slice = 0; slice < slices; ++slice, stage = next(stage), filled = next(filled)) {
    asm volatile("cp.async.wait_group %0;" ::"n"(Tile::kStages - 2) : "memory");
    __syncthreads();
    fetch(slice + Tile::kStages - 1, filled);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      unsigned a[2][4], b[kRowGroups / 2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        unsigned at[Fragment::kPlaces], raw[Fragment::kWords];
#pragma unroll
        for (int place = 0; place < Fragment::kPlaces; ++place) at[place] = Fragment::further(weight_at[i][place], step);
        Fragment::load(raw, stage + Tile::kActivationBytes, at);
        Fragment::convert(a[i], raw);
      }
#pragma unroll
      for (int j = 0; j < kRowGroups / 2; ++j) load_matrices(b[j], ((stage + activations_at) ^ (32 * step)) + 16 * j * kRowBytes);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < kRowGroups; ++j) Multiply<T>::step(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  auto* tile = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < kRowGroups; ++j)
      stage_fragment<kTransposed>(tile, sums[i][j], feature_group + i, first_group + j, lane);
  for (int i = 0; i < 2 && p.finish.rank; ++i)
    add_branch<kTransposed, kRowGroups>(p.finish, tile, feature_group + i, first_group, first_feature, first_row, p.columns, p.rows, lane);
  __syncthreads();
  store_tile<kRows, kFeatures, kThreads>(p.finish, tile, kTilePitch, first_row, first_feature, p.rows, p.columns, threadIdx.x);
}

template <class T, bool kTransposed, int kRows>
cudaError_t launch_mma(const WeightProduct& p, cudaStream_t stream) {
  constexpr int kShared = MmaTile<T, kTransposed, kRows>::kShared;
  const auto kernel = mma_kernel<T, kTransposed, kRows>;
  if (const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared); status != cudaSuccess) return status;
  const int row_tiles = (p.rows + kRows - 1) / kRows, feature_tiles = (p.columns + kFeatures - 1) / kFeatures;
  kernel<<<static_cast<unsigned>(row_tiles) * static_cast<unsigned>(feature_tiles), kThreads, kShared, stream>>>(
      p, row_tiles, chunks_aligned(p.activations, p.activation_stride * static_cast<int>(sizeof(T))), chunks_aligned(p.weight, p.weight_stride));
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_mma(const WeightProduct& p, int token_tile, cudaStream_t stream) {
  if (token_tile == 64) return p.transposed ? launch_mma<T, true, 64>(p, stream) : launch_mma<T, false, 64>(p, stream);
  if (token_tile == 128) return p.transposed ? launch_mma<T, true, 128>(p, stream) : launch_mma<T, false, 128>(p, stream);
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace squareq::cuda
