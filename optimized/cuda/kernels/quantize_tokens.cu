// Activations to int8, one block per row, behind what produced them.
#include "optimized/cuda/kernels/activation.cuh"
#include "optimized/cuda/kernels/launch.cuh"
#include "optimized/cuda/kernels/row_values.cuh"
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

/// The block's sums, in every thread; the order of addition is fixed. Each once per kernel: nobody waits for the others to have read.
__device__ LongSum block_sum(LongSum mine) {
  __shared__ LongSum of_warp[kMostRowThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    LongSum other;
    other.high = __shfl_down_sync(kAllLanes, mine.high, offset);
    other.low = __shfl_down_sync(kAllLanes, mine.low, offset);
    mine.add(other);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();
  LongSum total;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) total.add(of_warp[w]);
  return total;
}
__device__ float block_sum(float mine) {
  __shared__ float of_warp[kMostRowThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) mine = __fadd_rn(mine, __shfl_xor_sync(kAllLanes, mine, offset));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();
  float total = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) total = __fadd_rn(total, of_warp[w]);
  return total;
}

/// Eight values of shift or scale: as 16-byte chunks of T, or of any kind.
template <class T>
__device__ void load_modulation(const Rows& from, std::int64_t group, std::int64_t k, float (&v)[kEight]) {
  if constexpr (std::is_same_v<T, AnyType>) load_eight(from, group, k, v);
  else widen_eight(*reinterpret_cast<const uint4*>(static_cast<const T*>(from.data) + group * from.row_stride + k), kTypeOf<T>, v);
}

/// What a producer does to one row. kKind is its kind, or kAny.
template <int kKind>
class Produced {
 public:
  __device__ Produced(const Producer& producer, std::int64_t row)
      : producer_(producer), group_(kind() == SQ_PRODUCER_LAYERNORM_MODULATE ? static_cast<unsigned>(row) / static_cast<unsigned>(producer.rows_per_group) : 0) {}

  /// Mean and standard deviation of the row, where the producer is a LayerNorm. Every thread of the block calls this.
  template <class T, int kHeld>
  __device__ void measure(const RowValues<T, kHeld>& values, std::int64_t columns) {
    if (kind() != SQ_PRODUCER_LAYERNORM_MODULATE) return;
    LongSum sum;
    for_eights<kHeld>(columns, [&](int c, std::int64_t k) {
      float v[kEight];
      values.get(c, k, v);
#pragma unroll
      for (int i = 0; i < kEight; ++i) sum.add(v[i]);  // zeros beyond the end add nothing
    });
    sum = block_sum(sum);
    // The remainder of the division is exact, so that of a row of equal elements nothing is left.
    const float count = static_cast<float>(columns);
    mean_.high = __fdiv_rn(sum.high, count);
    mean_.low = __fdiv_rn(__fadd_rn(__fmaf_rn(-mean_.high, count, sum.high), sum.low), count);
    float squares[kEight] = {};
    for_eights<kHeld>(columns, [&](int c, std::int64_t k) {
      float v[kEight];
      values.get(c, k, v);
#pragma unroll
      for (int i = 0; i < kEight; ++i)
        if (kHeld > 0 || k + i < columns) squares[i] = __fmaf_rn(centred(v[i]), centred(v[i]), squares[i]);
    });
#pragma unroll
    for (int step = kEight / 2; step > 0; step /= 2)
#pragma unroll
      for (int i = 0; i < step; ++i) squares[i] = __fadd_rn(squares[i], squares[i + step]);
    const float variance = __fdiv_rn(block_sum(squares[0]), count);
    // Squares beyond fp32 must not make a row of zeros of it: the row becomes NaN.
    inverse_ = isinf(variance) ? __int_as_float(0x7FFFFFFF) : __frcp_rn(__fsqrt_rn(__fadd_rn(variance, producer_.epsilon)));
  }

  /// Eight raw values, from column k on, become the producer's.
  template <class T>
  __device__ void apply(std::int64_t k, float (&v)[kEight]) const {
    if (kind() == SQ_PRODUCER_GELU_TANH) {
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = activate(SQ_ACT_GELU_TANH, v[i]);
    } else if (kind() == SQ_PRODUCER_LAYERNORM_MODULATE) {
      float scale[kEight], shift[kEight];
      load_modulation<T>(producer_.scale, group_, k, scale);
      load_modulation<T>(producer_.shift, group_, k, shift);
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = __fadd_rn(__fmul_rn(__fmul_rn(centred(v[i]), inverse_), __fadd_rn(1.0f, scale[i])), shift[i]);
    }
  }

 private:
  __device__ int kind() const { return kKind == kAny ? producer_.kind : kKind; }
  __device__ float centred(float raw) const { return __fsub_rn(__fsub_rn(raw, mean_.high), mean_.low); }

