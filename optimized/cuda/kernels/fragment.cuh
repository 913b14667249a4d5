// What the tensor-core kernels share: how a tile lies in shared memory, and how a warp reads operands of one multiply step from it.
//
// The weight is the left operand (16 features per fragment), the activations are the right one, so that the weight can be converted in registers
// and both kinds of instruction (mma.sync, wgmma) see the same fragments. One step covers 32 bytes of an activation row: 16 values of 16 bits or
// 32 codes. Tiles hold 128-byte rows (64-byte ones for a forward weight that meets 16-bit activations) whose 16-byte chunks are permuted by row,
// the pattern that TMA calls SWIZZLE_128B (SWIZZLE_64B).
#pragma once

#include "optimized/cuda/kernels/finish.cuh"
#include "optimized/cuda/kernels/tile_copy.cuh"

namespace squareq::cuda {

inline constexpr int kFeatures = 128;    // of a block's tile
inline constexpr int kRowBytes = 128;    // of an activation row in a tile
inline constexpr int kSteps = 4;         // multiply steps per tile
inline constexpr int kTilePitch = kFeatures + 4;  // floats between rows of the tile of sums: no bank conflicts for pairs

template <class T>
inline constexpr int kDepth = kRowBytes / static_cast<int>(sizeof(T));  // of a tile, in elements

/// Bytes between rows of the weight's tile.
template <class T, bool kTransposed>
inline constexpr int kWeightRow = kTransposed ? kFeatures : kDepth<T>;

__device__ inline int swizzled_128(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }
__device__ inline int swizzled_32(int row, int chunk) { return row * 32 + ((chunk ^ (row >> 2 & 1)) << 4); }
__device__ inline int swizzled_64(int row, int chunk) { return row * 64 + ((chunk ^ (row >> 1 & 3)) << 4); }

template <class T, bool kTransposed>
__device__ int weight_offset(int row, int chunk) {
  return kWeightRow<T, kTransposed> == 64 ? swizzled_64(row, chunk) : swizzled_128(row, chunk);
}

/// The feature, inside a group of 16, of row `lane_group` (half 0) or `lane_group` + 8 (half 1) of a fragment. A lane's two rows are neighbours, so
/// that it can store pairs; which of them comes first is chosen so that eight lanes read eight different banks.
template <bool kTransposed>
__device__ int feature_of(int lane_group, int half) {
  return 2 * lane_group + (kTransposed ? half : half ^ (lane_group >> 2));
}

__device__ inline unsigned shared_address(const void* pointer) { return static_cast<unsigned>(__cvta_generic_to_shared(pointer)); }

__device__ inline void load_matrices(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ inline void load_matrices_transposed(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ inline void load_two_matrices_transposed(unsigned& a, unsigned& b, unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(a), "=r"(b) : "r"(address) : "memory");
}
__device__ inline unsigned load_two_bytes(unsigned address) {
  unsigned short value;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(address) : "memory");
  return value;
}

/// Codes in bytes 0 and 2 of x as two exact 16-bit floats; the other bytes are ignored.
template <class T>
__device__ unsigned widen(unsigned x);
template <>
__device__ inline unsigned widen<__nv_bfloat16>(unsigned x) {
  // q = (128 + low seven bits) - (128 or 256): both are exact in bf16, and so is the difference. Each half in one instruction, (x & mask) | 128.
  unsigned low, high;
  asm("lop3.b32 %0, %1, 0x007F007F, %2, 0xEA;" : "=r"(low) : "r"(x), "r"(0x43004300u));
  asm("lop3.b32 %0, %1, 0x00800080, %2, 0xEA;" : "=r"(high) : "r"(x), "r"(0x43004300u));
  const __nv_bfloat162 difference = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&low), *reinterpret_cast<const __nv_bfloat162*>(&high));
  return *reinterpret_cast<const unsigned*>(&difference);
}
template <>
__device__ inline unsigned widen<__half>(unsigned x) {
  const unsigned biased = (x & 0x00FF00FFu) ^ 0x64806480u, bias = 0x64806480u;  // 1024 + (q + 128), minus 1152
  const __half2 difference = __hsub2(*reinterpret_cast<const __half2*>(&biased), *reinterpret_cast<const __half2*>(&bias));
  return *reinterpret_cast<const unsigned*>(&difference);
}

