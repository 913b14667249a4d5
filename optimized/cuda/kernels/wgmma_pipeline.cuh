// The ring of stages between the thread that loads tiles and the warpgroups that multiply them: barriers, tensor copies, and the pieces of work that
// both sides go through in the same order.
#pragma once

#include <type_traits>

#include "optimized/cuda/kernels/warpgroup.cuh"
#include "optimized/cuda/kernels/wgmma_product.hpp"

namespace squareq::cuda {
namespace {

constexpr int kGroupThreads = 128, kConsumerThreads = 2 * kGroupThreads, kBlockThreads = 3 * kGroupThreads;

/// What a block keeps in shared memory: stages of both operands, then the 16-bit outputs on their way out, then the barriers.
template <class T, bool kTransposed, int kRows>
struct WgmmaTile {
  static constexpr bool kScales = kTransposed && std::is_same<T, __nv_bfloat16>::value;  // codes are multiplied by the scale of what is summed over
  static constexpr int kScaleBytes = kScales ? kDepth<T> * 4 : 0;  // of a stage: a pair of scales as two pairs of 16 bits, see split_scales()
  static constexpr int kActivationBytes = kRows * kRowBytes;
  static constexpr int kWeightBytes = kFeatures * kDepth<T>;
  static constexpr int kStage = kActivationBytes + kWeightBytes;
  static constexpr int kStagingRows = kRows == 256 && sizeof(T) == 1 ? 128 : kRows;  // that go out at a time
  static constexpr int kStagingBytes = kStagingRows * kRowBytes;                       // of one warpgroup: 64 features
  static constexpr int kFree = 227 * 1024 - 1024 - 2 * kStagingBytes;                  // 1023 bytes may go to start at a multiple of 1024
  static constexpr int kMost = kFree / (kStage + kScaleBytes + 16);
  static constexpr int kStages = kMost < 12 ? kMost / 2 * 2 : 12;  // even: a slice's registers follow from its stage
  static constexpr int kStaging = kStages * kStage;
  static constexpr int kScale = kStaging + 2 * kStagingBytes;
  static constexpr int kBarriers = kScale + kStages * kScaleBytes;
  static constexpr int kShared = kBarriers + 16 * kStages + 1024;
  static_assert(kStages >= 4 && kShared <= 227 * 1024, "a slice is multiplied, one is converted, two are under way");
};

/// Part of a tile's sum: slices [begin, end) of tile `tile`.
struct Piece {
  int tile, begin, end;
};

/// The pieces of one cluster. The tiles that are split come first: their slices, laid end to end, are shared out evenly, and a cluster walks its share
/// from the end. So it begins with the front of a tile, which a later cluster will finish, and ends with the back of one whose front an earlier
/// cluster has begun with. A cluster waits for earlier ones alone, which the device started first. Whole tiles follow.
class Pieces {
 public:
  __device__ Pieces(const WorkSplit& split, int tiles, int slices, int cluster)
      : split_(split), tiles_(tiles), slices_(slices), cluster_(cluster), end_(share(cluster + 1)), whole_(split.tiles + cluster) {}

  /// Where cluster `cluster`'s share of the split tiles' slices begins.
  __device__ int share(int cluster) const { return split_.share * cluster + min(cluster, split_.longer); }

  __device__ bool next(Piece& piece) {
    if (const int begin = share(cluster_); end_ > begin) {
      piece.tile = static_cast<int>(__umulhi(static_cast<unsigned>(end_ - 1), split_.reciprocal));
      piece.end = end_ - piece.tile * slices_;
      piece.begin = max(begin - piece.tile * slices_, 0);
      end_ = piece.tile * slices_ + piece.begin;
      return true;
    }
    if (whole_ >= tiles_) return false;
    piece = {whole_, 0, slices_};
    whole_ += split_.clusters;
    return true;
  }

 private:
  const WorkSplit& split_;
  int tiles_, slices_, cluster_, end_, whole_;
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

/// Where block `rank` of the cluster has what lies at `address` here.
__device__ inline unsigned address_in(unsigned address, unsigned rank) {
  unsigned there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

/// Arrives at a barrier of any block. What the arrival releases is a place to write to, so block scope is enough; a release at cluster scope would cost
/// a fence of the whole device.
__device__ inline void arrive_there(unsigned barrier) { asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory"); }

__device__ inline void sync_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed; barrier.cluster.wait.acquire;" ::: "memory");
}

/// Arrives at a barrier of this block.
__device__ inline void arrive_here(unsigned barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }

/// Waits for the other warps of warpgroup 0 or 1.
__device__ inline void sync_group(int group) { asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kGroupThreads) : "memory"); }

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

__device__ inline void store_box(const CUtensorMap* map, unsigned from, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3]; cp.async.bulk.commit_group;" ::"l"(map),
               "r"(column), "r"(row), "r"(from)
               : "memory");
}
/// Until what this thread stored has been read from shared memory, so that it may be overwritten.
__device__ inline void wait_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

