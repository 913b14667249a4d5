// One block per row: activations to int8, gradients to what the weight's product reads, adapters to the activations' dtype.
#include <algorithm>
#include <type_traits>

#include "optimized/cuda/kernels/activation.cuh"
#include "optimized/cuda/kernels/eight.cuh"
#include "optimized/cuda/kernels/launch.cuh"
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

/// The block's largest magnitude, in every thread; NaN where any is NaN or infinite. As bits, magnitudes are ordered like integers, and what is not
/// finite lies above all that is.
__device__ float block_max(unsigned mine) {
  __shared__ unsigned of_warp[kThreads / 32];
  mine = __reduce_max_sync(kAllLanes, mine);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();
  unsigned all = 0;
  for (int w = 0; w < kThreads / 32; ++w) all = max(all, of_warp[w]);
  __syncthreads();
  return __uint_as_float(all >= 0x7F800000u ? 0x7FFFFFFFu : all);
}

__device__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7FFFFFFFu; }

__device__ float token_scale(float largest) { return isnan(largest) ? largest : fmaxf(__fdiv_rn(largest, 127.0f), 1e-30f); }

/// Elements of a turn: eight neighbouring ones per thread.
constexpr int kTurn = kEight * kThreads;

/// round_half_even(x / scale) of eight elements, four bytes to a word; 0 where the scale is NaN. `inverse` is 1 / scale. The product with it is off the
/// quotient by less than 2^-15, so only near a tie is the division needed. Nothing is beyond 127: the scale is that of the row's largest element.
__device__ uint2 codes(const float (&v)[kEight], float scale, float inverse) {
  constexpr float kWhole = 12582912.0f;  // 1.5 2^23: what is added to it is rounded to whole numbers, whose lowest byte is the code
  if (isnan(scale)) return make_uint2(0, 0);
  unsigned bits[kEight];
  float furthest = 0;
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    const float quotient = __fmul_rn(v[i], inverse), whole = __fadd_rn(quotient, kWhole);
    furthest = fmaxf(furthest, fabsf(__fsub_rn(quotient, __fsub_rn(whole, kWhole))));
    bits[i] = __float_as_uint(whole);
  }
  if (furthest > 0.4999f) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) bits[i] = __float_as_uint(__fadd_rn(__fdiv_rn(v[i], scale), kWhole));
  }
  const auto pack = [](unsigned a, unsigned b, unsigned c, unsigned d) { return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410); };
  return make_uint2(pack(bits[0], bits[1], bits[2], bits[3]), pack(bits[4], bits[5], bits[6], bits[7]));
}

/// A thread's share of a row: kHeld times eight elements of 16 bits, all asked for at once and kept as they were loaded, or, with kHeld 0, loaded anew for
/// every use.
template <int kHeld>
class RowValues {
 public:
  __device__ RowValues(const Rows& from, std::int64_t row) : from_(&from), row_(row) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const std::int64_t k = kEight * threadIdx.x + h * kTurn;
      held_[h] = k < from.columns ? *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(from.data) + row * from.row_stride + k) : make_uint4(0, 0, 0, 0);
    }
  }
  /// Eight elements from k = kEight threadIdx.x + turn kTurn on, zeros behind the row's end. With kHeld > 0 the turn must be known at compile time.
  __device__ void get(int turn, std::int64_t k, float (&v)[kEight]) const {
    if constexpr (kHeld > 0) widen_eight(held_[turn], from_->dtype, v);
    else load_eight(*from_, row_, k, v);
  }

 private:
  const Rows* from_;
  std::int64_t row_;
  uint4 held_[kHeld > 0 ? kHeld : 1];
};

/// body(turn, index of the first of eight elements) for all of [0, end).
template <int kHeld, class Body>
__device__ void for_turns(std::int64_t end, const Body& body) {
  if constexpr (kHeld > 0) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h)
      if (const std::int64_t k = kEight * threadIdx.x + h * kTurn; k < end) body(h, k);
  } else {
    for (std::int64_t k = kEight * threadIdx.x; k < end; k += kTurn) body(0, k);
  }
}

/// Whether rows can be held: 16 bits, eight elements at a time.
bool holdable(const Rows& rows) {
  return rows.dtype != SQ_F32 && rows.columns % kEight == 0 && (reinterpret_cast<std::uintptr_t>(rows.data) | static_cast<std::uintptr_t>(rows.row_stride * 2)) % 16 == 0;
}

/// Calls launch with a kHeld (as a type) for rows of `columns` elements: what that is changes no bit. `long_ones`: whether rows beyond two turns are worth
/// the registers.
template <class Launch>
void with_held(bool holds, bool long_ones, std::int64_t columns, const Launch& launch) {
  if (holds && columns <= 2 * kTurn) launch(std::integral_constant<int, 2>());
  else if (holds && long_ones && columns <= 6 * kTurn) launch(std::integral_constant<int, 6>());
  else if (holds && long_ones && columns <= 8 * kTurn) launch(std::integral_constant<int, 8>());
  else launch(std::integral_constant<int, 0>());
}