/// Features [16 * group, 16 * group + 16) of the weight's tile, for one step: where a lane's bytes lie in the tile, the bytes as they are loaded, and the
/// operand made of them.
template <class T, bool kTransposed>
struct WeightFragment {
  static constexpr int kWords = kTransposed ? 2 : 4, kPlaces = kTransposed ? 1 : 2;

  __device__ static void place(unsigned (&at)[kPlaces], int group, int step, int lane) {
    if constexpr (kTransposed) {
      at[0] = swizzled_128(16 * step + (lane & 15), group);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) at[half] = swizzled_64(16 * group + feature_of<false>(lane >> 2, half), step) + 2 * (lane & 3);
    }
  }
  /// The place of step 0, `step` steps further: down the rows of a transposed tile, along those of the other, whose chunks are exclusive-ored.
  __device__ static unsigned further(unsigned at, int step) { return kTransposed ? at + 16 * step * 128 : at ^ (step << 4); }
  __device__ static void load(unsigned (&raw)[kWords], unsigned tile, const unsigned (&at)[kPlaces]) {
    if constexpr (kTransposed) {
      load_two_matrices_transposed(raw[0], raw[1], tile + at[0]);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) raw[half] = load_two_bytes(tile + at[half]), raw[half + 2] = load_two_bytes(tile + at[half] + 8);
    }
  }
  __device__ static void convert(unsigned (&a)[4], const unsigned (&raw)[kWords]) {
    if constexpr (kTransposed) {
      a[0] = widen<T>(raw[0]), a[1] = widen<T>(raw[0] >> 8), a[2] = widen<T>(raw[1]), a[3] = widen<T>(raw[1] >> 8);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = widen<T>(__byte_perm(raw[i], 0, 0x4140));
    }
  }
};

template <bool kTransposed>
struct WeightFragment<signed char, kTransposed> {
  static constexpr int kWords = 4, kPlaces = 1;

  __device__ static void place(unsigned (&at)[1], int group, int step, int lane) {
    if constexpr (kTransposed) at[0] = swizzled_128(32 * step + lane, group);
    else at[0] = swizzled_128(16 * group + feature_of<false>(lane & 7, lane >> 3 & 1), 2 * step + (lane >> 4));
  }
  __device__ static unsigned further(unsigned at, int step) { return kTransposed ? at + 32 * step * 128 : at ^ (step << 5); }
  __device__ static void load(unsigned (&raw)[4], unsigned tile, const unsigned (&at)[1]) {
    if constexpr (kTransposed) load_matrices_transposed(raw, tile + at[0]);
    else load_matrices(raw, tile + at[0]);
  }
  __device__ static void convert(unsigned (&a)[4], const unsigned (&raw)[4]) {
    if constexpr (kTransposed) {
      a[0] = __byte_perm(raw[0], raw[1], 0x6420), a[1] = __byte_perm(raw[0], raw[1], 0x7531);
      a[2] = __byte_perm(raw[2], raw[3], 0x6420), a[3] = __byte_perm(raw[2], raw[3], 0x7531);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = raw[i];
    }
  }
};

