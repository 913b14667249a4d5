// A product on Hopper's warpgroup tensor cores. A block makes tiles of 128 features by kRows rows: two warpgroups of 64 features each multiply, one
// thread of a third keeps their ring of stages full, also across tiles. Codes are converted in registers while earlier slices are multiplied. Two
// blocks with the same rows form a cluster, and there are as many clusters as the device holds: tiles that do not fill it evenly are split along
// their depth (Pieces).
#pragma once

#include "optimized/cuda/kernels/launch.cuh"
#include "optimized/cuda/kernels/wgmma_finish.cuh"

namespace squareq::cuda {
namespace {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// A number that the compiler takes as it is, so that it does not keep what follows from it in registers through the loops before.
__device__ inline int opaque(unsigned number) {
  asm volatile("" : "+r"(number));
  return static_cast<int>(number);
}

/// The left operand of one slice: its bytes as they were loaded, which become registers later. dX in bf16 multiplies codes by the scale of what is
/// summed over, with one rounding: class R2.
template <class T, bool kTransposed, bool kScales>
struct Slice {
  using Fragment = WeightFragment<T, kTransposed>;
  unsigned at[kSteps][Fragment::kPlaces], raw[kSteps][Fragment::kWords];
  uint2 scale[kSteps][kScales ? 2 : 1];  // of depths 2 t, 2 t + 1 and those 8 further

  __device__ Slice(int feature_group, int lane) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Fragment::place(at[step], feature_group, step, lane);
#pragma unroll
      for (int i = 0; !kTransposed && i < Fragment::kPlaces; ++i) at[step][i] = opaque(at[step][i]);  // kept: not worth computing in every slice
    }
  }
  __device__ void load(unsigned weight, unsigned scales, int lane) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Fragment::load(raw[step], weight, at[step]);
#pragma unroll
      for (int i = 0; kScales && i < 2; ++i)
        asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                     : "=r"(scale[step][i].x), "=r"(scale[step][i].y)
                     : "r"(scales + 64 * step + 32 * i + 8 * (lane & 3))
                     : "memory");
    }
  }
  /// Nothing of what was loaded is used before this.
  __device__ void take() {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int i = 0; i < Fragment::kWords; ++i) asm volatile("" : "+r"(raw[step][i]));
  }
  __device__ void convert(unsigned (&a)[4], int step) const {
    Fragment::convert(a, raw[step]);
#pragma unroll
    for (int i = 0; kScales && i < 4; ++i) a[i] = times(a[i], scale[step][i / 2]);
  }

 private:
  /// q (high + low): q low is rounded where it no longer counts.
  __device__ static unsigned times(unsigned q, uint2 s) {
    unsigned product;
    asm("{.reg .b32 low; mul.rn.bf16x2 low, %1, %3; fma.rn.bf16x2 %0, %1, %2, low;}" : "=r"(product) : "r"(q), "r"(s.x), "r"(s.y));
    return product;
  }
};

/// A slice on its way through the registers of a warpgroup.
template <class T, bool kTransposed, int kRows>
struct Multiplier {
  using Tile = WgmmaTile<T, kTransposed, kRows>;
  using Sum = typename Multiply<T>::Sum;
  // Codes that meet codes are loaded into the operand itself, which must be free then.
  static constexpr bool kConverts = kTransposed || sizeof(T) == 2;

  const Ring<Tile>& ring;
  const unsigned empty_there;  // the cluster's barrier that this thread arrives at; 0: none
  const int lane;
  Phases full;
  unsigned a[2][kSteps][4];
  Slice<T, kTransposed, Tile::kScales> next;

  __device__ Multiplier(const Ring<Tile>& stages, unsigned there, int thread)
      : ring(stages), empty_there(there), lane(thread % 32), next(thread / 32, thread % 32) {}