/// Blocks of a multiprocessor: as many as leave registers for what is held.
template <int kHeld>
constexpr int kTokenBlocks = kHeld > 0 ? 3 : 4;
template <int kHeld>
constexpr int kGradientBlocks = kHeld > 2 ? 2 : 4;

/// As many blocks as the device holds at a time, so that each can ask for its next row while it works.
unsigned resident_blocks(std::int64_t rows, int per_multiprocessor) {
  int device = 0, multiprocessors = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) multiprocessors = 1;
  return static_cast<unsigned>(std::min<std::int64_t>(rows, std::int64_t{multiprocessors} * per_multiprocessor));
}

/// What a producer does to row `row`.
struct Produced {
  const Producer& producer;
  std::int64_t row;
  LongSum mean;
  float inverse = 1;

  __device__ float centred(float raw) const { return __fsub_rn(__fsub_rn(raw, mean.high), mean.low); }

  /// Mean and standard deviation of a row, where the producer is a LayerNorm. Every thread of the block calls this.
  template <int kHeld>
  __device__ void measure(const RowValues<kHeld>& values, std::int64_t columns) {
    if (producer.kind != SQ_PRODUCER_LAYERNORM_MODULATE) return;
    LongSum sum, squares;
    for_turns<kHeld>(columns, [&](int turn, std::int64_t k) {
      float v[kEight];
      values.get(turn, k, v);
#pragma unroll
      for (int i = 0; i < kEight; ++i) sum.add(v[i]);  // zeros beyond the end add nothing
    });
    sum = block_sum(sum);
    const double exact = (static_cast<double>(sum.high) + sum.low) / static_cast<double>(columns);
    mean.high = static_cast<float>(exact);
    mean.low = static_cast<float>(exact - mean.high);
    for_turns<kHeld>(columns, [&](int turn, std::int64_t k) {
      float v[kEight];
      values.get(turn, k, v);
#pragma unroll
      for (int i = 0; i < kEight; ++i)
        if (k + i < columns) squares.add(__fmul_rn(centred(v[i]), centred(v[i])));
    });
    squares = block_sum(squares);
    const double variance = (static_cast<double>(squares.high) + squares.low) / static_cast<double>(columns);
    inverse = static_cast<float>(1.0 / sqrt(variance + static_cast<double>(producer.epsilon)));
  }

  /// Eight raw values, from column k on, become the producer's.
  __device__ void apply(std::int64_t k, float (&v)[kEight]) const {
    if (producer.kind == SQ_PRODUCER_GELU_TANH) {
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = activate(SQ_ACT_GELU_TANH, v[i]);
    } else if (producer.kind == SQ_PRODUCER_LAYERNORM_MODULATE) {
      float scale[kEight], shift[kEight];
      load_eight(producer.scale, row / producer.rows_per_group, k, scale);
      load_eight(producer.shift, row / producer.rows_per_group, k, shift);
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = __fadd_rn(__fmul_rn(__fmul_rn(centred(v[i]), inverse), __fadd_rn(1.0f, scale[i])), shift[i]);
    }
  }
};

template <int kHeld>
__global__ void __launch_bounds__(kThreads, kTokenBlocks<kHeld>)
    quantize_tokens_kernel(Rows x, Producer producer, std::int8_t* q, std::int64_t q_stride, std::int64_t padded, float* scale) {
  let_next_start();
  const auto cut_off = [&](std::int64_t k, float (&v)[kEight]) {  // a producer may have made something of the zeros behind the row's end
    if (k + kEight <= x.columns) return;
#pragma unroll
    for (int i = 0; i < kEight; ++i)
      if (k + i >= x.columns) v[i] = 0.0f;
  };
  const auto quantize_row = [&](const RowValues<kHeld>& values, std::int64_t m) {
    Produced produced{producer, m, {}};
    produced.measure(values, x.columns);
    unsigned largest = 0;
    for_turns<kHeld>(x.columns, [&](int turn, std::int64_t k) {
      float v[kEight];
      values.get(turn, k, v);
      produced.apply(k, v);
      cut_off(k, v);
#pragma unroll
      for (int i = 0; i < kEight; ++i) largest = max(largest, magnitude(v[i]));
    });
    const float s = token_scale(block_max(largest));
    const float inverse = __frcp_rn(s);
    if (threadIdx.x == 0) scale[m] = s;
    for_turns<kHeld>(padded, [&](int turn, std::int64_t k) {
      float v[kEight];
      values.get(turn, k, v);
      produced.apply(k, v);
      cut_off(k, v);
      const uint2 eight = codes(v, s, inverse);
      std::int8_t* to = q + m * q_stride + k;
      if (k + kEight <= padded && reinterpret_cast<std::uintptr_t>(to) % 8 == 0) {
        *reinterpret_cast<uint2*>(to) = eight;
        return;
      }
#pragma unroll
      for (int i = 0; i < kEight; ++i)
        if (k + i < padded) to[i] = static_cast<std::int8_t>((i < 4 ? eight.x : eight.y) >> i % 4 * 8);
    });
  };
  if constexpr (kHeld == 2) {  // the next row is on its way while this one is quantized; longer ones leave no registers for that
    RowValues<kHeld> values(x, blockIdx.x);
    for (std::int64_t m = blockIdx.x; m < x.rows; m += gridDim.x) {
      const RowValues<kHeld> next(x, min(m + gridDim.x, x.rows - 1));
      quantize_row(values, m);
      values = next;
    }
  } else {
    for (std::int64_t m = blockIdx.x; m < x.rows; m += gridDim.x) quantize_row(RowValues<kHeld>(x, m), m);
  }
}