template <class T>
struct Multiply;
template <>
struct Multiply<__nv_bfloat16> {
  using Sum = float;
  __device__ static void step(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
template <>
struct Multiply<__half> {
  using Sum = float;
  __device__ static void step(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
template <>
struct Multiply<signed char> {
  using Sum = int;
  __device__ static void step(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

/// A lane's four sums of a fragment, as they are, into the tile in shared memory: rows [8 * row_group, + 8), features [16 * feature_group, + 16).
template <bool kTransposed, int kPitch = kTilePitch, class S>
__device__ void stage_fragment(float* tile, const S (&sums)[4], int feature_group, int row_group, int lane) {
  const int g = lane >> 2, t = lane & 3;
  const bool swap = !kTransposed && g >= 4;  // feature_of gives the higher feature first there
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto low = static_cast<float>(sums[i]), high = static_cast<float>(sums[2 + i]);
    float* to = tile + (8 * row_group + 2 * t + i) * kPitch + 16 * feature_group + 2 * g;
    *reinterpret_cast<float2*>(to) = swap ? make_float2(high, low) : make_float2(low, high);
  }
}

/// The low-rank branch's sums for kGroups fragments of 8 rows each, from `first_row` on, and the 16 features from `first_feature` on.
template <class T, bool kTransposed, int kGroups>
__device__ void branch_of_16(const Finish& f, float (&sums)[kGroups][4], int first_feature, int first_row, int columns, int rows, int lane) {
  const int g = lane >> 2, t = lane & 3;
  const auto pair = [&](const void* from, int outer, int limit, int r) -> unsigned {
    return outer < limit ? *reinterpret_cast<const unsigned*>(static_cast<const T*>(from) + static_cast<std::int64_t>(outer) * f.rank + r) : 0u;
  };
  const int feature0 = first_feature + feature_of<kTransposed>(g, 0), feature1 = first_feature + feature_of<kTransposed>(g, 1);
#pragma unroll 1
  for (int r = 2 * t; r < f.rank; r += 16) {
    const unsigned a[4] = {pair(f.low_columns, feature0, columns, r), pair(f.low_columns, feature1, columns, r),
                           pair(f.low_columns, feature0, columns, r + 8), pair(f.low_columns, feature1, columns, r + 8)};
    unsigned b[kGroups][2];
#pragma unroll
    for (int j = 0; j < kGroups; ++j) b[j][0] = pair(f.low_rows, first_row + 8 * j + g, rows, r), b[j][1] = pair(f.low_rows, first_row + 8 * j + g, rows, r + 8);
#pragma unroll
    for (int j = 0; j < kGroups; ++j) Multiply<T>::step(sums[j], a, b[j][0], b[j][1]);
  }
}

/// The same in fp32.
template <bool kTransposed, int kGroups>
__device__ void branch_of_32(const Finish& f, float (&sums)[kGroups][4], int first_feature, int first_row, int columns, int rows, int lane) {
  const auto* low_rows = static_cast<const float*>(f.low_rows);
  const auto* low_columns = static_cast<const float*>(f.low_columns);
#pragma unroll
  for (int i = 0; i < 4 * kGroups; ++i) {
    const int feature = first_feature + feature_of<kTransposed>(lane >> 2, i >> 1 & 1), row = first_row + i / 4 * 8 + 2 * (lane & 3) + (i & 1);
    if (feature >= columns || row >= rows) continue;
    for (int r = 0; r < f.rank; ++r)
      sums[i / 4][i % 4] = __fmaf_rn(low_rows[static_cast<std::int64_t>(row) * f.rank + r],
                                     low_columns[static_cast<std::int64_t>(feature) * f.rank + r], sums[i / 4][i % 4]);
  }
}

/// Scales the sums of kRowGroups fragments that this warp staged and adds the branch to them. Every lane touches only what it wrote itself.
template <bool kTransposed, int kRowGroups, int kPitch = kTilePitch>
__device__ void add_branch(const Finish& f, float* tile, int feature_group, int first_row_group, int first_feature, int first_row, int columns, int rows, int lane) {
  constexpr int kGroups = kRowGroups < 8 ? kRowGroups : 8;  // at a time, so that their loads overlap
  const int g = lane >> 2, t = lane & 3;
  float of_column[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int feature = first_feature + 16 * feature_group + feature_of<kTransposed>(g, half);
    of_column[half] = f.column_scale && feature < columns ? f.column_scale[feature] : 1.0f;
  }
#pragma unroll 1
  for (int group = first_row_group; group < first_row_group + kRowGroups; group += kGroups) {
    float branch[kGroups][4] = {};
    const int feature = first_feature + 16 * feature_group, row = first_row + 8 * group;
    if (f.low_dtype == SQ_BF16) branch_of_16<__nv_bfloat16, kTransposed, kGroups>(f, branch, feature, row, columns, rows, lane);
    else if (f.low_dtype == SQ_F16) branch_of_16<__half, kTransposed, kGroups>(f, branch, feature, row, columns, rows, lane);
    else branch_of_32<kTransposed, kGroups>(f, branch, feature, row, columns, rows, lane);
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) {
      const int local_row = 8 * group + i / 4 * 8 + 2 * t + (i & 1), half = i >> 1 & 1;
      if (first_row + local_row >= rows) continue;
      const float of_row = f.row_scale ? f.row_scale[first_row + local_row] : 1.0f;
      float& sum = tile[local_row * kPitch + 16 * feature_group + feature_of<kTransposed>(g, half)];
      sum = __fmaf_rn(f.scaling, branch[i / 4][i % 4], scaled(sum, f.factor, of_row, of_column[half]));
    }
  }
}

}  // namespace squareq::cuda
