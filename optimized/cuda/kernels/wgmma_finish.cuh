// From a warpgroup's sums in registers to outputs: parts of a split tile are exchanged, then scales, branch, bias and activation, then the way out.
// A lane holds, of fragment j, rows 8 j + 2 t and the next, and two neighbouring features.
#pragma once

#include "optimized/cuda/kernels/wgmma_pipeline.cuh"

namespace squareq::cuda {
namespace {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// Rows of 128 bytes, swizzled over 128 bytes, groups of 8 rows 1024 bytes apart.
__device__ inline std::uint64_t descriptor(unsigned address) {
  return static_cast<std::uint64_t>((address & 0x3FFFF) >> 4) | std::uint64_t{1} << 16 | std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

/// Rows of 32 bytes, swizzled over 32 bytes, groups of 8 rows 256 bytes apart.
__device__ inline std::uint64_t descriptor_32(unsigned address) {
  return static_cast<std::uint64_t>((address & 0x3FFFF) >> 4) | std::uint64_t{1} << 16 | std::uint64_t{256 >> 4} << 32 | std::uint64_t{3} << 62;
}

__device__ inline void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ void wait_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory"); }

/// Ties registers to this place, so that no arithmetic on them is moved to where products run that use them.
template <int kGroups>
__device__ void hold(float (&sums)[kGroups][4]) {
#pragma unroll
  for (int j = 0; j < kGroups; ++j) asm volatile("" : "+f"(sums[j][0]), "+f"(sums[j][1]), "+f"(sums[j][2]), "+f"(sums[j][3])::"memory");
}
template <int kGroups>
__device__ void hold(int (&sums)[kGroups][4]) {
#pragma unroll
  for (int j = 0; j < kGroups; ++j) asm volatile("" : "+r"(sums[j][0]), "+r"(sums[j][1]), "+r"(sums[j][2]), "+r"(sums[j][3])::"memory");
}

template <int kGroups>
__device__ void hold(unsigned (&operand)[kGroups][4]) {
#pragma unroll
  for (int j = 0; j < kGroups; ++j) asm volatile("" : "+r"(operand[j][0]), "+r"(operand[j][1]), "+r"(operand[j][2]), "+r"(operand[j][3])::"memory");
}

/// Sums of a piece that another cluster will finish, in the workspace: a place per cluster, block and warpgroup.
template <class Sum, int kGroups>
struct Exchange {
  const WorkSplit& split;
  int rank, group, thread;  // of the cluster, of the block, of the warpgroup

  __device__ int slot(int cluster) const { return (cluster * kClusterSize + rank) * 2 + group; }
  __device__ int4* place(int cluster) const { return static_cast<int4*>(split.partial) + static_cast<std::int64_t>(slot(cluster)) * kGroups * kGroupThreads + thread; }

  __device__ void give(const Sum (&sums)[kGroups][4], int cluster) const {
    int4* to = place(cluster);
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      int4 words;
      memcpy(&words, sums[j], sizeof words);
      __stcg(to + j * kGroupThreads, words);
    }
    __threadfence();
    sync_group(group);
    if (thread == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(split.arrived + slot(cluster)) : "memory");
  }
  __device__ void take(Sum (&sums)[kGroups][4], int cluster) const {
    if (thread == 0) {
      unsigned there = 0;
      while (!there) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(split.arrived + slot(cluster)) : "memory");
    }
    sync_group(group);
    const int4* from = place(cluster);
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const int4 words = __ldcg(from + j * kGroupThreads);
      Sum part[4];
      memcpy(part, &words, sizeof part);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[j][i] += part[i];
    }
  }
};

/// A sum's register holds the value made of it from finish_sums() on.
__device__ inline float value(float sum) { return sum; }
__device__ inline float value(int sum) { return __int_as_float(sum); }
__device__ inline void set_value(float& sum, float v) { sum = v; }
__device__ inline void set_value(int& sum, float v) { sum = __float_as_int(v); }

/// What finishing a tile needs from memory, asked for while its last slices are multiplied: of a lane's two columns in registers, and the branch's
/// factors in the warpgroup's part of shared memory: of the rows, [kRows, 16] of 16 bits per 16 ranks, as wgmma reads a right operand that is swizzled
/// over 32 bytes; behind them [64, rank] of the features.
template <bool kTransposed, int kRows>
struct Asked {
  float of_column[2], bias[2];