/// The stages and their barriers: full, when both operands have arrived; empty, when every warpgroup of the cluster is done with it, and, where a stage
/// holds scales, every thread of the block has them in registers. Slices take the stages in order, from stage 0 at the start of every piece, so that the
/// loops over slices know their stage at compile time. A stage's barriers turn over once per use; everyone who waits keeps one bit per stage for it.
template <class Tile>
struct Ring {
  unsigned base;

  __device__ unsigned at(int stage) const { return base + stage * Tile::kStage; }
  __device__ unsigned scales(int stage) const { return base + Tile::kScale + stage * Tile::kScaleBytes; }
  __device__ unsigned full(int stage) const { return base + Tile::kBarriers + 16 * stage; }
  __device__ unsigned empty(int stage) const { return full(stage) + 8; }
  __device__ void init() const {
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      init_barrier(full(stage), Tile::kScales ? 1 + 32 : 1);  // the thread that loads, and the warp that feeds scales
      init_barrier(empty(stage), 2 * kClusterSize + (Tile::kScales ? kConsumerThreads : 0));  // both warpgroups of every block; this block's threads
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
};

/// The waits of one side, in the order of its slices.
struct Phases {
  unsigned bits = 0;

  /// What to wait for at the next use of a stage; for a stage's first use, "empty" is already so.
  __device__ unsigned take(int stage) {
    const unsigned parity = bits >> stage & 1;
    bits ^= 1u << stage;
    return parity;
  }
};

/// What the one thread that loads does: every slice of every piece, as stages become free. Blocks of a cluster share the rows; each loads its part of
/// them into both.
template <class T, bool kTransposed, int kRows>
__device__ void feed(const ProductMaps& maps, const Ring<WgmmaTile<T, kTransposed, kRows>>& ring, Pieces pieces, int row_tiles, int rank) {
  using Tile = WgmmaTile<T, kTransposed, kRows>;
  constexpr int kPart = kRows / kClusterSize;
  Phases empty;
  for (Piece piece; pieces.next(piece);) {
    const int first_row = piece.tile % row_tiles * kRows + rank * kPart, first_feature = (piece.tile / row_tiles * kClusterSize + rank) * kFeatures;
    int stage = 0;
    for (int slice = piece.begin; slice < piece.end; ++slice) {
      wait_barrier(ring.empty(stage), empty.take(stage) ^ 1);
      const int depth = slice * kDepth<T>;
      expect_bytes(ring.full(stage), Tile::kStage);
      fetch_box_for_cluster(ring.at(stage) + rank * kPart * kRowBytes, &maps.activations, depth, first_row, ring.full(stage));
      fetch_box(ring.at(stage) + Tile::kActivationBytes, &maps.weight, kTransposed ? first_feature : depth, kTransposed ? depth : first_feature, ring.full(stage));
      stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
    }
  }
  // The block stays until nobody will arrive at its barriers any more.
  for (int stage = 0; stage < Tile::kStages; ++stage) wait_barrier(ring.empty(stage), empty.take(stage) ^ 1);
}

/// A pair of scales as two pairs of bf16, high + low, good to 17 bits.
__device__ inline uint2 split_scales(float a, float b) {
  const __nv_bfloat162 high = __floats2bfloat162_rn(a, b);
  const float2 back = __bfloat1622float2(high);
  // An infinite or NaN scale has no rest.
  const __nv_bfloat162 low = __floats2bfloat162_rn(isfinite(back.x) ? a - back.x : 0.0f, isfinite(back.y) ? b - back.y : 0.0f);
  return make_uint2(*reinterpret_cast<const unsigned*>(&high), *reinterpret_cast<const unsigned*>(&low));
}

/// What one warp does where codes are multiplied by scales: those of every slice into its stage; 1 where the product has none.
template <class Tile>
__device__ void feed_scales(const WeightProduct& p, const Ring<Tile>& ring, Pieces pieces, int lane) {
  constexpr int kWide = Tile::kScaleBytes / 4;  // elements of depth in a slice: two per lane
  Phases empty;
  for (Piece piece; pieces.next(piece);) {
    int stage = 0;
    for (int slice = piece.begin; slice < piece.end; ++slice) {
      const int depth = slice * kWide + 2 * lane;
      const auto scale = [&](int at) { return p.depth_scale && at < p.depth ? __ldg(p.depth_scale + at) : 1.0f; };
      const uint2 split = split_scales(scale(depth), scale(depth + 1));
      wait_barrier(ring.empty(stage), empty.take(stage) ^ 1);
      asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(ring.scales(stage) + 8 * lane), "r"(split.x), "r"(split.y) : "memory");
      arrive_here(ring.full(stage));
      stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
    }
  }
}

#endif

}  // namespace
}  // namespace squareq::cuda
