// A product on Hopper's warpgroup tensor cores: a block makes 128 features by kRows rows, in two warpgroups of 64 features each, from a ring of stages
// that TMA fills. Codes are converted in registers. Blocks of 256 rows have the multiprocessor to themselves: a warpgroup converts its next slice
// while the last one is multiplied, and a third warpgroup feeds the ring. Smaller blocks share it by two: one converts while the other multiplies,
// and the first thread feeds. Two blocks with the same rows form a cluster: each loads half of the activations into both.
#pragma once

#include "optimized/cuda/kernels/warpgroup.cuh"
#include "optimized/cuda/kernels/wgmma_product.hpp"

namespace squareq::cuda {
namespace {

constexpr int kGroupThreads = 128, kConsumerThreads = 2 * kGroupThreads;

/// Blocks that share a multiprocessor, and what each may take of its shared memory.
template <int kRows>
inline constexpr int kBlocks = kRows == 256 ? 1 : 2;
template <int kRows>
inline constexpr int kBlockThreads = kBlocks<kRows> == 1 ? 3 * kGroupThreads : kConsumerThreads;
template <int kRows>
inline constexpr int kSharedBytes = kBlocks<kRows> == 1 ? 227 * 1024 : 113 * 1024;

template <class T, int kRows>
struct WgmmaTile {
  static constexpr int kActivationBytes = kRows * kRowBytes;
  static constexpr int kWeightBytes = kFeatures * kDepth<T>;
  static constexpr int kStage = kActivationBytes + kWeightBytes;
  static constexpr int kStages = (kSharedBytes<kRows> - 2048) / kStage;
  static constexpr int kLag = kStages > 3 ? 2 : 1;  // a stage is refilled this many slices after the one it held
  static constexpr int kBarriers = kStages * kStage;  // offset of the barriers
  static constexpr int kShared = kBarriers + 16 * kStages + 1024;  // and up to 1023 bytes to start at a multiple of 1024
  static_assert(kRows * kTilePitch * 4 <= kBarriers, "the tile of sums takes the place of the stages");
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ inline void init_barrier(unsigned barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ inline void wait_barrier(unsigned barrier, unsigned parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;}" ::"r"(barrier), "r"(parity) : "memory");
}

__device__ inline void expect_bytes(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/// Arrives at the same barrier of block `rank` of the cluster. What the arrival releases is a place to write to, so block scope is enough; a release
/// at cluster scope would cost a fence of the whole device.
__device__ inline void arrive_at(unsigned barrier, unsigned rank) {
  asm volatile(
      "{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(barrier), "r"(rank) : "memory");
}

__device__ inline void sync_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed; barrier.cluster.wait.acquire;" ::: "memory");
}

__device__ inline void fetch_box(unsigned to, const CUtensorMap* map, int column, int row, unsigned barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
               "l"(map), "r"(column), "r"(row), "r"(barrier)
               : "memory");
}

__device__ inline void fetch_box_for_cluster(unsigned to, const CUtensorMap* map, int column, int row, unsigned barrier) {
  const unsigned short everyone = (1u << kClusterSize) - 1;
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::
          "r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(everyone)
      : "memory");
}

__device__ inline void sync_consumers() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory"); }

/// Rows of 128 bytes, swizzled over 128 bytes, groups of 8 rows 1024 bytes apart.
__device__ inline std::uint64_t descriptor(unsigned address) {
  return static_cast<std::uint64_t>((address & 0x3FFFF) >> 4) | std::uint64_t{1} << 16 | std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

__device__ inline void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ void wait_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory"); }

/// What the one thread that feeds the block does.
template <class T, bool kTransposed, int kRows>
struct Feed {
  using Tile = WgmmaTile<T, kRows>;
  const ProductMaps& maps;
  unsigned base, rank;
  int slices, first_row, first_feature;

  /// Waits until every warpgroup of the cluster is done with a slice.
  __device__ void wait_empty(int slice) const { wait_barrier(base + Tile::kBarriers + 16 * (slice % Tile::kStages) + 8, slice / Tile::kStages & 1); }

  __device__ void fetch(int slice) const {
    constexpr int kPart = kRows / kClusterSize;
    const int stage = slice % Tile::kStages, depth = slice * kDepth<T>, part = static_cast<int>(rank) * kPart;
    const unsigned full = base + Tile::kBarriers + 16 * stage, to = base + stage * Tile::kStage;
    expect_bytes(full, Tile::kStage);
    fetch_box_for_cluster(to + part * kRowBytes, &maps.activations, depth, first_row + part, full);
    fetch_box(to + Tile::kActivationBytes, &maps.weight, kTransposed ? first_feature : depth, kTransposed ? depth : first_feature, full);
  }
  /// All slices, from a warpgroup of its own.
  __device__ void run() const {
    for (int slice = 0; slice < slices; ++slice) {
      if (slice >= Tile::kStages) wait_empty(slice - Tile::kStages);
      fetch(slice);
    }
  }
  /// As many as there are stages; the rest follows in refill(), from a thread that multiplies as well.
  __device__ void start() const {
    for (int slice = 0; slice < min(slices, Tile::kStages); ++slice) fetch(slice);
  }
  /// While `slice` is being multiplied: the stage of the slice kLag before it takes its next one.
  __device__ void refill(int slice) const {
    const int done = slice - Tile::kLag;
    if (done < 0 || done + Tile::kStages >= slices) return;
    wait_empty(done);
    fetch(done + Tile::kStages);
  }
  /// The block stays until nobody will arrive at its barriers any more.
  __device__ void finish() const {
    for (int slice = max(0, slices - Tile::kStages); slice < slices; ++slice) wait_empty(slice);
  }
};

template <class T, bool kTransposed, int kRows>
__device__ void multiply_tile(const WeightProduct& p, const Feed<T, kTransposed, kRows>& feed, unsigned char* shared) {
  using Tile = WgmmaTile<T, kRows>;
  constexpr int kRowGroups = kRows / 8;
  const int thread = threadIdx.x, lane = threadIdx.x % 32, feature_group = thread / 32;
  const unsigned base = feed.base;
  const int slices = feed.slices, first_row = feed.first_row, first_feature = feed.first_feature;
  typename Multiply<T>::Sum sums[kRowGroups][4] = {};

  const auto load = [&](unsigned (&to)[kSteps][4], int slice) {
    const int stage = slice % Tile::kStages;
    wait_barrier(base + Tile::kBarriers + 16 * stage, slice / Tile::kStages & 1);
    const unsigned weight = base + stage * Tile::kStage + Tile::kActivationBytes;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) WeightFragment<T, kTransposed>::load(to[step], weight, feature_group, step, lane);
  };
  const auto release = [&](int slice) {
    if (thread % kGroupThreads < kClusterSize) arrive_at(base + Tile::kBarriers + 16 * (slice % Tile::kStages) + 8, thread % kGroupThreads);
  };
  const auto multiply = [&](const unsigned (&codes)[kSteps][4], int slice) {
    const std::uint64_t activations = descriptor(base + slice % Tile::kStages * Tile::kStage);
    fence_registers();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) WarpgroupMultiply<T, kRows>::step(sums, codes[step], activations + 2 * step);
    commit_products();
  };
  if constexpr (kBlocks<kRows> == 1) {
    unsigned a[2][kSteps][4];
    const auto turn = [&](const unsigned (&mine)[kSteps][4], unsigned (&next)[kSteps][4], int slice) {
      multiply(mine, slice);
      wait_products<1>();
      if (slice > 0) release(slice - 1);
      if (slice + 1 < slices) load(next, slice + 1);
    };
    load(a[0], 0);
    for (int slice = 0; slice < slices; slice += 2) {
      turn(a[0], a[1], slice);
      if (slice + 1 < slices) turn(a[1], a[0], slice + 1);
    }
    wait_products<0>();
    release(slices - 1);
  } else {
    unsigned a[kSteps][4];
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
      load(a, slice);
      multiply(a, slice);
      if (thread == 0) feed.refill(slice);
      __syncwarp();
      wait_products<0>();
      release(slice);
    }
  }
  if (kBlocks<kRows> > 1 && thread == 0) feed.finish();
  sync_consumers();  // the tile of sums takes the place of the stages

