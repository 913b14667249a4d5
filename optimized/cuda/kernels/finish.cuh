// The last step of every product: a tile of sums in shared memory becomes outputs. Products are written with one rounding per step (_rn
// intrinsics), so that a branch of zeros or a bias of zeros leaves the bits alone (SQ-LIN-007, SQ-LOR-006).
#pragma once

#include "optimized/cuda/kernels/activation.cuh"
#include "optimized/cuda/kernels/element.cuh"
#include "optimized/cuda/kernels/product.hpp"

namespace squareq::cuda {

/// sum * factor * row_scale * column_scale, in this order; a factor of 1 changes no bit.
__device__ inline float scaled(float sum, float factor, float of_row, float of_column) {
  return __fmul_rn(__fmul_rn(__fmul_rn(sum, factor), of_row), of_column);
}

__device__ inline float scaled(const Finish& f, float sum, int row, int column) {
  return scaled(sum, f.factor, f.row_scale ? f.row_scale[row] : 1.0f, f.column_scale ? f.column_scale[column] : 1.0f);
}

template <class T>
__device__ void store_four_16(T* to, const float (&v)[4], int count) {
  if (count == 4 && reinterpret_cast<std::uintptr_t>(to) % 8 == 0) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_two<T>(v[0], v[1]), pack_two<T>(v[2], v[3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < count) to[i] = from_float<T>(v[i]);
}

__device__ inline void store_four_f32(float* to, const float (&v)[4], int count, bool add) {
  if (count == 4 && !add && reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
    *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < count) to[i] = add ? __fadd_rn(to[i], v[i]) : v[i];
}

/// v[0, count) at (row, column...) of `out`.
__device__ inline void store_four(const Output& out, std::int64_t row, int column, const float (&v)[4], int count, bool add) {
  const std::int64_t at = row * out.stride + column;
  switch (out.dtype) {
    case SQ_BF16: store_four_16(static_cast<__nv_bfloat16*>(out.data) + at, v, count); break;
    case SQ_F16: store_four_16(static_cast<__half*>(out.data) + at, v, count); break;
    default: store_four_f32(static_cast<float*>(out.data) + at, v, count, add);
  }
}

/// Scales (unless the branch was added, which needs scaled sums), bias, preactivation, activation and stores of a tile [kRows, kColumns] that lies
/// in shared memory, rows `pitch` floats apart. A thread keeps its four columns.
template <int kRows, int kColumns, int kThreadCount>
__device__ void store_tile(const Finish& f, const float* tile, int pitch, int first_row, int first_column, int rows, int columns, int thread) {
  constexpr int kGroups = kColumns / 4, kStep = kThreadCount / kGroups;
  static_assert(kThreadCount % kGroups == 0 && kRows % kStep == 0, "every thread keeps its columns");
  const int local_column = thread % kGroups * 4, column = first_column + local_column, count = min(4, columns - column);
  if (count <= 0) return;
  const Sigmoid sigmoid(f.activation);
  float bias[4], factor[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    bias[c] = f.bias && c < count ? f.bias[column + c] : 0.0f;
    factor[c] = f.column_scale && c < count ? f.column_scale[column + c] : 1.0f;
  }
#pragma unroll 4
  for (int local_row = thread / kGroups; local_row < kRows; local_row += kStep) {
    const int row = first_row + local_row;
    if (row >= rows) continue;
    const float4 sums = *reinterpret_cast<const float4*>(tile + local_row * pitch + local_column);
    float v[4] = {sums.x, sums.y, sums.z, sums.w};
    if (!f.rank) {
      const float of_row = f.row_scale ? f.row_scale[row] : 1.0f;
#pragma unroll
      for (int c = 0; c < 4; ++c) v[c] = scaled(v[c], f.factor, of_row, factor[c]);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (f.bias) v[c] = __fadd_rn(v[c], bias[c]);
    if (f.preactivation.data) store_four(f.preactivation, row, column, v, count, false);
    if (f.y.dtype != SQ_F32 && Sigmoid::serves(f.activation)) {
#pragma unroll
      for (int c = 0; c < 4; ++c) v[c] = sigmoid(v[c]);
    } else if (f.activation != SQ_ACT_NONE) {
#pragma unroll
      for (int c = 0; c < 4; ++c) v[c] = activate(f.activation, v[c]);
    }
    store_four(f.y, row, column, v, count, f.add);
  }
}

}  // namespace squareq::cuda
