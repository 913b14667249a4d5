// A row of activations or gradients in the hands of a block: eight neighbouring elements per thread at a time.
#pragma once

#include <algorithm>
#include <type_traits>

#include "optimized/cuda/kernels/eight.cuh"

namespace squareq::cuda {

inline constexpr int kMostRowThreads = 512;
/// What a kernel is compiled for where nothing is known before it runs: dtype, alignment and length of the rows, what is done to them.
inline constexpr int kAny = -1;
struct AnyType {};

__device__ inline unsigned magnitude(float x) { return __float_as_uint(x) & 0x7FFFFFFFu; }

/// The block's largest magnitude, in every thread; NaN where any is NaN or infinite. As bits, magnitudes are ordered like integers, and what is not
/// finite lies above all that is. Once per kernel: nobody waits for the others to have read.
__device__ inline float block_max(unsigned mine) {
  __shared__ unsigned of_warp[kMostRowThreads / 32];
  mine = __reduce_max_sync(kAllLanes, mine);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();
  const unsigned all = __reduce_max_sync(kAllLanes, threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : 0);
  return __uint_as_float(all >= 0x7F800000u ? 0x7FFFFFFFu : all);
}

__device__ inline float token_scale(float largest) { return isnan(largest) ? largest : fmaxf(__fdiv_rn(largest, 127.0f), 1e-30f); }

/// round_half_even(x / scale) of eight elements, four bytes to a word; 0 where the scale is NaN. `inverse` is 1 / scale, rounded. A quotient by it that
/// is corrected by its remainder is the rounded quotient: exactly so at a tie, which rows of 16 bits often hold. Nothing is beyond 127: the scale is that
/// of the row's largest element.
__device__ inline uint2 codes(const float (&v)[kEight], float scale, float inverse) {
  constexpr float kWhole = 12582912.0f;  // 1.5 2^23: what is added to it is rounded to whole numbers, whose lowest byte is the code
  if (isnan(scale)) return make_uint2(0, 0);
  unsigned bits[kEight];
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    const float near = __fmul_rn(v[i], inverse), quotient = __fmaf_rn(__fmaf_rn(-near, scale, v[i]), inverse, near);
    bits[i] = __float_as_uint(__fadd_rn(quotient, kWhole));
  }
  const auto pack = [](unsigned a, unsigned b, unsigned c, unsigned d) { return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410); };
  return make_uint2(pack(bits[0], bits[1], bits[2], bits[3]), pack(bits[4], bits[5], bits[6], bits[7]));
}

template <class T>
inline constexpr std::int32_t kTypeOf = std::is_same_v<T, __half> ? std::int32_t{SQ_F16} : std::int32_t{SQ_BF16};

/// Where this thread's c-th eight of a row that is held begins.
__device__ inline int eight_at(int c) { return kEight * static_cast<int>(threadIdx.x + c * blockDim.x); }

/// body(c, k) for this thread's eights of [0, end): k = eight_at(c), c = 0, 1, ... With kHeld > 0, c < kHeld is known at compile time.
template <int kHeld, class Body>
__device__ void for_eights(std::int64_t end, const Body& body) {
  if constexpr (kHeld > 0) {
#pragma unroll
    for (int c = 0; c < kHeld; ++c)
      if (const int k = eight_at(c); k < static_cast<int>(end)) body(c, k);
  } else {
    for (std::int64_t k = kEight * threadIdx.x; k < end; k += kEight * blockDim.x) body(0, k);
  }
}

/// A thread's share of a row of T (__half, __nv_bfloat16): kHeld eights, asked for at once and kept as they were loaded. Rows are as holdable() wants them.
template <class T, int kHeld>
class RowValues {
 public:
  __device__ RowValues(const Rows& from, std::int64_t row) {
    const T* values = static_cast<const T*>(from.data) + row * from.row_stride;
#pragma unroll
    for (int c = 0; c < kHeld; ++c) held_[c] = make_uint4(0, 0, 0, 0);
    for_eights<kHeld>(from.columns, [&](int c, int k) { held_[c] = *reinterpret_cast<const uint4*>(values + k); });
  }
  /// The c-th eight, zeros behind the row's end.
  __device__ void get(int c, std::int64_t, float (&v)[kEight]) const { widen_eight(held_[c], kTypeOf<T>, v); }
  /// The largest magnitude of all of them, as the bits of a float. Two at a time: those of 16 bits are ordered like integers too.
  __device__ unsigned largest() const {
    unsigned pair = 0;
#pragma unroll
    for (int c = 0; c < kHeld; ++c)
      for (const unsigned word : {held_[c].x, held_[c].y, held_[c].z, held_[c].w}) pair = __vmaxu2(pair, word & 0x7FFF7FFFu);
    float v[kEight];
    widen_eight(make_uint4(pair, 0, 0, 0), kTypeOf<T>, v);
    return max(magnitude(v[0]), magnitude(v[1]));
  }

 private:
  uint4 held_[kHeld];
};

/// A row of any kind, loaded anew for every use.
template <>
class RowValues<AnyType, 0> {
 public:
  __device__ RowValues(const Rows& from, std::int64_t row) : from_(from), row_(row) {}
  __device__ void get(int, std::int64_t k, float (&v)[kEight]) const { load_eight(from_, row_, k, v); }

 private:
  const Rows& from_;
  std::int64_t row_;
};

/// Whether rows can be held: 16 bits, eight elements at a time.
inline bool holdable(const Rows& rows) {
  return rows.dtype != SQ_F32 && rows.columns % kEight == 0 && (reinterpret_cast<std::uintptr_t>(rows.data) | static_cast<std::uintptr_t>(rows.row_stride * 2)) % 16 == 0;
}

/// How rows of `columns` elements are shared out: to as many threads as leave each at most `eights` of them. By length alone, so that no sum depends on
/// how a row is loaded.
struct RowBlock {
  int eights;
  unsigned threads;

  explicit RowBlock(std::int64_t columns) {
    eights = 2;
    while (eights < 8 && columns > eights * kEight * kMostRowThreads) eights *= 2;
    const std::int64_t wanted = (columns + eights * kEight - 1) / (eights * kEight);
    threads = static_cast<unsigned>(std::clamp<std::int64_t>((wanted + 31) / 32 * 32, 32, kMostRowThreads));
  }
  bool holds(std::int64_t columns) const { return columns <= static_cast<std::int64_t>(eights) * kEight * threads; }

  /// Calls body with a value of the type of `dtype` and the number of eights as a type.
  template <class Body>
  cudaError_t with_held(std::int32_t dtype, const Body& body) const {
    const auto typed = [&](auto held) { return dtype == SQ_F16 ? body(__half{}, held) : body(__nv_bfloat16{}, held); };
    switch (eights) {
      case 2: return typed(std::integral_constant<int, 2>());
      case 4: return typed(std::integral_constant<int, 4>());
      default: return typed(std::integral_constant<int, 8>());
    }
  }
};

}  // namespace squareq::cuda
