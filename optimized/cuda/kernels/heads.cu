// A group of 8 to 32 lanes takes a head, eight elements a lane and turn: one turn for heads of up to 256 elements, which then stay in registers. A warp
// takes some heads of one row, so that a lane reads its part of weight and table once and has several heads under way at a time.
#include <algorithm>

#include "optimized/cuda/kernels/eight.cuh"
#include "optimized/cuda/kernels/heads.hpp"

namespace squareq::cuda {
namespace {

/// The sum over a group of lanes, in each of them; the order of addition is fixed.
template <int kLanes>
__device__ float group_sum(float mine) {
#pragma unroll
  for (int apart = 1; apart < kLanes; apart *= 2) mine = __fadd_rn(mine, __shfl_xor_sync(kAllLanes, mine, apart));
  return mine;
}

/// Weight and table of eight elements of a head; weight 0 behind its end.
struct Constants {
  float weight[kEight], rope[kEight];

  __device__ void load(const Heads& job, std::int64_t row, std::int64_t first) {
    load_eight({const_cast<void*>(job.weight), job.weight_dtype, 1, job.size, job.size}, 0, first, weight);
    if (!job.rope) return;
    const std::int64_t position = job.positions == job.x.rows ? row : row % job.positions;  // a division takes longer than all the rest
    load_eight({const_cast<float*>(job.rope), SQ_F32, job.positions, job.size, job.rope_stride}, position, first, rope);
  }
};

/// Elements [first, first + 8) of a head; zeros behind its end, or all of them where there is no such head. kWide: 16 bits, and every eight elements of
/// every head at a multiple of 16 bytes.
template <bool kWide>
__device__ void load_of_head(const Rows& from, const Heads& job, std::int64_t row, std::int64_t head, std::int64_t first, float (&v)[kEight]) {
  const std::int64_t at = head * job.size + first;
  if constexpr (kWide) {
    const bool inside = first < job.size && at < from.columns;
    widen_eight(inside ? *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(from.data) + row * from.row_stride + at) : make_uint4(0, 0, 0, 0), from.dtype, v);
  } else {
    Rows within = from;
    within.columns = head * job.size < from.columns ? (head + 1) * job.size : 0;
    load_eight(within, row, at, v);
  }
}

/// Pair by pair: (a, b) to (a cos - b sin, a sin + b cos), or back.
template <bool kBack>
__device__ void rotate(const float (&rope)[kEight], float (&v)[kEight]) {
#pragma unroll
  for (int i = 0; i < kEight; i += 2) {
    const float a = v[i], b = v[i + 1], cosine = rope[i], sine = kBack ? -rope[i + 1] : rope[i + 1];
    v[i] = __fmaf_rn(a, cosine, -__fmul_rn(b, sine));
    v[i + 1] = __fmaf_rn(a, sine, __fmul_rn(b, cosine));
  }
}

/// What one turn of a lane adds to its head's sums: x^2, and, backward, x weight g.
struct Sums {
  float squares = 0, products = 0;

  __device__ void add(const float (&x)[kEight]) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) squares = __fmaf_rn(x[i], x[i], squares);
  }
  __device__ void add(const float (&x)[kEight], const float (&weighted)[kEight]) {
    add(x);
#pragma unroll
    for (int i = 0; i < kEight; ++i) products = __fmaf_rn(x[i], weighted[i], products);
  }
};

/// y from x, in place.
__device__ void finish(const Heads& job, const Constants& constants, float inverse, float (&x)[kEight]) {
#pragma unroll
  for (int i = 0; i < kEight; ++i) x[i] = __fmul_rn(__fmul_rn(x[i], inverse), constants.weight[i]);
  if (job.rope) rotate<false>(constants.rope, x);
}

/// weight g from dy, in place.
__device__ void weigh(const Heads& job, const Constants& constants, float (&dy)[kEight]) {
  if (job.rope) rotate<true>(constants.rope, dy);
#pragma unroll
  for (int i = 0; i < kEight; ++i) dy[i] = __fmul_rn(dy[i], constants.weight[i]);
}

/// dx = r (weight g - x r^2 mean(x weight g)) from weight g, in place.
__device__ void finish_gradient(float inverse, float share, const float (&x)[kEight], float (&weighted)[kEight]) {
#pragma unroll
  for (int i = 0; i < kEight; ++i) weighted[i] = __fmul_rn(inverse, __fmaf_rn(-x[i], share, weighted[i]));
}