  __device__ void load(int stage) {
    wait_barrier(ring.full(stage), full.take(stage));
    next.load(ring.at(stage) + Tile::kActivationBytes, ring.scales(stage), lane);
  }
  __device__ void convert(unsigned (&to)[kSteps][4]) {
    next.take();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) next.convert(to[step], step);
    hold(to);
  }
  __device__ void release(int stage) const {
    if constexpr (Tile::kScales) arrive_here(ring.empty(stage));  // ordinary stores will overwrite them, which a warpgroup's products order with no other warp's loads
    if (empty_there) arrive_there(empty_there + 16 * stage);
  }

  /// Queues the products of the slice in `stage`. While they run, the next slice's registers are made: its bytes are asked for before the products are
  /// queued, and converted behind the wait for the slice before, whose registers they take.
  __device__ void turn(Sum (&sums)[kRows / 8][4], int stage, bool first, bool more) {
    unsigned(&mine)[kSteps][4] = a[stage % 2], (&other)[kSteps][4] = a[1 - stage % 2];
    const int following = stage + 1 == Tile::kStages ? 0 : stage + 1, before = stage == 0 ? Tile::kStages - 1 : stage - 1;
    if (kConverts && more) load(following);
    fence_registers();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) WarpgroupMultiply<T, kRows>::step(sums, mine[step], descriptor(ring.at(stage)) + 2 * step);
    commit_products();
    wait_products<1>();
    hold(other);  // was read until here
    if (!first) release(before);
    if (!kConverts && more) load(following);
    convert(other);  // of no meaning, and unused, behind the last slice
  }

  /// Adds `slices` slices to the sums, which are of a new piece; does `meanwhile` once, behind the first ones.
  template <class Meanwhile>
  __device__ void run(Sum (&sums)[kRows / 8][4], int slices, const Meanwhile& meanwhile) {
    hold(sums);
    load(0);
    convert(a[0]);
    for (int done = 0; done < slices; done += Tile::kStages) {
#pragma unroll
      for (int stage = 0; stage < Tile::kStages; ++stage) {
        const int slice = done + stage;
        if (slice < slices) turn(sums, stage, stage == 0 && done == 0, slice + 1 < slices);
      }
      if (done == 0) meanwhile();
    }
    wait_products<0>();
    hold(sums), hold(a[0]), hold(a[1]);
    release((slices - 1) % Tile::kStages);
  }
};

/// What a warpgroup that multiplies does.
template <class T, bool kTransposed, int kRows, bool kMapped>
__device__ void consume(const ProductMaps& maps, const WeightProduct& p, const Ring<WgmmaTile<T, kTransposed, kRows>>& ring, Pieces pieces, int slices, int row_tiles,
                        int cluster, int rank, unsigned char* shared) {
  using Tile = WgmmaTile<T, kTransposed, kRows>;
  using Sum = typename Multiply<T>::Sum;
  constexpr int kGroups = kRows / 8;
  const int group = threadIdx.x / kGroupThreads;
  // One thread for each block of the cluster tells it that a stage is free.
  const unsigned empty_there = threadIdx.x % kGroupThreads < kClusterSize ? address_in(ring.empty(0), threadIdx.x % kGroupThreads) : 0;
  Multiplier<T, kTransposed, kRows> multiplier(ring, empty_there, threadIdx.x);
  for (Piece piece; pieces.next(piece);) {
    Sum sums[kGroups][4] = {};
    const bool finishes = piece.end == slices;
    const int first_row = piece.tile % row_tiles * kRows, first_feature = (piece.tile / row_tiles * kClusterSize + rank) * kFeatures + group * 64;
    unsigned char* staging = shared + Tile::kStaging + group * Tile::kStagingBytes;
    Asked<kTransposed, kRows> asked;
    multiplier.run(sums, piece.end - piece.begin, [&] {
      wait_for_former();  // for the scales of rows and the branch's factors
      if (kMapped && finishes) asked.ask(p.finish, shared_address(staging), first_feature, first_row, p.columns, p.rows, group, opaque(threadIdx.x) % kGroupThreads);
    });
    const int thread = opaque(threadIdx.x) % kGroupThreads;
    const Exchange<Sum, kGroups> exchange{p.split, rank, group, thread};
    if (!finishes) {
      exchange.give(sums, cluster);
      continue;
    }
    for (int giver = cluster; pieces.share(giver) > piece.tile * slices;) exchange.take(sums, --giver);
    const WayOut<T, kTransposed, kRows> out{staging, group, thread, first_feature, first_row, p.columns, p.rows};
    if constexpr (kMapped) out.through_maps(p.finish, maps, sums, asked);
    else out.row_by_row(p.finish, sums);
  }
  if (threadIdx.x % kGroupThreads == 0) wait_stores_read();
}

