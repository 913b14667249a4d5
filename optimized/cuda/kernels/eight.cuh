// Eight neighbouring elements of a row at a time: 16 bytes of a 16-bit dtype.
#pragma once

#include "optimized/cuda/kernels/element.cuh"
#include "optimized/cuda/kernels/kernels.hpp"

namespace squareq::cuda {

inline constexpr int kEight = 8;

/// Eight 16-bit elements as they lie in memory, in fp32.
__device__ inline void widen_eight(const uint4& raw, int dtype, float (&v)[kEight]) {
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (dtype == SQ_BF16) {
      v[2 * i] = __uint_as_float(words[i] << 16), v[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
    } else {
      const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
      v[2 * i] = pair.x, v[2 * i + 1] = pair.y;
    }
  }
}

/// Elements [column, column + 8) of a row, zeros from `columns` on; in 16-byte loads where the address allows them.
__device__ inline void load_eight(const Rows& from, std::int64_t row, std::int64_t column, float (&v)[kEight]) {
  const std::int64_t at = row * from.row_stride + column;
  const bool whole = column + kEight <= from.columns;
  if (whole && from.dtype != SQ_F32 && (reinterpret_cast<std::uintptr_t>(from.data) + 2 * at) % 16 == 0) {
    widen_eight(*reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(from.data) + at), from.dtype, v);
    return;
  }
  if (whole && from.dtype == SQ_F32 && (reinterpret_cast<std::uintptr_t>(from.data) + 4 * at) % 16 == 0) {
    const auto* quads = reinterpret_cast<const float4*>(static_cast<const float*>(from.data) + at);
    const float4 a = quads[0], b = quads[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i) v[i] = column + i < from.columns ? load_any(from.data, from.dtype, at + i) : 0.0f;
}

__device__ inline void store_any(void* data, int dtype, std::int64_t index, float value) {
  switch (dtype) {
    case SQ_BF16: static_cast<__nv_bfloat16*>(data)[index] = from_float<__nv_bfloat16>(value); break;
    case SQ_F16: static_cast<__half*>(data)[index] = from_float<__half>(value); break;
    default: static_cast<float*>(data)[index] = value;
  }
}

/// v[0, 8) at data + index, a multiple of 16 bytes.
__device__ inline void store_whole_eight(void* data, int dtype, std::int64_t index, const float (&v)[kEight]) {
  if (dtype == SQ_F32) {
    auto* to = reinterpret_cast<float4*>(static_cast<float*>(data) + index);
    to[0] = make_float4(v[0], v[1], v[2], v[3]), to[1] = make_float4(v[4], v[5], v[6], v[7]);
    return;
  }
  auto* to = reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(data) + index);
  *to = dtype == SQ_BF16 ? make_uint4(pack_two<__nv_bfloat16>(v[0], v[1]), pack_two<__nv_bfloat16>(v[2], v[3]), pack_two<__nv_bfloat16>(v[4], v[5]),
                                      pack_two<__nv_bfloat16>(v[6], v[7]))
                         : make_uint4(pack_two<__half>(v[0], v[1]), pack_two<__half>(v[2], v[3]), pack_two<__half>(v[4], v[5]), pack_two<__half>(v[6], v[7]));
}

/// v[0, 8) at data + index, of which `count` exist; in 16-byte stores where the address allows them.
__device__ inline void store_eight(void* data, int dtype, std::int64_t index, const float (&v)[kEight], int count) {
  if (count >= kEight && (reinterpret_cast<std::uintptr_t>(data) + (dtype == SQ_F32 ? 4 : 2) * index) % 16 == 0) {
    store_whole_eight(data, dtype, index, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i)
    if (i < count) store_any(data, dtype, index + i, v[i]);
}

}  // namespace squareq::cuda
