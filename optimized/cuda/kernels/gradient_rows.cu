// Gradients to what the weight's product reads, one block per row.
#include "optimized/cuda/kernels/activation.cuh"
#include "optimized/cuda/kernels/launch.cuh"
#include "optimized/cuda/kernels/row_values.cuh"
#include "optimized/cuda/kernels/rows.hpp"

namespace squareq::cuda {
namespace {

/// Eight codes of a group of 16 for a transposed weight, in the order in which a transposing load of 16-bit pairs hands bytes to a lane: pairs of the
/// group's first half and of its second take turns. The neighbouring lane has the other half. `lanes`: those of the warp that call this, in pairs.
__device__ uint2 permuted(uint2 eight, unsigned lanes) {
  const bool second = threadIdx.x % 2 != 0;
  const unsigned other = __shfl_xor_sync(lanes, second ? eight.x : eight.y, 1), mine = second ? eight.y : eight.x;
  const unsigned low = second ? other : mine, high = second ? mine : other;  // pairs of the first and of the second half
  return make_uint2(__byte_perm(low, high, 0x5410), __byte_perm(low, high, 0x7632));
}

/// 2^e with `largest` 2^-e in [2^13, 2^14): small gradients times small scales would fall below the normal numbers of fp16.
__device__ int exponent_for_half(float largest) { return largest > 0 && isfinite(largest) ? max(-110, min(110, ilogbf(largest) - 13)) : 0; }

/// What a row of G scale is divided by, written to row_scale[row] too, and its reciprocal.
struct Divisor {
  float scale = 1, inverse = 1;