  /// Of a lane's columns. dX has neither scales nor bias there, and keeps no registers for them: it asks late.
  __device__ void ask_columns(const Finish& f, int first_feature, int columns, int thread) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int feature = first_feature + thread / 32 * 16 + feature_of<kTransposed>(thread >> 2 & 7, half);
      of_column[half] = f.column_scale && feature < columns ? f.column_scale[feature] : 1.0f;
      bias[half] = f.bias && feature < columns ? f.bias[feature] : 0.0f;
    }
  }
  /// Every thread of a warpgroup calls this; `first_feature` is the warpgroup's.
  __device__ void ask(const Finish& f, unsigned to, int first_feature, int first_row, int columns, int rows, int group, int thread) {
    if (!kTransposed) ask_columns(f, first_feature, columns, thread);
    if (!f.rank) return;
    if (thread == 0) wait_stores_read();
    sync_group(group);
    const int row_bytes = f.rank * 2, valid_columns = min(64, columns - first_feature) * row_bytes;
    const auto* low_rows = static_cast<const unsigned char*>(f.low_rows) + static_cast<std::int64_t>(first_row) * row_bytes;
    const auto* low_columns = static_cast<const unsigned char*>(f.low_columns) + static_cast<std::int64_t>(first_feature) * row_bytes;
#pragma unroll 1
    for (int r = 0; r < row_bytes; r += 32)
#pragma unroll 1
      for (int row = thread / 2; row < kRows; row += kGroupThreads / 2) {
        const bool inside = first_row + row < rows;
        copy_chunk(to + r * kRows + swizzled_32(row, thread % 2), inside ? low_rows + row * row_bytes + r + thread % 2 * 16 : low_rows, inside ? 16 : 0, true);
      }
    to += kRows * row_bytes;
#pragma unroll 1
    for (int at = 16 * thread; at < 64 * row_bytes; at += 16 * kGroupThreads)
      copy_chunk(to + at, at < valid_columns ? low_columns + at : low_columns, at < valid_columns ? 16 : 0, true);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  /// Before any of it is used, and before the warpgroup's part of shared memory is written.
  __device__ static void wait(const Finish& f, int group, int thread) {
    if (f.rank) asm volatile("cp.async.wait_all; fence.proxy.async.shared::cta;" ::: "memory");
    else if (thread == 0) wait_stores_read();
    sync_group(group);
  }
};

/// A warp's 16 features by 16 ranks from `r` on: (features, ranks) halves (0,0), (1,0), (0,1), (1,1).
template <bool kTransposed>
__device__ void load_low_columns(unsigned (&a)[4], unsigned low_columns, int rank, int r, int lane) {
  load_matrices(a, low_columns + feature_of<kTransposed>(lane & 7, lane >> 3 & 1) * rank * 2 + (lane >> 4) * 16 + 2 * r);
}

/// Both halves of x by those of y.
template <class T>
__device__ unsigned times(unsigned x, unsigned y) {
  unsigned product;
  if constexpr (std::is_same<T, __half>::value) asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(x), "r"(y));
  else asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(x), "r"(y));
  return product;
}

/// Adds scaling times the branch to the sums: one product behind those of the weight, its left factor multiplied by the scaling without rounding.
template <class T, bool kTransposed, int kRows>
__device__ void multiply_branch(float (&sums)[kRows / 8][4], int rank, float scaling, unsigned low_rows, unsigned low_columns, int lane) {
  const unsigned two = pack_two<T>(scaling, scaling);
  hold(sums);
#pragma unroll 1
  for (int r = 0; r < rank; r += 16) {
    unsigned a[1][4];
    load_low_columns<kTransposed>(a[0], low_columns, rank, r, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) a[0][i] = times<T>(a[0][i], two);
    hold(a);
    fence_registers();
    WarpgroupMultiply<T, kRows>::step(sums, a[0], descriptor_32(low_rows + r / 16 * kRows * 32));
    commit_products();
    wait_products<0>();
    hold(a), hold(sums);
  }
}