/// Eight codes of a group of 16 for a transposed weight, in the order in which a transposing load of 16-bit pairs hands bytes to a lane: pairs of the
/// group's first half and of its second take turns. The neighbouring lane has the other half; each stores eight bytes, `to` being its own place.
__device__ void store_permuted(std::int8_t* to, uint2 eight, bool second) {
  const unsigned other = __shfl_xor_sync(__activemask(), second ? eight.x : eight.y, 1), mine = second ? eight.y : eight.x;
  const unsigned low = second ? other : mine, high = second ? mine : other;  // pairs of the first and of the second half
  *reinterpret_cast<uint2*>(to) = make_uint2(__byte_perm(low, high, 0x5410), __byte_perm(low, high, 0x7632));
}

/// 2^e with `largest` 2^-e in [2^13, 2^14): small gradients times small scales would fall below the normal numbers of fp16.
__device__ int exponent_for_half(float largest) { return largest > 0 && isfinite(largest) ? max(-110, min(110, ilogbf(largest) - 13)) : 0; }

template <int kHeld>
__global__ void __launch_bounds__(kThreads, kGradientBlocks<kHeld>) gradient_rows_kernel(const __grid_constant__ GradientRows job) {
  let_next_start();
  const std::int64_t columns = job.dy.columns;
  const bool by_row = job.scaled && (job.scaled_dtype == SQ_F16 || job.scaled_dtype == SQ_I8);  // a row's largest value comes before its first code
  const Rows scale{const_cast<float*>(job.scale), SQ_F32, 1, columns, columns};
  const Sigmoid sigmoid(job.activation);
  // Without an activation there is no preactivation; nothing is held of it then.
  const Rows preactivation = job.activation == SQ_ACT_NONE ? Rows{nullptr, SQ_BF16, 0, 0, 0} : job.preactivation;
  for (std::int64_t m = blockIdx.x; m < job.dy.rows; m += gridDim.x) {
    const RowValues<kHeld> dy(job.dy, m), before(preactivation, m);
    /// G of eight columns; zeros beyond the last.
    const auto gradient = [&](int turn, std::int64_t n, float (&v)[kEight]) {
      dy.get(turn, n, v);
      if (job.activation == SQ_ACT_NONE) return;
      float p[kEight];
      before.get(turn, n, p);
      if (Sigmoid::serves(job.activation)) {
#pragma unroll
        for (int i = 0; i < kEight; ++i) v[i] = __fmul_rn(v[i], sigmoid.derivative(p[i]));
      } else {
#pragma unroll
        for (int i = 0; i < kEight; ++i) v[i] = __fmul_rn(v[i], activation_derivative(job.activation, p[i]));
      }
    };
    const auto multiply_by_scale = [&](std::int64_t n, float (&v)[kEight]) {
      float s[kEight];
      load_eight(scale, 0, n, s);
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = __fmul_rn(v[i], s[i]);
    };
    const auto store_gradient = [&](std::int64_t n, const float (&v)[kEight]) {
      if (job.g && n < columns) store_eight(job.g, job.g_dtype, m * columns + n, v, static_cast<int>(min(columns - n, std::int64_t{kEight})));
    };
    float row_scale = 1, factor = 1;
    // G scale of a row that is held, because an activation's derivative is worth computing once; beyond six turns the registers do not suffice.
    constexpr bool kKeeps = kHeld > 0 && kHeld <= 6;
    float kept[kKeeps ? kHeld : 1][kEight] = {};
    if (by_row) {
      unsigned bits = 0;
      for_turns<kHeld>(columns, [&](int turn, std::int64_t n) {
        float v[kEight];
        gradient(turn, n, v);
        store_gradient(n, v);
        multiply_by_scale(n, v);
#pragma unroll
        for (int i = 0; i < kEight; ++i) {
          bits = max(bits, magnitude(v[i]));
          if constexpr (kKeeps) kept[turn][i] = v[i];
        }
      });
      const float largest = block_max(bits);
      if (job.scaled_dtype == SQ_I8) {
        row_scale = token_scale(largest);
        factor = __frcp_rn(row_scale);
      } else {
        row_scale = scalbnf(1.0f, exponent_for_half(largest));
        factor = scalbnf(1.0f, -exponent_for_half(largest));
      }
      if (threadIdx.x == 0) job.row_scale[m] = row_scale;
    }
    for_turns<kHeld>(job.scaled ? job.scaled_stride : columns, [&](int turn, std::int64_t n) {
      float v[kEight];
      if (kKeeps && by_row) {
#pragma unroll
        for (int i = 0; i < kEight; ++i) v[i] = kept[kKeeps ? turn : 0][i];
      } else {
        gradient(turn, n, v);
        if (!by_row) store_gradient(n, v);
        if (!job.scaled) return;
        multiply_by_scale(n, v);
      }
      const std::int64_t row = m * job.scaled_stride;
      if (job.scaled_dtype == SQ_I8) {
        store_permuted(static_cast<std::int8_t*>(job.scaled) + row + n, codes(v, row_scale, factor), n % 16 != 0);
        return;
      }
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = __fmul_rn(v[i], factor);
      store_eight(job.scaled, job.scaled_dtype, row + n, v, kEight);
    });
  }
}