  __device__ Divisor(bool codes, float largest, float* row_scale) {
    if (codes) {
      scale = token_scale(largest);
      inverse = __frcp_rn(scale);
    } else {
      scale = scalbnf(1.0f, exponent_for_half(largest));
      inverse = scalbnf(1.0f, -exponent_for_half(largest));
    }
    if (threadIdx.x == 0) *row_scale = scale;
  }
  __device__ Divisor() {}
};

/// v[i] *= scale[i], which is the caller's: nothing writes it while the kernel runs.
__device__ void multiply_by(const float* scale, float (&v)[kEight]) {
  const auto* quads = reinterpret_cast<const float4*>(scale);
  const float4 a = __ldg(quads), b = __ldg(quads + 1);
  const float s[kEight] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < kEight; ++i) v[i] = __fmul_rn(v[i], s[i]);
}

__device__ void multiply(float (&v)[kEight], float factor) {
#pragma unroll
  for (int i = 0; i < kEight; ++i) v[i] = __fmul_rn(v[i], factor);
}

__device__ unsigned largest_of(const float (&v)[kEight], unsigned largest) {
#pragma unroll
  for (int i = 0; i < kEight; ++i) largest = max(largest, magnitude(v[i]));
  return largest;
}

/// Rows that are held. kSlopes: G = dY times the derivative of an activation that Sigmoid serves, and may be asked for; otherwise G is dY. Scaled is the
/// type of `scaled`.
template <class T, bool kSlopes, class Scaled, int kHeld>
__global__ void __launch_bounds__(kMostRowThreads) held_gradient_rows_kernel(const __grid_constant__ GradientRows job) {
  let_next_start();
  constexpr bool kCodes = std::is_same_v<Scaled, std::int8_t>, kByRow = !std::is_same_v<Scaled, __nv_bfloat16>;
  // A slope is not worth computing twice, unless the registers do not suffice to keep what was made.
  constexpr bool kKeeps = kByRow && kSlopes && kHeld < 8;
  const std::int64_t row = blockIdx.x;
  const int columns = static_cast<int>(job.dy.columns), stride = static_cast<int>(job.scaled_stride);
  const Sigmoid sigmoid(job.activation);
  const RowValues<T, kHeld> dy(job.dy, row), before(kSlopes ? job.preactivation : Rows{nullptr, 0, 0, 0, 0}, row);

  const auto gradient = [&](int c, float (&v)[kEight]) {
    dy.get(c, 0, v);
    if constexpr (kSlopes) {
      float p[kEight];
      before.get(c, 0, p);
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = __fmul_rn(v[i], sigmoid.derivative(p[i]));
    }
  };
  const auto store_gradient = [&](int n, const float (&v)[kEight]) {
    if (kSlopes && job.g) store_whole_eight(job.g, job.g_dtype, row * columns + n, v);
  };

  Divisor divisor;
  float kept[kKeeps ? kHeld : 1][kEight] = {};
  if (kByRow && job.scaled) {
    unsigned largest = 0;
    for_eights<kHeld>(columns, [&](int c, int n) {
      float v[kEight];
      gradient(c, v);
      store_gradient(n, v);
      multiply_by(job.scale + n, v);
      largest = largest_of(v, largest);
#pragma unroll
      for (int i = 0; i < kEight; ++i)
        if constexpr (kKeeps) kept[c][i] = v[i];
    });
    divisor = Divisor(kCodes, block_max(largest), job.row_scale + row);
  }
  auto* const to = static_cast<Scaled*>(job.scaled) + row * stride;
#pragma unroll
  for (int c = 0; c < kHeld; ++c) {
    const int n = eight_at(c);
    float v[kEight] = {};  // zeros behind the last column
    if constexpr (kKeeps) {
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = kept[c][i];
    }
    if (n < columns && !(kKeeps && job.scaled)) {
      gradient(c, v);
      if (!kByRow || !job.scaled) store_gradient(n, v);
      if (job.scaled) multiply_by(job.scale + n, v);
    }
    if (kSlopes && !job.scaled) continue;
    if constexpr (kCodes) {
      const uint2 eight = permuted(codes(v, divisor.scale, divisor.inverse), kAllLanes);
      if (n < stride) *reinterpret_cast<uint2*>(to + n) = eight;
    } else if (n < stride) {
      if (kByRow) multiply(v, divisor.inverse);
      store_whole_eight(to, kTypeOf<Scaled>, n, v);
    }
  }
}

/// Rows of any kind, behind any activation, loaded anew for every use.
__global__ void __launch_bounds__(kMostRowThreads) any_gradient_rows_kernel(const __grid_constant__ GradientRows job) {
  let_next_start();
  const std::int64_t row = blockIdx.x, columns = job.dy.columns;
  const bool by_row = job.scaled && (job.scaled_dtype == SQ_F16 || job.scaled_dtype == SQ_I8);  // the row's largest value comes before its first code
  const Sigmoid sigmoid(job.activation);

  /// G of eight columns; zeros beyond the last.
  const auto gradient = [&](std::int64_t n, float (&v)[kEight]) {
    load_eight(job.dy, row, n, v);
    if (job.activation == SQ_ACT_NONE) return;
    float p[kEight];
    load_eight(job.preactivation, row, n, p);
    for (int i = 0; i < kEight; ++i)
      v[i] = __fmul_rn(v[i], Sigmoid::serves(job.activation) ? sigmoid.derivative(p[i]) : activation_derivative(job.activation, p[i]));
  };
  const auto store_gradient = [&](std::int64_t n, const float (&v)[kEight]) {
    if (job.g && n < columns) store_eight(job.g, job.g_dtype, row * columns + n, v, static_cast<int>(min(columns - n, std::int64_t{kEight})));
  };
  const auto multiply_by_scale = [&](std::int64_t n, float (&v)[kEight]) {
    for (int i = 0; i < kEight; ++i) v[i] = n + i < columns ? __fmul_rn(v[i], job.scale[n + i]) : 0.0f;
  };

  Divisor divisor;
  if (by_row) {
    unsigned largest = 0;
    for_eights<0>(columns, [&](int, std::int64_t n) {
      float v[kEight];
      gradient(n, v);
      store_gradient(n, v);
      multiply_by_scale(n, v);
      largest = largest_of(v, largest);
    });
    divisor = Divisor(job.scaled_dtype == SQ_I8, block_max(largest), job.row_scale + row);
  }
  for_eights<0>(job.scaled ? job.scaled_stride : columns, [&](int, std::int64_t n) {
    float v[kEight];
    gradient(n, v);
    if (!by_row) store_gradient(n, v);
    if (!job.scaled) return;
    multiply_by_scale(n, v);
    const std::int64_t at = row * job.scaled_stride + n;
    if (job.scaled_dtype == SQ_I8) {
      *reinterpret_cast<uint2*>(static_cast<std::int8_t*>(job.scaled) + at) = permuted(codes(v, divisor.scale, divisor.inverse), 3u << (threadIdx.x % 32 & 30));
    } else {
      multiply(v, divisor.inverse);
      store_whole_eight(job.scaled, job.scaled_dtype, at, v);
    }
  });
}

/// Whether kernels that hold their rows serve the job.
bool holds(const GradientRows& job, const RowBlock& block, std::int64_t longest) {
  const bool slopes = job.activation != SQ_ACT_NONE;
  if (slopes && (!Sigmoid::serves(job.activation) || !holdable(job.preactivation) || job.preactivation.dtype != job.dy.dtype)) return false;
  if (!slopes && (job.g || !job.scaled)) return false;
  const bool served = !job.scaled || job.scaled_dtype == SQ_I8 || job.scaled_dtype == job.dy.dtype;
  const auto addresses = reinterpret_cast<std::uintptr_t>(job.scale) | reinterpret_cast<std::uintptr_t>(job.g);
  return served && holdable(job.dy) && block.holds(longest) && addresses % 16 == 0;
}

}  // namespace

cudaError_t gradient_rows(const GradientRows& job, cudaStream_t stream) {
  if (job.dy.rows == 0) return cudaSuccess;
  const std::int64_t longest = job.scaled ? job.scaled_stride : job.dy.columns;
  const RowBlock block(longest);
  const auto start = [&](auto kernel) { return launch(kernel, static_cast<unsigned>(job.dy.rows), block.threads, 0, 1, Queue{stream, false}, job); };
  if (!holds(job, block, longest)) return start(any_gradient_rows_kernel);
  return block.with_held(job.dy.dtype, [&](auto type, auto held) {
    using T = decltype(type);
    constexpr int kHeld = decltype(held)::value;
    const bool slopes = job.activation != SQ_ACT_NONE;
    if (job.scaled && job.scaled_dtype == SQ_I8) return start(slopes ? held_gradient_rows_kernel<T, true, std::int8_t, kHeld> : held_gradient_rows_kernel<T, false, std::int8_t, kHeld>);
    return start(slopes ? held_gradient_rows_kernel<T, true, T, kHeld> : held_gradient_rows_kernel<T, false, T, kHeld>);
  });
}

}  // namespace squareq::cuda