  auto* tile = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int j = 0; j < kRowGroups; ++j) stage_fragment<kTransposed>(tile, sums[j], feature_group, j, lane);
  if (p.finish.rank) add_branch<kTransposed, kRowGroups>(p.finish, tile, feature_group, 0, first_feature, first_row, p.columns, p.rows, lane);
  sync_consumers();
  store_tile<kRows, kFeatures, kConsumerThreads>(p.finish, tile, kTilePitch, first_row, first_feature, p.rows, p.columns, thread);
}

#endif

template <class T, bool kTransposed, int kRows>
__global__ void __launch_bounds__(kBlockThreads<kRows>, kBlocks<kRows>)
    wgmma_kernel(const __grid_constant__ ProductMaps maps, const __grid_constant__ WeightProduct p, int row_tiles) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Tile = WgmmaTile<T, kRows>;
  extern __shared__ unsigned char raw[];
  const unsigned base = (shared_address(raw) + 1023) / 1024 * 1024;
  unsigned char* shared = raw + (base - shared_address(raw));
  const unsigned rank = blockIdx.x % kClusterSize;
  const int cluster = static_cast<int>(blockIdx.x / kClusterSize);
  const int first_row = cluster % row_tiles * kRows, first_feature = (cluster / row_tiles * kClusterSize + static_cast<int>(rank)) * kFeatures;
  const int slices = (p.depth + kDepth<T> - 1) / kDepth<T>;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      init_barrier(base + Tile::kBarriers + 16 * stage, 1);
      init_barrier(base + Tile::kBarriers + 16 * stage + 8, 2 * kClusterSize);  // both warpgroups of every block
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  sync_cluster();  // every block's barriers are ready before anyone arrives at them
  const Feed<T, kTransposed, kRows> feed{maps, base, rank, slices, first_row, first_feature};
  if constexpr (kBlocks<kRows> > 1) {
    if (threadIdx.x == 0) feed.start();
    __syncwarp();
    multiply_tile(p, feed, shared);
  } else if (threadIdx.x >= kConsumerThreads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == kConsumerThreads) feed.run(), feed.finish();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    multiply_tile(p, feed, shared);
  }