/// The branch's sums for kBatch fragments from `local_row` on, where the scaling is not exact in 16 bits and must multiply sums.
template <class T, bool kTransposed, int kRows, int kBatch>
__device__ void staged_branch(float (&sums)[kBatch][4], int rank, unsigned low_rows, unsigned low_columns, int local_row, int lane) {
#pragma unroll 1
  for (int r = 0; r < rank; r += 16) {
    unsigned a[4];
    load_low_columns<kTransposed>(a, low_columns, rank, r, lane);
#pragma unroll
    for (int j = 0; j < kBatch; j += 2) {
      unsigned b[4];  // (rows, ranks) halves (0,0), (0,1), (1,0), (1,1)
      load_matrices(b, low_rows + r / 16 * kRows * 32 + swizzled_32(local_row + 8 * j + (lane >> 4) * 8 + (lane & 7), lane >> 3 & 1));
      Multiply<T>::step(sums[j], a, b[0], b[1]);
      Multiply<T>::step(sums[j + 1], a, b[2], b[3]);
    }
  }
}

template <class T, bool kTransposed, int kRows>
__device__ void add_staged_branch(const Finish& f, float (&v)[kRows / 8][4], unsigned low_rows, unsigned low_columns, int lane) {
  if (f.exact_scaling) {
    multiply_branch<T, kTransposed, kRows>(v, f.rank, f.scaling, low_rows, low_columns, lane);
    return;
  }
  constexpr int kBatch = 4;  // fragments at a time, so that their loads overlap
#pragma unroll
  for (int batch = 0; batch < kRows / 8; batch += kBatch) {
    asm volatile("" ::: "memory");  // the next batch's loads stay behind: there are no registers for them
    float branch[kBatch][4] = {};
    staged_branch<T, kTransposed, kRows>(branch, f.rank, low_rows, low_columns, 8 * batch, lane);
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) v[batch + j][i] = __fmaf_rn(f.scaling, branch[j][i], v[batch + j][i]);
  }
}

/// Scales the sums and adds the branch, of factors of 16 bits, and the bias: sums become values. What a call does not have costs it no instruction. The
/// branch's dtype is that of a 16-bit product.
template <class T, bool kTransposed, int kRows, class Sum>
__device__ void finish_sums(const Finish& f, Sum (&sums)[kRows / 8][4], const Asked<kTransposed, kRows>& asked, unsigned low_rows, int first_row, int rows, int thread) {
  const int lane = thread % 32, t = lane & 3;
  float v[kRows / 8][4];
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) v[j][i] = static_cast<float>(sums[j][i]);
  if (f.factor != 1.0f) {
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) v[j][i] = __fmul_rn(v[j][i], f.factor);
  }
  if (f.row_scale) {
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = first_row + 8 * j + 2 * t + i;
        const float of_row = row < rows ? f.row_scale[row] : 1.0f;
        v[j][i] = __fmul_rn(v[j][i], of_row), v[j][2 + i] = __fmul_rn(v[j][2 + i], of_row);
      }
  }
  if (f.column_scale) {
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) v[j][i] = __fmul_rn(v[j][i], asked.of_column[i >> 1]);
  }
  if (f.rank) {
    const unsigned low_columns = low_rows + (kRows + thread / 32 * 16) * f.rank * 2;
    if constexpr (sizeof(T) == 2) add_staged_branch<T, kTransposed, kRows>(f, v, low_rows, low_columns, lane);
    else if (f.low_dtype == SQ_BF16) add_staged_branch<__nv_bfloat16, kTransposed, kRows>(f, v, low_rows, low_columns, lane);
    else add_staged_branch<__half, kTransposed, kRows>(f, v, low_rows, low_columns, lane);
  }
  if (f.bias) {
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) v[j][i] = __fadd_rn(v[j][i], asked.bias[i >> 1]);
  }
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) set_value(sums[j][i], v[j][i]);
}

