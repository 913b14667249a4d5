// One block per row: activations to int8, gradients to what the weight's product reads, adapters to the activations' dtype.
#include "optimized/cuda/kernels/finish.cuh"
#include "optimized/cuda/kernels/rows.hpp"

namespace squareq::cuda {
namespace {

/// A sum with the error it made, so that the mean of a long row is good to the last bits without double precision.
struct LongSum {
  float high = 0, low = 0;

  __device__ void add(float x) {
    const float sum = __fadd_rn(high, x), back = __fsub_rn(sum, high);
    low = __fadd_rn(low, __fadd_rn(__fsub_rn(high, __fsub_rn(sum, back)), __fsub_rn(x, back)));
    high = sum;
  }
  __device__ void add(const LongSum& other) {
    add(other.high);
    low = __fadd_rn(low, other.low);
  }
};

/// The block's sum, in every thread; the order of addition is fixed.
__device__ LongSum block_sum(LongSum mine) {
  __shared__ LongSum of_warp[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    LongSum other;
    other.high = __shfl_down_sync(kAllLanes, mine.high, offset);
    other.low = __shfl_down_sync(kAllLanes, mine.low, offset);
    mine.add(other);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();
  LongSum total;
  for (int w = 0; w < kThreads / 32; ++w) total.add(of_warp[w]);
  __syncthreads();
  return total;
}

/// The block's largest magnitude, in every thread; NaN where any is NaN or infinite.
__device__ float block_max(float mine) {
  __shared__ float of_warp[kThreads / 32];
  const auto larger = [](float a, float b) { return isnan(a) || isnan(b) ? __int_as_float(0x7FFFFFFF) : fmaxf(a, b); };
  for (int offset = 16; offset > 0; offset /= 2) mine = larger(mine, __shfl_xor_sync(kAllLanes, mine, offset));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();
  float all = 0;
  for (int w = 0; w < kThreads / 32; ++w) all = larger(all, of_warp[w]);
  __syncthreads();
  return all;
}

__device__ float magnitude(float x) { return isinf(x) ? __int_as_float(0x7FFFFFFF) : fabsf(x); }

__device__ float token_scale(float largest) { return isnan(largest) ? largest : fmaxf(__fdiv_rn(largest, 127.0f), 1e-30f); }

__device__ std::int8_t code(float x, float scale) {
  return isnan(scale) ? std::int8_t{0} : static_cast<std::int8_t>(fminf(fmaxf(rintf(__fdiv_rn(x, scale)), -127.0f), 127.0f));
}

/// Element k of row m behind its producer, in fp32.
struct Produced {
  const Producer& producer;
  const Rows& x;
  std::int64_t row;
  LongSum mean;
  float inverse = 1;

  __device__ float raw(std::int64_t k) const { return load_any(x.data, x.dtype, row * x.row_stride + k); }
  __device__ float centred(std::int64_t k) const { return __fsub_rn(__fsub_rn(raw(k), mean.high), mean.low); }

  /// Mean and standard deviation of a row, where the producer is a LayerNorm. Every thread of the block calls this.
  __device__ void measure() {
    if (producer.kind != SQ_PRODUCER_LAYERNORM_MODULATE) return;
    LongSum sum;
    for (std::int64_t k = threadIdx.x; k < x.columns; k += kThreads) sum.add(raw(k));
    sum = block_sum(sum);
    const double exact = (static_cast<double>(sum.high) + sum.low) / static_cast<double>(x.columns);
    mean.high = static_cast<float>(exact);
    mean.low = static_cast<float>(exact - mean.high);
    LongSum squares;
    for (std::int64_t k = threadIdx.x; k < x.columns; k += kThreads) squares.add(__fmul_rn(centred(k), centred(k)));
    squares = block_sum(squares);
    const double variance = (static_cast<double>(squares.high) + squares.low) / static_cast<double>(x.columns);
    inverse = static_cast<float>(1.0 / sqrt(variance + static_cast<double>(producer.epsilon)));
  }

  __device__ float operator()(std::int64_t k) const {
    switch (producer.kind) {
      case SQ_PRODUCER_GELU_TANH: return activate(SQ_ACT_GELU_TANH, raw(k));
      case SQ_PRODUCER_LAYERNORM_MODULATE: {
        const std::int64_t group = row / producer.rows_per_group;
        const float scale = load_any(producer.scale.data, producer.scale.dtype, group * producer.scale.row_stride + k);
        const float shift = load_any(producer.shift.data, producer.shift.dtype, group * producer.shift.row_stride + k);
        return __fadd_rn(__fmul_rn(__fmul_rn(centred(k), inverse), __fadd_rn(1.0f, scale)), shift);
      }
      default: return raw(k);
    }
  }
};

__global__ void __launch_bounds__(kThreads) quantize_tokens_kernel(Rows x, Producer producer, std::int8_t* q, std::int64_t q_stride, std::int64_t padded, float* scale) {
  for (std::int64_t m = blockIdx.x; m < x.rows; m += gridDim.x) {
    Produced value{producer, x, m, {}};
    value.measure();
    float largest = 0;
    for (std::int64_t k = threadIdx.x; k < x.columns; k += kThreads) {
      const float v = magnitude(value(k));
      largest = isnan(v) ? v : isnan(largest) ? largest : fmaxf(largest, v);
    }
    const float s = token_scale(block_max(largest));
    if (threadIdx.x == 0) scale[m] = s;
    for (std::int64_t k = threadIdx.x; k < padded; k += kThreads) q[m * q_stride + k] = k < x.columns ? code(value(k), s) : std::int8_t{0};
  }
}

__device__ void store_any(void* data, int dtype, std::int64_t index, float value) {
  switch (dtype) {
    case SQ_BF16: static_cast<__nv_bfloat16*>(data)[index] = from_float<__nv_bfloat16>(value); break;
    case SQ_F16: static_cast<__half*>(data)[index] = from_float<__half>(value); break;
    default: static_cast<float*>(data)[index] = value;
  }
}

/// Where code `n` of a group of 16 lies for a transposed weight: the order in which a transposing load of 16-bit pairs hands bytes to a lane.
__device__ int permuted_position(int n) { return n % 8 / 2 * 4 + n / 8 * 2 + n % 2; }

/// 2^e with `largest` 2^-e in [2^13, 2^14): small gradients times small scales would fall below the normal numbers of fp16.
__device__ int exponent_for_half(float largest) { return largest > 0 && isfinite(largest) ? max(-110, min(110, ilogbf(largest) - 13)) : 0; }

__global__ void __launch_bounds__(kThreads) gradient_rows_kernel(GradientRows job) {
  const std::int64_t columns = job.dy.columns;
  const bool two_passes = job.scaled && (job.scaled_dtype == SQ_F16 || job.scaled_dtype == SQ_I8);
  for (std::int64_t m = blockIdx.x; m < job.dy.rows; m += gridDim.x) {
    const auto gradient = [&](std::int64_t n) {
      const float dy = load_any(job.dy.data, job.dy.dtype, m * job.dy.row_stride + n);
      if (job.activation == SQ_ACT_NONE) return dy;
      const float p = load_any(job.preactivation.data, job.preactivation.dtype, m * job.preactivation.row_stride + n);
      return __fmul_rn(dy, activation_derivative(job.activation, p));
    };
    float row_scale = 1, factor = 1;
    if (two_passes) {
      float largest = 0;
      for (std::int64_t n = threadIdx.x; n < columns; n += kThreads) {
        const float v = magnitude(__fmul_rn(gradient(n), job.scale[n]));
        largest = isnan(v) ? v : isnan(largest) ? largest : fmaxf(largest, v);
      }
      largest = block_max(largest);
      if (job.scaled_dtype == SQ_I8) {
        row_scale = token_scale(largest);
      } else {
        row_scale = scalbnf(1.0f, exponent_for_half(largest));
        factor = scalbnf(1.0f, -exponent_for_half(largest));
      }
      if (threadIdx.x == 0) job.row_scale[m] = row_scale;
    }
    const std::int64_t end = job.scaled ? job.scaled_stride : columns;
    for (std::int64_t n = threadIdx.x; n < end; n += kThreads) {
      const float g = n < columns ? gradient(n) : 0.0f;
      if (job.g && n < columns) store_any(job.g, job.g_dtype, m * columns + n, g);
      if (!job.scaled) continue;
      const float s = n < columns ? __fmul_rn(g, job.scale[n]) : 0.0f;
      if (job.scaled_dtype == SQ_I8) {
        static_cast<std::int8_t*>(job.scaled)[m * job.scaled_stride + n / 16 * 16 + permuted_position(static_cast<int>(n % 16))] = code(s, row_scale);
      } else {
        store_any(job.scaled, job.scaled_dtype, m * job.scaled_stride + n, __fmul_rn(s, factor));
      }
    }
  }
}

/// 32 x 32 elements per block of 32 x 8 threads, through shared memory, so that both sides are read and written along their rows.
__global__ void round_matrix_kernel(const float* from, std::int64_t stride, bool transposed, std::int64_t rows, std::int64_t columns, void* out, int dtype,
                                    std::int64_t padded_rows, std::int64_t padded_columns) {
  __shared__ float tile[32][33];
  const std::int64_t row_tiles = (padded_rows + 31) / 32;
  const std::int64_t first_row = blockIdx.x % row_tiles * 32, first_column = blockIdx.x / row_tiles * 32;
  for (int i = threadIdx.y; i < 32; i += 8) {
    const std::int64_t row = transposed ? first_row + threadIdx.x : first_row + i, column = transposed ? first_column + i : first_column + threadIdx.x;
    const bool inside = row < rows && column < columns;
    const float value = inside ? (transposed ? from[column * stride + row] : from[row * stride + column]) : 0.0f;
    tile[transposed ? threadIdx.x : i][transposed ? i : threadIdx.x] = value;
  }
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8) {
    const std::int64_t row = first_row + i, column = first_column + threadIdx.x;
    if (row < padded_rows && column < padded_columns) store_any(out, dtype, row * padded_columns + column, tile[i][threadIdx.x]);
  }
}

__global__ void copy_matrix_kernel(Rows from, Rows target) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < from.rows * from.columns; i += step) {
    const std::int64_t row = i / from.columns, column = i % from.columns;
    store_any(target.data, target.dtype, row * target.row_stride + column, load_any(from.data, from.dtype, row * from.row_stride + column));
  }
}

}  // namespace