__host__ __device__ inline std::int64_t square_tiles(const Rounding& r) { return (r.padded_rows + 31) / 32 * ((r.padded_columns + 31) / 32); }

/// 32 x 32 elements per block of 32 x 8 threads, through shared memory, so that both sides are read and written along their rows.
__global__ void round_matrices_kernel(const __grid_constant__ Roundings roundings) {
  wait_for_former();
  let_next_start();
  __shared__ float tile[32][33];
  std::int64_t index = blockIdx.x;
  int job = 0;
  for (; index >= square_tiles(roundings.jobs[job]); ++job) index -= square_tiles(roundings.jobs[job]);
  const Rounding& r = roundings.jobs[job];
  const std::int64_t row_tiles = (r.padded_rows + 31) / 32;
  const std::int64_t first_row = index % row_tiles * 32, first_column = index / row_tiles * 32;
  for (int i = threadIdx.y; i < 32; i += 8) {
    const std::int64_t row = r.transposed ? first_row + threadIdx.x : first_row + i, column = r.transposed ? first_column + i : first_column + threadIdx.x;
    const bool inside = row < r.rows && column < r.columns;
    const float value = inside ? (r.transposed ? r.from[column * r.stride + row] : r.from[row * r.stride + column]) : 0.0f;
    tile[r.transposed ? threadIdx.x : i][r.transposed ? i : threadIdx.x] = value;
  }
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8) {
    const std::int64_t row = first_row + i, column = first_column + threadIdx.x;
    if (row < r.padded_rows && column < r.padded_columns) store_any(r.out, roundings.dtype, row * r.padded_columns + column, tile[i][threadIdx.x]);
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
  with_held(holdable(x), true, padded, [&](auto held) {
    constexpr int kHeld = decltype(held)::value;
    quantize_tokens_kernel<kHeld><<<resident_blocks(x.rows, kTokenBlocks<kHeld>), kThreads, 0, stream>>>(x, producer, q, q_stride, padded, scale);
  });
  return cudaGetLastError();
}

cudaError_t gradient_rows(const GradientRows& job, cudaStream_t stream) {
  if (job.dy.rows == 0) return cudaSuccess;
  const bool activated = job.activation != SQ_ACT_NONE;
  with_held(holdable(job.dy) && (!activated || holdable(job.preactivation)), activated, job.scaled ? job.scaled_stride : job.dy.columns,
            [&](auto held) { gradient_rows_kernel<decltype(held)::value><<<grid_for(job.dy.rows, 1), kThreads, 0, stream>>>(job); });
  return cudaGetLastError();
}

cudaError_t round_matrices(const Roundings& roundings, Queue queue) {
  std::int64_t tiles = 0;
  for (int i = 0; i < roundings.count; ++i) tiles += square_tiles(roundings.jobs[i]);
  if (tiles == 0) return cudaSuccess;
  return launch(round_matrices_kernel, static_cast<unsigned>(tiles), dim3(32, 8), 0, 1, queue, roundings);
}

cudaError_t copy_matrix(const Rows& from, const Rows& target, cudaStream_t stream) {
  if (from.rows * from.columns == 0) return cudaSuccess;
  copy_matrix_kernel<<<grid_for(from.rows * from.columns, kThreads), kThreads, 0, stream>>>(from, target);
  return cudaGetLastError();
}

}  // namespace squareq::cuda