/// Where a warpgroup's 64 features by kRows rows go: by way of its part of shared memory, a number of rows at a time.
template <class T, bool kTransposed, int kRows>
struct WayOut {
  using Sum = typename Multiply<T>::Sum;
  static constexpr int kStagingRows = WgmmaTile<T, kTransposed, kRows>::kStagingRows;
  static constexpr int kGroups = kRows / 8;
  static constexpr int kPitch = 64 + 4;  // floats between rows of the tile of sums: no bank conflicts for pairs
  unsigned char* staging;
  int group, thread, first_feature, first_row, columns, rows;  // group: of the block's two; thread: of the warpgroup

  /// Finishes the sums in registers and lets the copy engine write them: outputs of 16 bits that maps describe.
  __device__ void through_maps(const Finish& f, const ProductMaps& maps, Sum (&sums)[kGroups][4], Asked<kTransposed, kRows>& asked) const {
    if (kTransposed) asked.ask_columns(f, first_feature, columns, thread);
    asked.wait(f, group, thread);
    finish_sums<T, kTransposed, kRows>(f, sums, asked, shared_address(staging), first_row, rows, thread);
    bool busy = f.rank != 0;  // the branch's factors still lie where the values go
    if constexpr (!kTransposed) {
      if (f.preactivation.data) copy_out(f.preactivation.dtype, &maps.preactivation, sums, busy), busy = true;
      if (f.activation != SQ_ACT_NONE) {
        const Sigmoid sigmoid(f.activation);
#pragma unroll
        for (int j = 0; j < kGroups; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) set_value(sums[j][i], sigmoid(value(sums[j][i])));
      }
    }
    copy_out(f.y.dtype, &maps.y, sums, busy);
  }

  /// Everything else: the sums as they are into shared memory, where branch, activation and stores go over them row by row.
  __device__ void row_by_row(const Finish& f, Sum (&sums)[kGroups][4]) const {
    constexpr int kPart = kStagingRows / 4;  // floats and their padding take more than twice the room
    auto* tile = reinterpret_cast<float*>(staging);
    const int warp = thread / 32, lane = thread % 32;
    if (thread == 0) wait_stores_read();
#pragma unroll 1
    for (int part = 0; part < kRows; part += kPart) {
      sync_group(group);
#pragma unroll
      for (int j = 0; j < kGroups; ++j)  // registers have no computed index
        if (8 * j / kPart * kPart == part) stage_fragment<kTransposed, kPitch>(tile, sums[j], warp, j % (kPart / 8), lane);
      if (f.rank) add_branch<kTransposed, kPart / 8, kPitch>(f, tile, warp, 0, first_feature, first_row + part, columns, rows, lane);
      sync_group(group);
      store_tile<kPart, 64, kGroupThreads>(f, tile, kPitch, first_row + part, first_feature, rows, columns, thread);
    }
  }

 private:
  /// `busy`: other warps may still read what lies where the values go, or the copy engine.
  __device__ void copy_out(int dtype, const CUtensorMap* map, const Sum (&sums)[kGroups][4], bool busy) const {
    if (dtype == SQ_BF16) copy_out_as<__nv_bfloat16>(map, sums, busy);
    else copy_out_as<__half>(map, sums, busy);
  }
  template <class O>
  __device__ void copy_out_as(const CUtensorMap* map, const Sum (&sums)[kGroups][4], bool busy) const {
    const int g = thread >> 2 & 7, t = thread & 3, warp = thread / 32;
    const unsigned order = feature_of<kTransposed>(g, 0) & 1 ? 0x1032 : 0x3210;  // the higher feature may come first
    const unsigned base = shared_address(staging);
#pragma unroll
    for (int part = 0; part < kRows; part += kStagingRows) {
      if (part > 0 || busy) {
        if (thread == 0) wait_stores_read();
        sync_group(group);
      }
#pragma unroll
      for (int j = 0; j < kStagingRows / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const unsigned two = __byte_perm(pack_two<O>(value(sums[part / 8 + j][i]), value(sums[part / 8 + j][2 + i])), 0, order);
          const unsigned to = base + swizzled_128(8 * j + 2 * t + i, 2 * warp + (g >> 2)) + g % 4 * 4;
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(two) : "memory");
        }
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      sync_group(group);
      if (thread == 0 && first_feature < columns && first_row + part < rows) store_box(map, base, first_feature, first_row + part);
    }
  }
};

#endif

}  // namespace
}  // namespace squareq::cuda