#endif

template <class T, bool kTransposed, int kRows, bool kMapped>
__global__ void __launch_bounds__(kBlockThreads, 1) wgmma_kernel(const __grid_constant__ ProductMaps maps, const __grid_constant__ WeightProduct p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char raw[];
  const Ring<WgmmaTile<T, kTransposed, kRows>> ring{(shared_address(raw) + 1023) / 1024 * 1024};
  const int rank = static_cast<int>(blockIdx.x % kClusterSize), cluster = static_cast<int>(blockIdx.x / kClusterSize);
  const int row_tiles = (p.rows + kRows - 1) / kRows, feature_tiles = (p.columns + kFeatures * kClusterSize - 1) / (kFeatures * kClusterSize);
  const int slices = (p.depth + kDepth<T> - 1) / kDepth<T>;
  if (threadIdx.x == 0) ring.init();
  sync_cluster();  // every block's barriers are ready before anyone arrives at them
  const Pieces pieces(p.split, row_tiles * feature_tiles, slices, cluster);
  if (threadIdx.x >= kConsumerThreads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == kConsumerThreads) {
      if (p.made) wait_for_former();
      feed<T, kTransposed, kRows>(maps, ring, pieces, row_tiles, rank);
    }
    if constexpr (WgmmaTile<T, kTransposed, kRows>::kScales) {
      if (threadIdx.x / 32 == kConsumerThreads / 32 + 1) feed_scales(p, ring, pieces, threadIdx.x % 32);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    consume<T, kTransposed, kRows, kMapped>(maps, p, ring, pieces, slices, row_tiles, cluster, rank, raw + (ring.base - shared_address(raw)));
  }
#else
  __trap();  // never launched: the host asks for compute capability 9.0
#endif
}

template <class T, bool kTransposed, int kRows, bool kMapped>
cudaError_t launch_wgmma(const WeightProduct& p, const ProductMaps& maps, Queue queue) {
  constexpr int kShared = WgmmaTile<T, kTransposed, kRows>::kShared;
  const auto kernel = wgmma_kernel<T, kTransposed, kRows, kMapped>;
  if (const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared); status != cudaSuccess) return status;
  return launch(kernel, dim3(static_cast<unsigned>(p.split.clusters) * kClusterSize), kBlockThreads, kShared, kClusterSize, queue, maps, p);
}

template <class T, bool kTransposed, int kRows>
cudaError_t launch_wgmma(const WeightProduct& p, const ProductMaps& maps, Queue queue) {
  return maps.mapped ? launch_wgmma<T, kTransposed, kRows, true>(p, maps, queue) : launch_wgmma<T, kTransposed, kRows, false>(p, maps, queue);
}

template <class T>
cudaError_t launch_wgmma(const WeightProduct& p, const ProductMaps& maps, Queue queue) {
  switch (p.split.rows) {
    case 64: return p.transposed ? launch_wgmma<T, true, 64>(p, maps, queue) : launch_wgmma<T, false, 64>(p, maps, queue);
    case 128: return p.transposed ? launch_wgmma<T, true, 128>(p, maps, queue) : launch_wgmma<T, false, 128>(p, maps, queue);
    case 256: return p.transposed ? launch_wgmma<T, true, 256>(p, maps, queue) : launch_wgmma<T, false, 256>(p, maps, queue);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace
}  // namespace squareq::cuda
