// A forward product of at most 32 rows, which is bound by reading the weight: mma.sync fed by cp.async, 128 features per block, and the depth shared
// out over the blocks of a cluster, so that every multiprocessor reads. Each block finishes some of the rows; the others send it their parts of them.
//
// A sum over depth may be taken in any order, so a lane takes 16 neighbouring codes of a row at once, as four steps of the multiplication, and the
// activations likewise: what the instruction calls depths 2 t, 2 t + 1, 2 t + 8, 2 t + 9 are depths 16 t + 4 step and the next three.
#include "optimized/cuda/kernels/few_rows_product.hpp"

#include "optimized/cuda/kernels/fragment.cuh"
#include "optimized/cuda/kernels/launch.cuh"

namespace squareq::cuda {
namespace {

constexpr int kSliceDepth = 128;  // two halves of 64, one per half of the warps

template <int kRows>
struct FewRowsTile {
  static constexpr int kWeightBytes = kFeatures * kSliceDepth, kActivationBytes = kRows * kSliceDepth * 2;
  static constexpr int kStage = kWeightBytes + kActivationBytes;
  static constexpr int kStages = 110 * 1024 / kStage;  // two blocks per multiprocessor
  static constexpr int kSums = kRows * kTilePitch * 4;
  static constexpr int kReceived = kSums;                // behind the block's own sums: the others' of its rows, a place per block
  static constexpr int kBarrier = kStages * kStage;
  static constexpr int kShared = kBarrier + 8;
  static_assert(kReceived + kSums + 7 * kTilePitch * 4 <= kBarrier, "sums lie where the stages were; rows do not divide evenly");
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// The feature, inside a group of 8, of row `g` of a fragment: neighbours lie in different halves of the banks.
__device__ inline int spread(int g) { return (g >> 1) + (g & 1) * 4; }

/// Scaling times the branch for four columns of a row; what lies beyond the last column reads 0.
template <class T>
__device__ void add_branch_of_row(const Finish& f, float (&v)[4], int row, int column, int columns) {
  const auto eight = [](const void* from, std::int64_t outer, int rank, int r) {  // of a matrix [.., rank], rank a multiple of 16
    return *reinterpret_cast<const uint4*>(static_cast<const T*>(from) + outer * rank + r);
  };
  float sums[4] = {};
  for (int r = 0; r < f.rank; r += 8) {
    const uint4 of_row = eight(f.low_rows, row, f.rank, r);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (column + c >= columns) continue;
      const uint4 of_column = eight(f.low_columns, column + c, f.rank, r);
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[c] = __fmaf_rn(to_float(reinterpret_cast<const T*>(&of_row)[i]), to_float(reinterpret_cast<const T*>(&of_column)[i]), sums[c]);
    }
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) v[c] = __fmaf_rn(f.scaling, sums[c], v[c]);
}

/// Every thread of the cluster. Orders nobody's writes: that would cost a fence of the whole device.
__device__ inline void sync_blocks() { asm volatile("barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;" ::: "memory"); }

__device__ inline unsigned in_block(unsigned address, int block) {
  unsigned there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
  return there;
}

/// Bytes of this block's shared memory into another's, whose barrier counts them.
__device__ inline void send(unsigned to, unsigned from, int bytes, unsigned barrier) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "r"(from), "r"(bytes), "r"(barrier) : "memory");
}

#endif