template <bool kGradient, bool kWide, int kLanes, int kHeads>
__global__ void __launch_bounds__(kThreads, kGradient ? 3 : 2) heads_kernel(const __grid_constant__ Heads job, std::int64_t heads) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const std::int64_t first_head = blockIdx.y * (kHeads * (32 / kLanes)) + threadIdx.x % 32 / kLanes, first = threadIdx.x % kLanes * kEight;
  if (row >= job.x.rows) return;  // all of a warp
  const float size = static_cast<float>(job.size);
  const auto inverse_of = [&](float squares) { return __frsqrt_rn(__fadd_rn(__fdiv_rn(squares, size), job.epsilon)); };
  const auto share_of = [&](float inverse, float products) { return __fmul_rn(__fmul_rn(inverse, inverse), __fdiv_rn(products, size)); };
  const auto store = [&](std::int64_t head, std::int64_t at, const float(&v)[kEight]) {
    if (head < heads && at < job.size)
      store_eight(job.out.data, job.out.dtype, row * job.out.row_stride + head * job.size + at, v, static_cast<int>(min(job.size - at, std::int64_t{kEight})));
  };

  if (job.size <= kLanes * kEight) {
    Constants constants;
    constants.load(job, row, first);
    float x[kHeads][kEight], dy[kGradient ? kHeads : 1][kEight];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      load_of_head<kWide>(job.x, job, row, first_head + h * (32 / kLanes), first, x[h]);
      if constexpr (kGradient) load_of_head<kWide>(job.dy, job, row, first_head + h * (32 / kLanes), first, dy[h]);
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      Sums sums;
      if constexpr (kGradient) weigh(job, constants, dy[h]), sums.add(x[h], dy[h]);
      else sums.add(x[h]);
      const float inverse = inverse_of(group_sum<kLanes>(sums.squares));
      if constexpr (kGradient) {
        finish_gradient(inverse, share_of(inverse, group_sum<kLanes>(sums.products)), x[h], dy[h]);
        store(first_head + h * (32 / kLanes), first, dy[h]);
      } else {
        finish(job, constants, inverse, x[h]);
        store(first_head + h * (32 / kLanes), first, x[h]);
      }
    }
    return;
  }
  for (int h = 0; h < kHeads; ++h) {  // longer heads are read twice
    const std::int64_t head = first_head + h * (32 / kLanes);
    Sums sums;
    const auto turn = [&](std::int64_t at, const auto& body) {
      Constants constants;
      constants.load(job, row, at);
      float x[kEight], dy[kEight];
      load_of_head<kWide>(job.x, job, row, head, at, x);
      if constexpr (kGradient) load_of_head<kWide>(job.dy, job, row, head, at, dy), weigh(job, constants, dy);
      body(constants, x, dy);
    };
    for (std::int64_t at = first; at < job.size; at += kLanes * kEight)
      turn(at, [&](const Constants&, float(&x)[kEight], float(&dy)[kEight]) {
        if constexpr (kGradient) sums.add(x, dy);
        else sums.add(x);
      });
    const float inverse = inverse_of(group_sum<kLanes>(sums.squares)), share = kGradient ? share_of(inverse, group_sum<kLanes>(sums.products)) : 0;
    for (std::int64_t at = first; at < job.size; at += kLanes * kEight)
      turn(at, [&](const Constants& constants, float(&x)[kEight], float(&dy)[kEight]) {
        if constexpr (kGradient) {
          finish_gradient(inverse, share, x, dy);
          store(head, at, dy);
        } else {
          finish(job, constants, inverse, x);
          store(head, at, x);
        }
      });
  }
}

template <bool kGradient, bool kWide, int kLanes>
cudaError_t launch(const Heads& job, cudaStream_t stream) {
  constexpr int kHeads = kGradient ? 2 : 4, kPerWarp = kHeads * (32 / kLanes);
  const std::int64_t heads = job.x.columns / job.size, pieces = (heads + kPerWarp - 1) / kPerWarp, blocks = (job.x.rows + kThreads / 32 - 1) / (kThreads / 32);
  heads_kernel<kGradient, kWide, kLanes, kHeads><<<dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(pieces)), kThreads, 0, stream>>>(job, heads);
  return cudaGetLastError();
}

bool is_wide(const Rows& rows) { return rows.dtype != SQ_F32 && (reinterpret_cast<std::uintptr_t>(rows.data) | static_cast<std::uintptr_t>(rows.row_stride * 2)) % 16 == 0; }

template <bool kGradient>
cudaError_t launch(const Heads& job, cudaStream_t stream) {
  if (job.x.rows == 0 || job.x.columns == 0) return cudaSuccess;
  if (job.size % kEight != 0 || !is_wide(job.x) || !is_wide(job.out) || (kGradient && !is_wide(job.dy))) return launch<kGradient, false, 32>(job, stream);
  if (job.size <= 8 * kEight) return launch<kGradient, true, 8>(job, stream);
  if (job.size <= 16 * kEight) return launch<kGradient, true, 16>(job, stream);
  return launch<kGradient, true, 32>(job, stream);
}

}  // namespace

cudaError_t rms_norm_rope(const Heads& job, cudaStream_t stream) { return launch<false>(job, stream); }
cudaError_t rms_norm_rope_gradient(const Heads& job, cudaStream_t stream) { return launch<true>(job, stream); }

}  // namespace squareq::cuda
