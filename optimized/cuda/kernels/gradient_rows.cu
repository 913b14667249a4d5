// Gradients to what the weight's product reads, one block per row.
#include "optimized/cuda/kernels/activation.cuh"
#include "optimized/cuda/kernels/launch.cuh"
#include "optimized/cuda/kernels/row_values.cuh"
#include "optimized/cuda/kernels/rows.hpp"

namespace squareq::cuda {
namespace {

/// What dY is multiplied by: nothing, the derivative of one that Sigmoid serves, or that of whichever the call names.
enum class Slope { none, sigmoid, any };

/// Eight codes of a group of 16 for a transposed weight, in the order in which a transposing load of 16-bit pairs hands bytes to a lane: pairs of the
/// group's first half and of its second take turns. The neighbouring lane has the other half; each stores eight bytes, `to` being its own place.
__device__ void store_permuted(std::int8_t* to, uint2 eight, bool second) {
  const unsigned pair = 3u << (threadIdx.x % 32 & 30);
  const unsigned other = __shfl_xor_sync(pair, second ? eight.x : eight.y, 1), mine = second ? eight.y : eight.x;
  const unsigned low = second ? other : mine, high = second ? mine : other;  // pairs of the first and of the second half
  *reinterpret_cast<uint2*>(to) = make_uint2(__byte_perm(low, high, 0x5410), __byte_perm(low, high, 0x7632));
}

/// 2^e with `largest` 2^-e in [2^13, 2^14): small gradients times small scales would fall below the normal numbers of fp16.
__device__ int exponent_for_half(float largest) { return largest > 0 && isfinite(largest) ? max(-110, min(110, ilogbf(largest) - 13)) : 0; }

/// v[i] *= scale[i]. The caller's, so nothing writes it while the kernel runs.
__device__ void multiply_by(const float* scale, float (&v)[kEight]) {
  const auto* quads = reinterpret_cast<const float4*>(scale);
  const float4 a = __ldg(quads), b = __ldg(quads + 1);
  const float s[kEight] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < kEight; ++i) v[i] = __fmul_rn(v[i], s[i]);
}

/// Scaled is the type of `scaled`, AnyType where only the call knows it.
template <class T, Slope kSlope, class Scaled, int kHeld>
__global__ void __launch_bounds__(kMostRowThreads) gradient_rows_kernel(const __grid_constant__ GradientRows job) {
  let_next_start();
  constexpr bool kAnyScaled = std::is_same_v<Scaled, AnyType>;
  // A slope is not worth computing twice, unless the registers do not suffice to keep what was made.
  constexpr bool kKeeps = kHeld > 0 && kHeld < 8 && kSlope == Slope::sigmoid && !std::is_same_v<Scaled, __nv_bfloat16>;
  const std::int64_t row = blockIdx.x, columns = job.dy.columns;
  const std::int32_t scaled_dtype = kAnyScaled ? job.scaled_dtype : std::is_same_v<Scaled, std::int8_t> ? std::int32_t{SQ_I8} : kTypeOf<Scaled>;
  const bool by_row = job.scaled && (scaled_dtype == SQ_F16 || scaled_dtype == SQ_I8);  // the row's largest value comes before its first code
  const bool slopes = kSlope == Slope::any ? job.activation != SQ_ACT_NONE : kSlope == Slope::sigmoid;
  const Sigmoid sigmoid(job.activation);
  const Rows nothing{nullptr, job.dy.dtype, 0, 0, 0};
  const RowValues<T, kHeld> dy(job.dy, row), before(kSlope == Slope::none ? nothing : job.preactivation, row);

  /// G of eight columns; zeros beyond the last.
  const auto gradient = [&](int c, std::int64_t n, float (&v)[kEight]) {
    dy.get(c, n, v);
    if (!slopes) return;
    float p[kEight];
    before.get(c, n, p);
    if (kSlope == Slope::sigmoid || Sigmoid::serves(job.activation)) {
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = __fmul_rn(v[i], sigmoid.derivative(p[i]));
    } else {
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = __fmul_rn(v[i], activation_derivative(job.activation, p[i]));
    }
  };
  const auto multiply_by_scale = [&](std::int64_t n, float (&v)[kEight]) {
    if constexpr (kHeld > 0) {
      multiply_by(job.scale + n, v);
    } else {
      for (int i = 0; i < kEight; ++i) v[i] = n + i < columns ? __fmul_rn(v[i], job.scale[n + i]) : 0.0f;
    }
  };
  const auto store_gradient = [&](std::int64_t n, const float (&v)[kEight]) {
    if (!job.g || n >= columns) return;
    if constexpr (kHeld > 0) store_whole_eight(job.g, job.g_dtype, row * columns + n, v);
    else store_eight(job.g, job.g_dtype, row * columns + n, v, static_cast<int>(min(columns - n, std::int64_t{kEight})));
  };

  float row_scale = 1, factor = 1;
  float kept[kKeeps ? kHeld : 1][kEight] = {};
  if (by_row) {
    unsigned bits = 0;
    for_eights<kHeld>(columns, [&](int c, std::int64_t n) {
      float v[kEight];
      gradient(c, n, v);
      store_gradient(n, v);
      multiply_by_scale(n, v);
#pragma unroll
      for (int i = 0; i < kEight; ++i) {
        bits = max(bits, magnitude(v[i]));
        if constexpr (kKeeps) kept[c][i] = v[i];
      }
    });
    const float largest = block_max(bits);
    if (scaled_dtype == SQ_I8) {
      row_scale = token_scale(largest);
      factor = __frcp_rn(row_scale);
    } else {
      row_scale = scalbnf(1.0f, exponent_for_half(largest));
      factor = scalbnf(1.0f, -exponent_for_half(largest));
    }
    if (threadIdx.x == 0) job.row_scale[row] = row_scale;
  }
  for_eights<kHeld>(job.scaled ? job.scaled_stride : columns, [&](int c, std::int64_t n) {
    float v[kEight];
    if (kKeeps && by_row) {  // zeros behind the last column
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = kept[kKeeps ? c : 0][i];
    } else {
      gradient(c, n, v);
      if (!by_row) store_gradient(n, v);
      if (!job.scaled) return;
      if (kHeld == 0 || n < columns) multiply_by_scale(n, v);
    }
    const std::int64_t at = row * job.scaled_stride + n;
    if (scaled_dtype == SQ_I8) {
      store_permuted(static_cast<std::int8_t*>(job.scaled) + at, codes(v, row_scale, factor), n % 16 != 0);
    } else {
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = __fmul_rn(v[i], factor);
      store_whole_eight(job.scaled, scaled_dtype, at, v);
    }
  });
}

/// Whether kernels that hold their rows serve the job.
bool holds(const GradientRows& job, const RowBlock& block, std::int64_t longest) {
  const bool slopes = job.activation != SQ_ACT_NONE;
  if (slopes && (!Sigmoid::serves(job.activation) || !holdable(job.preactivation) || job.preactivation.dtype != job.dy.dtype)) return false;
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
  if (!holds(job, block, longest)) return start(gradient_rows_kernel<AnyType, Slope::any, AnyType, 0>);
  return block.with_held(job.dy.dtype, [&](auto type, auto held) {
    using T = decltype(type);
    constexpr int kHeld = decltype(held)::value;
    const bool slopes = job.activation != SQ_ACT_NONE;
    if (job.scaled && job.scaled_dtype == SQ_I8)
      return start(slopes ? gradient_rows_kernel<T, Slope::sigmoid, std::int8_t, kHeld> : gradient_rows_kernel<T, Slope::none, std::int8_t, kHeld>);
    return start(slopes ? gradient_rows_kernel<T, Slope::sigmoid, T, kHeld> : gradient_rows_kernel<T, Slope::none, T, kHeld>);
  });
}

}  // namespace squareq::cuda