template <class T, int kRows>
__global__ void __launch_bounds__(kThreads, 2) few_rows_kernel(const __grid_constant__ WeightProduct p, int parts) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using Tile = FewRowsTile<kRows>;
  constexpr int kRowGroups = kRows / 8;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32, g = lane >> 2, t = lane & 3;
  const int group = warp % 4 * 32, half = warp / 4;  // a warp's 32 features, and its half of every slice
  const int part = static_cast<int>(blockIdx.x) % parts, first_feature = static_cast<int>(blockIdx.x) / parts * kFeatures;
  const int all_slices = (p.depth + kSliceDepth - 1) / kSliceDepth, first_slice = all_slices * part / parts, slices = all_slices * (part + 1) / parts - first_slice;
  const auto row_of = [&](int of) { return p.rows * of / parts; };  // first of the rows that a block finishes
  const unsigned base = shared_address(shared), barrier = base + Tile::kBarrier;
  if (thread == 0)
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1; mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1; fence.mbarrier_init.release.cluster;" ::"r"(barrier),
        "r"((row_of(part + 1) - row_of(part)) * (parts - 1) * kTilePitch * 4)
        : "memory");

  // A thread copies its chunk of every kStep-th row of both tiles: the weight's, and the activations' [half, row, 128 bytes].
  constexpr int kStep = kThreads / 8;
  const int chunk = thread % 8, first_row_copied = thread / 8;
  const unsigned char* const weight = reinterpret_cast<const unsigned char*>(p.weight) + (first_feature + first_row_copied) * p.weight_stride + chunk * 16;
  const unsigned char* const activations = static_cast<const unsigned char*>(p.activations) +
                                           (first_row_copied % kRows * p.activation_stride + first_row_copied / kRows * 64 + chunk * 8) * 2;
  const unsigned weight_to = base + swizzled_128(first_row_copied, chunk), activations_to = base + Tile::kWeightBytes + swizzled_128(first_row_copied, chunk);
  static_assert(kStep % kRows == 0 || kRows % kStep == 0);
  const auto fetch = [&](int slice, int stage) {
    if (slice < slices) {
      const int depth = (first_slice + slice) * kSliceDepth;
      const unsigned to = stage * Tile::kStage;
      const unsigned char *codes = weight + depth, *x = activations + depth * 2;
      if (depth + kSliceDepth <= p.depth) {
#pragma unroll
        for (int i = 0; i < kFeatures / kStep; ++i)
          copy_or_zero(weight_to + to + i * kStep * 128, codes + i * kStep * p.weight_stride, first_feature + first_row_copied + i * kStep < p.columns);
#pragma unroll
        for (int i = 0; i < 2 * kRows / kStep; ++i)
          copy_or_zero(activations_to + to + i * kStep * 128, x + (i * kStep % kRows * p.activation_stride + i * kStep / kRows * 64) * 2,
                       (first_row_copied + i * kStep) % kRows < p.rows);
      } else {
#pragma unroll 1
        for (int i = 0; i < kFeatures / kStep; ++i) {
          const bool inside = first_feature + first_row_copied + i * kStep < p.columns;
          copy_chunk(weight_to + to + i * kStep * 128, inside ? codes + i * kStep * p.weight_stride : weight, inside ? p.depth - depth - chunk * 16 : 0, true);
        }
#pragma unroll 1
        for (int i = 0; i < 2 * kRows / kStep; ++i) {
          const int at = first_row_copied + i * kStep, column = depth + at / kRows * 64 + chunk * 8;
          const bool inside = at % kRows < p.rows && column < p.depth;
          copy_chunk(activations_to + to + i * kStep * 128, inside ? x + (i * kStep % kRows * p.activation_stride + i * kStep / kRows * 64) * 2 : static_cast<const unsigned char*>(p.activations),
                     inside ? (p.depth - column) * 2 : 0, true);
        }
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  if (p.made) wait_for_former();
  float sums[2][kRowGroups][4] = {};
  for (int slice = 0; slice < Tile::kStages - 1; ++slice) fetch(slice, slice);
  int stage = 0, filled = Tile::kStages - 1;  // the slice at work, and the one that is filled next
  for (int slice = 0; slice < slices; ++slice) {
    asm volatile("cp.async.wait_group %0;" ::"n"(Tile::kStages - 2) : "memory");
    __syncthreads();
    fetch(slice + Tile::kStages - 1, filled);
    const unsigned char* const codes_at = shared + stage * Tile::kStage;
    filled = stage;
    stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
    const unsigned char* const x_at = codes_at + Tile::kWeightBytes + half * kRows * 128;
    uint4 codes[2][2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int upper = 0; upper < 2; ++upper)
        codes[i][upper] = *reinterpret_cast<const uint4*>(codes_at + swizzled_128(group + 16 * i + 8 * upper + spread(g), 4 * half + t));
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {  // of steps: those that 16 bytes of a row's activations serve
      unsigned a[2][2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          const unsigned words[2] = {pair ? codes[i][upper].z : codes[i][upper].x, pair ? codes[i][upper].w : codes[i][upper].y};
#pragma unroll
          for (int step = 0; step < 2; ++step) {
            a[i][step][upper] = widen<T>(__byte_perm(words[step], 0, 0x1100));
            a[i][step][2 + upper] = widen<T>(__byte_perm(words[step], 0, 0x3322));
          }
        }
      constexpr int kBatch = kRowGroups < 4 ? kRowGroups : 4;  // groups of rows at a time, so that products that follow each other do not wait
#pragma unroll
      for (int batch = 0; batch < kRowGroups; batch += kBatch) {
        uint4 x[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j) x[j] = *reinterpret_cast<const uint4*>(x_at + swizzled_128(8 * (batch + j) + g, 2 * t + pair));
#pragma unroll
        for (int step = 0; step < 2; ++step)
#pragma unroll
          for (int j = 0; j < kBatch; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) Multiply<T>::step(sums[i][batch + j], a[i][step], step ? x[j].z : x[j].x, step ? x[j].w : x[j].y);
      }
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();

  auto* const tile = reinterpret_cast<float*>(shared);
  const auto stage_sums = [&](bool add) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < kRowGroups; ++j)
#pragma unroll
        for (int of = 0; of < 4; ++of) {
          float& to = tile[(8 * j + 2 * t + of % 2) * kTilePitch + group + 16 * i + of / 2 * 8 + spread(g)];
          to = add ? __fadd_rn(sums[i][j][of], to) : sums[i][j][of];
        }
  };
  if (half == 1) stage_sums(false);
  __syncthreads();
  if (half == 0) stage_sums(true);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  sync_blocks();  // the stages of every block are free, its barrier is ready
  if (thread < parts && thread != part && row_of(thread + 1) > row_of(thread)) {
    const int bytes = (row_of(thread + 1) - row_of(thread)) * kTilePitch * 4;
    send(in_block(base + Tile::kReceived + part * bytes, thread), base + row_of(thread) * kTilePitch * 4, bytes, in_block(barrier, thread));
  }
  asm volatile(
      "{.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n"
      "@!done bra again;}" ::"r"(barrier)
      : "memory");

  wait_for_former();  // for the branch's factors
  const int first_row = row_of(part), end_row = row_of(part + 1), column = lane * 4;
  for (int row = first_row + warp; row < end_row; row += kThreads / 32) {
    float v[4] = {};
    for (int from = 0; from < parts; ++from) {
      const int place = from == part ? row : kRows + from * (end_row - first_row) + row - first_row;
      const float4 more = *reinterpret_cast<const float4*>(tile + place * kTilePitch + column);
      v[0] = __fadd_rn(v[0], more.x), v[1] = __fadd_rn(v[1], more.y), v[2] = __fadd_rn(v[2], more.z), v[3] = __fadd_rn(v[3], more.w);
    }
    if (p.finish.rank) {
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (first_feature + column + c < p.columns) v[c] = scaled(p.finish, v[c], row, first_feature + column + c);
      add_branch_of_row<T>(p.finish, v, row, first_feature + column, p.columns);
    }
    *reinterpret_cast<float4*>(tile + kRows * kTilePitch + (row - first_row) * kTilePitch + column) = make_float4(v[0], v[1], v[2], v[3]);  // in place of part 0
  }
  __syncthreads();
  store_tile<kRows, kFeatures, kThreads>(p.finish, tile + kRows * kTilePitch, kTilePitch, first_row, first_feature, end_row, p.columns, threadIdx.x);
  sync_blocks();  // stays until what it sent has arrived
#else
  __trap();  // never launched: the host asks for compute capability 9.0
#endif
}

template <class T, int kRows>
cudaError_t launch_few_rows(const WeightProduct& p, int parts, Queue queue) {
  constexpr int kShared = FewRowsTile<kRows>::kShared;
  const auto kernel = few_rows_kernel<T, kRows>;
  if (const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared); status != cudaSuccess) return status;
  return launch(kernel, dim3(static_cast<unsigned>((p.columns + kFeatures - 1) / kFeatures * parts)), kThreads, kShared, static_cast<unsigned>(parts), queue, p, parts);
}

template <class T>
cudaError_t launch_few_rows(const WeightProduct& p, int row_tile, int parts, Queue queue) {
  switch (row_tile) {
    case 16: return launch_few_rows<T, 16>(p, parts, queue);
    case 32: return launch_few_rows<T, 32>(p, parts, queue);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t few_rows_product(const WeightProduct& p, int row_tile, int parts, Queue queue) {
  if (p.dtype == SQ_BF16) return launch_few_rows<__nv_bfloat16>(p, row_tile, parts, queue);
  if (p.dtype == SQ_F16) return launch_few_rows<__half>(p, row_tile, parts, queue);
  return cudaErrorInvalidValue;
}

}  // namespace squareq::cuda