  const Producer& producer_;
  const std::int64_t group_;
  LongSum mean_;
  float inverse_ = 1;
};

/// What was produced of held rows is kept: it is not worth making twice.
template <class T, int kKind, int kHeld>
__global__ void __launch_bounds__(kMostRowThreads)
    quantize_tokens_kernel(const __grid_constant__ Rows x, const __grid_constant__ Producer producer, std::int8_t* q, std::int64_t q_stride, std::int64_t padded,
                           float* scale) {
  let_next_start();
  constexpr bool kKeeps = kHeld > 0 && kKind != SQ_PRODUCER_NONE;
  const std::int64_t row = blockIdx.x;
  const RowValues<T, kHeld> values(x, row);
  Produced<kKind> produced(producer, row);
  produced.measure(values, x.columns);

  float kept[kKeeps ? kHeld : 1][kEight] = {};
  const auto make = [&](int c, std::int64_t k, float (&v)[kEight]) {
    values.get(c, k, v);
    produced.template apply<T>(k, v);
    if constexpr (kHeld == 0) {  // a producer may have made something of the zeros behind the row's end
#pragma unroll
      for (int i = 0; i < kEight; ++i)
        if (k + i >= x.columns) v[i] = 0.0f;
    }
  };
  unsigned largest = 0;
  if constexpr (kHeld > 0 && !kKeeps) {
    largest = values.largest();
  } else {
    for_eights<kHeld>(x.columns, [&](int c, std::int64_t k) {
      float v[kEight];
      make(c, k, v);
#pragma unroll
      for (int i = 0; i < kEight; ++i) {
        largest = max(largest, magnitude(v[i]));
        if constexpr (kKeeps) kept[c][i] = v[i];
      }
    });
  }
  const float s = token_scale(block_max(largest));
  const float inverse = __frcp_rn(s);
  if (threadIdx.x == 0) scale[row] = s;

  std::int8_t* const to = q + row * q_stride;
  for_eights<kHeld>(padded, [&](int c, std::int64_t k) {
    float v[kEight];
    if constexpr (kKeeps) {
#pragma unroll
      for (int i = 0; i < kEight; ++i) v[i] = kept[c][i];
    } else {
      make(c, k, v);
    }
    const uint2 eight = codes(v, s, inverse);
    if constexpr (kHeld > 0) {
      *reinterpret_cast<uint2*>(to + k) = eight;
    } else {
#pragma unroll
      for (int i = 0; i < kEight; ++i)
        if (k + i < padded) to[k + i] = static_cast<std::int8_t>((i < 4 ? eight.x : eight.y) >> i % 4 * 8);
    }
  });
}

/// Whether shift and scale come in chunks of the dtype of `x`.
bool modulates_in_chunks(const Producer& producer, const Rows& x) {
  return producer.kind != SQ_PRODUCER_LAYERNORM_MODULATE ||
         (producer.shift.dtype == x.dtype && producer.scale.dtype == x.dtype && holdable(producer.shift) && holdable(producer.scale));
}

template <class Body>
cudaError_t with_kind(std::int32_t kind, const Body& body) {
  switch (kind) {
    case SQ_PRODUCER_LAYERNORM_MODULATE: return body(std::integral_constant<int, SQ_PRODUCER_LAYERNORM_MODULATE>());
    case SQ_PRODUCER_GELU_TANH: return body(std::integral_constant<int, SQ_PRODUCER_GELU_TANH>());
    default: return body(std::integral_constant<int, SQ_PRODUCER_NONE>());
  }
}

}  // namespace

cudaError_t quantize_tokens(const Rows& x, const Producer& producer, std::int8_t* q, std::int64_t q_stride, std::int64_t padded, float* scale, cudaStream_t stream) {
  if (x.rows == 0) return cudaSuccess;
  const RowBlock block(padded);
  const auto start = [&](auto kernel) {
    return launch(kernel, static_cast<unsigned>(x.rows), block.threads, 0, 1, Queue{stream, false}, x, producer, q, q_stride, padded, scale);
  };
  const bool chunks = padded % kEight == 0 && (reinterpret_cast<std::uintptr_t>(q) | static_cast<std::uintptr_t>(q_stride)) % kEight == 0;
  if (!chunks || !holdable(x) || !block.holds(padded) || !modulates_in_chunks(producer, x)) return start(quantize_tokens_kernel<AnyType, kAny, 0>);
  return with_kind(producer.kind, [&](auto kind) {
    return block.with_held(x.dtype, [&](auto type, auto held) { return start(quantize_tokens_kernel<decltype(type), decltype(kind)::value, decltype(held)::value>); });
  });
}

}  // namespace squareq::cuda
