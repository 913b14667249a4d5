// From a warpgroup's sums in registers to outputs: parts of a split tile are exchanged, then scales, branch, bias and activation, then the way out.
// A lane holds, of fragment j, rows 8 j + 2 t and the next, and two neighbouring features.
#pragma once

#include "optimized/cuda/kernels/wgmma_pipeline.cuh"

namespace squareq::cuda {
namespace {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

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
/// factors, [kRows, rank] and [64, rank] of 16 bits, in the warpgroup's part of shared memory.
template <bool kTransposed, int kRows>
struct Asked {
  float of_column[2], bias[2];

  /// Every thread of a warpgroup calls this; `first_feature` is the warpgroup's.
  __device__ void ask(const Finish& f, unsigned to, int first_feature, int first_row, int columns, int rows, int group, int thread) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int feature = first_feature + thread / 32 * 16 + feature_of<kTransposed>(thread >> 2 & 7, half);
      of_column[half] = f.column_scale && feature < columns ? f.column_scale[feature] : 1.0f;
      bias[half] = f.bias && feature < columns ? f.bias[feature] : 0.0f;
    }
    if (!f.rank) return;
    if (thread == 0) wait_stores_read();
    sync_group(group);
    const int row_bytes = f.rank * 2;
    copy(to, static_cast<const unsigned char*>(f.low_rows) + static_cast<std::int64_t>(first_row) * row_bytes, min(kRows, rows - first_row) * row_bytes,
         kRows * row_bytes, thread);
    copy(to + kRows * row_bytes, static_cast<const unsigned char*>(f.low_columns) + static_cast<std::int64_t>(first_feature) * row_bytes,
         min(64, columns - first_feature) * row_bytes, 64 * row_bytes, thread);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  /// Before any of it is used, and before the warpgroup's part of shared memory is written.
  __device__ static void wait(const Finish& f, int group, int thread) {
    if (f.rank) asm volatile("cp.async.wait_all;" ::: "memory");
    else if (thread == 0) wait_stores_read();
    sync_group(group);
  }

 private:
  /// `valid` bytes and zeros up to `bytes`.
  __device__ static void copy(unsigned to, const unsigned char* from, int valid, int bytes, int thread) {
    for (int at = 16 * thread; at < bytes; at += 16 * kGroupThreads) copy_chunk(to + at, at < valid ? from + at : from, at < valid ? 16 : 0, true);
  }
};

/// The branch's sums for kBatch fragments from `local_row` on and a warp's 16 features; its factors lie at low_rows and low_columns.
template <class T, bool kTransposed, int kBatch>
__device__ void staged_branch(float (&sums)[kBatch][4], int rank, unsigned low_rows, unsigned low_columns, int local_row, int lane) {
  const unsigned column = low_columns + feature_of<kTransposed>(lane & 7, lane >> 3 & 1) * rank * 2 + (lane >> 4) * 16;
  const unsigned row = low_rows + (local_row + (lane >> 4) * 8 + (lane & 7)) * rank * 2 + (lane >> 3 & 1) * 16;
#pragma unroll 1
  for (int r = 0; r < rank; r += 16) {
    unsigned a[4];  // (features, ranks) halves (0,0), (1,0), (0,1), (1,1)
    load_matrices(a, column + 2 * r);
#pragma unroll
    for (int j = 0; j < kBatch; j += 2) {
      unsigned b[4];  // (rows, ranks) halves (0,0), (0,1), (1,0), (1,1)
      load_matrices(b, row + 16 * j * rank + 2 * r);
      Multiply<T>::step(sums[j], a, b[0], b[1]);
      Multiply<T>::step(sums[j + 1], a, b[2], b[3]);
    }
  }
}

/// Scales the sums and adds the branch, of 16-bit factors, and the bias: sums become values. What a call does not have costs it no instruction.
template <bool kTransposed, int kRows, class Sum>
__device__ void finish_sums(const Finish& f, Sum (&sums)[kRows / 8][4], const Asked<kTransposed, kRows>& asked, unsigned low_rows, int first_row, int rows, int thread) {
  const int lane = thread % 32, t = lane & 3;
  const unsigned low_columns = low_rows + (kRows + thread / 32 * 16) * f.rank * 2;
  constexpr int kBatch = 8;  // fragments at a time, so that their loads overlap
#pragma unroll
  for (int batch = 0; batch < kRows / 8; batch += kBatch) {
    asm volatile("" ::: "memory");  // the next batch's loads stay behind: there are no registers for them
    float v[kBatch][4];
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) v[j][i] = static_cast<float>(sums[batch + j][i]);
    if (f.factor != 1.0f) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) v[j][i] = __fmul_rn(v[j][i], f.factor);
    }
    if (f.row_scale) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = first_row + 8 * (batch + j) + 2 * t + i;
          const float of_row = row < rows ? f.row_scale[row] : 1.0f;
          v[j][i] = __fmul_rn(v[j][i], of_row), v[j][2 + i] = __fmul_rn(v[j][2 + i], of_row);
        }
    }
    if (f.column_scale) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) v[j][i] = __fmul_rn(v[j][i], asked.of_column[i >> 1]);
    }
    if (f.rank) {
      float branch[kBatch][4] = {};
      if (f.low_dtype == SQ_BF16) staged_branch<__nv_bfloat16, kTransposed>(branch, f.rank, low_rows, low_columns, 8 * batch, lane);
      else staged_branch<__half, kTransposed>(branch, f.rank, low_rows, low_columns, 8 * batch, lane);
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) v[j][i] = __fmaf_rn(f.scaling, branch[j][i], v[j][i]);
    }
    if (f.bias) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) v[j][i] = __fadd_rn(v[j][i], asked.bias[i >> 1]);
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) set_value(sums[batch + j][i], v[j][i]);
  }
}

/// Where a warpgroup's 64 features by kRows rows go: by way of its part of shared memory, a number of rows at a time.
template <bool kTransposed, class Sum, int kRows, int kStagingRows>
struct WayOut {
  static constexpr int kGroups = kRows / 8;
  static constexpr int kPitch = 64 + 4;  // floats between rows of the tile of sums: no bank conflicts for pairs
  unsigned char* staging;
  int group, thread, first_feature, first_row, columns, rows;  // group: of the block's two; thread: of the warpgroup

  /// Finishes the sums in registers and lets the copy engine write them. One output of 16 bits that a map describes, no activation.
  __device__ void through_map(const Finish& f, const CUtensorMap* map, Sum (&sums)[kGroups][4], const Asked<kTransposed, kRows>& asked) const {
    asked.wait(f, group, thread);
    finish_sums<kTransposed, kRows>(f, sums, asked, shared_address(staging), first_row, rows, thread);
    if (f.y.dtype == SQ_BF16) copy_out<__nv_bfloat16>(map, sums, f.rank != 0);
    else copy_out<__half>(map, sums, f.rank != 0);
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
  /// `by_branch`: the branch's factors still lie where the values go.
  template <class O>
  __device__ void copy_out(const CUtensorMap* map, const Sum (&sums)[kGroups][4], bool by_branch) const {
    const int g = thread >> 2 & 7, t = thread & 3, warp = thread / 32;
    const unsigned order = feature_of<kTransposed>(g, 0) & 1 ? 0x1032 : 0x3210;  // the higher feature may come first
    const unsigned base = shared_address(staging);
#pragma unroll
    for (int part = 0; part < kRows; part += kStagingRows) {
      if (thread == 0 && part > 0) wait_stores_read();
      if (part > 0 || by_branch) sync_group(group);
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
