// Elements of the floating dtypes, the reductions over a block, and the switch from a dtype to a type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "squareq/contract.h"

namespace squareq::cuda {

inline constexpr int kThreads = 256;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(double x) { return __double2float_rn(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) { return x; }
template <>
__device__ inline __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

/// Element `index` of an array of sq_dtype `dtype`, also I8.
__device__ inline float load_any(const void* data, int dtype, std::int64_t index) {
  switch (dtype) {
    case SQ_BF16: return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
    case SQ_F16: return to_float(static_cast<const __half*>(data)[index]);
    case SQ_I8: return static_cast<float>(static_cast<const signed char*>(data)[index]);
    default: return static_cast<const float*>(data)[index];
  }
}

template <class T>
__device__ unsigned pack_two(float a, float b) {
  const T pair[2] = {from_float<T>(a), from_float<T>(b)};
  unsigned bits;
  memcpy(&bits, pair, sizeof bits);
  return bits;
}

/// Blocks for `work` items that loop by the grid's size: enough to fill any device, never more than the grid's limit.
inline unsigned grid_for(std::int64_t work, std::int64_t per_block) {
  const std::int64_t blocks = (work + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > 32768 ? 32768 : blocks);
}

/// Calls body with a value of the element type of `dtype`; cudaErrorInvalidValue for a dtype that is no float.
template <class Body>
cudaError_t with_float_type(std::int32_t dtype, const Body& body) {
  switch (dtype) {
    case SQ_F32: return body(float{});
    case SQ_F64: return body(double{});
    case SQ_F16: return body(__half{});
    case SQ_BF16: return body(__nv_bfloat16{});
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace squareq::cuda