#else
  __trap();  // never launched: the host asks for compute capability 9.0
#endif
}

template <class T, bool kTransposed, int kRows>
cudaError_t launch_wgmma(const WeightProduct& p, const ProductMaps& maps, cudaStream_t stream) {
  constexpr int kShared = WgmmaTile<T, kRows>::kShared;
  const auto kernel = wgmma_kernel<T, kTransposed, kRows>;
  if (const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared); status != cudaSuccess) return status;
  const int row_tiles = (p.rows + kRows - 1) / kRows, feature_tiles = (p.columns + kFeatures * kClusterSize - 1) / (kFeatures * kClusterSize);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kClusterSize, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(row_tiles) * static_cast<unsigned>(feature_tiles) * kClusterSize);
  config.blockDim = dim3(kBlockThreads<kRows>);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, maps, p, row_tiles);
}

template <class T>
cudaError_t launch_wgmma(const WeightProduct& p, const ProductMaps& maps, int token_tile, cudaStream_t stream) {
  switch (token_tile) {
    case 64: return p.transposed ? launch_wgmma<T, true, 64>(p, maps, stream) : launch_wgmma<T, false, 64>(p, maps, stream);
    case 128: return p.transposed ? launch_wgmma<T, true, 128>(p, maps, stream) : launch_wgmma<T, false, 128>(p, maps, stream);
    case 256: return p.transposed ? launch_wgmma<T, true, 256>(p, maps, stream) : launch_wgmma<T, false, 256>(p, maps, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace
}  // namespace squareq::cuda