cudaError_t quantize_tokens(const Rows& x, const Producer& producer, std::int8_t* q, std::int64_t q_stride, std::int64_t padded, float* scale, cudaStream_t stream) {
  if (x.rows == 0) return cudaSuccess;
  quantize_tokens_kernel<<<grid_for(x.rows, 1), kThreads, 0, stream>>>(x, producer, q, q_stride, padded, scale);
  return cudaGetLastError();
}

cudaError_t gradient_rows(const GradientRows& job, cudaStream_t stream) {
  if (job.dy.rows == 0) return cudaSuccess;
  gradient_rows_kernel<<<grid_for(job.dy.rows, 1), kThreads, 0, stream>>>(job);
  return cudaGetLastError();
}

cudaError_t round_matrix(const float* from, std::int64_t stride, bool transposed, std::int64_t rows, std::int64_t columns, void* out, std::int32_t dtype,
                         std::int64_t padded_rows, std::int64_t padded_columns, cudaStream_t stream) {
  const std::int64_t tiles = ((padded_rows + 31) / 32) * ((padded_columns + 31) / 32);
  if (tiles == 0) return cudaSuccess;
  round_matrix_kernel<<<static_cast<unsigned>(tiles), dim3(32, 8), 0, stream>>>(from, stride, transposed, rows, columns, out, dtype, padded_rows, padded_columns);
  return cudaGetLastError();
}

cudaError_t copy_matrix(const Rows& from, const Rows& target, cudaStream_t stream) {
  if (from.rows * from.columns == 0) return cudaSuccess;
  copy_matrix_kernel<<<grid_for(from.rows * from.columns, kThreads), kThreads, 0, stream>>>(from, target);
  return cudaGetLastError();
}

}  // namespace squareq::cuda
