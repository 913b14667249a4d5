// bp8_v2 on the device, equal to the CPU builder bit for bit: every step is one fp32 operation with its own rounding (SQ-QNT), written
// with the _rn intrinsics, which the compiler never contracts into an FMA. One block per row.
#include "optimized/cuda/kernels/element.cuh"
#include "optimized/cuda/kernels/kernels.hpp"

namespace squareq::cuda {
namespace {

constexpr float kScaleFloor = 1e-8f;

/// The element that decides about a row: the first one that is not finite, else the first of the largest magnitude.
struct Candidate {
  float magnitude;
  bool bad;
  long long column;
};

__device__ Candidate better(const Candidate& a, const Candidate& b) {
  if (a.bad != b.bad) return a.bad ? a : b;
  if (!a.bad && a.magnitude != b.magnitude) return a.magnitude > b.magnitude ? a : b;
  return a.column < b.column ? a : b;
}

__device__ Candidate other_lane(const Candidate& c, int offset) {
  return {__shfl_down_sync(kAllLanes, c.magnitude, offset), __shfl_down_sync(kAllLanes, static_cast<int>(c.bad), offset) != 0,
          __shfl_down_sync(kAllLanes, c.column, offset)};
}

/// The block's best candidate, valid in thread 0. Ends with every thread past its last read of shared memory.
__device__ Candidate reduce(Candidate mine) {
  __shared__ Candidate of_warp[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) mine = better(mine, other_lane(mine, offset));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < kThreads / 32; ++w) mine = better(mine, of_warp[w]);
  __syncthreads();
  return mine;
}

template <class T>
__global__ void measure(const T* w, std::int64_t rows, std::int64_t columns, std::int64_t stride, float* amax, WeightVerdict* verdict) {
  for (std::int64_t n = blockIdx.x; n < rows; n += gridDim.x) {
    Candidate mine{0.0f, false, columns};  // loses to every element but an equal one of a lower column
    for (std::int64_t k = threadIdx.x; k < columns; k += kThreads) {
      const float a = fabsf(to_float(w[n * stride + k]));
      mine = better(mine, {a, !isfinite(a), k});
    }
    const Candidate row = reduce(mine);
    if (threadIdx.x != 0) continue;
    amax[n] = row.magnitude;
    const float quotient = __fdiv_rn(row.magnitude, 127.0f);
    if (row.bad || !isfinite(__fmul_rn(fmaxf(quotient, kScaleFloor), 127.0f)))
      atomicMin(&verdict->first_bad, static_cast<unsigned long long>(n * columns + row.column));
    else if (quotient < kScaleFloor)
      atomicAdd(&verdict->floored, 1ull);
  }
}

template <class T>
__global__ void quantize(const T* w, std::int64_t rows, std::int64_t columns, std::int64_t stride, const float* amax, std::int8_t* qweight,
                         std::int64_t qweight_stride, std::int64_t padded, float* scale, float* zero_point) {
  for (std::int64_t n = blockIdx.x; n < rows; n += gridDim.x) {
    const float s = fmaxf(__fdiv_rn(amax[n], 127.0f), kScaleFloor);
    const float inverse = __fdiv_rn(1.0f, s);
    for (std::int64_t k = threadIdx.x; k < padded; k += kThreads) {
      float q = 0.0f;
      if (k < columns) q = fminf(fmaxf(rintf(__fmul_rn(to_float(w[n * stride + k]), inverse)), -127.0f), 127.0f);
      qweight[n * qweight_stride + k] = static_cast<std::int8_t>(q);
    }
    if (threadIdx.x == 0) {
      scale[n] = s;
      zero_point[n] = 0.0f;
    }
  }
}

}  // namespace

cudaError_t measure_rows(const Rows& w, float* amax, WeightVerdict* verdict, cudaStream_t stream) {
  return with_float_type(w.dtype, [&](auto type) {
    measure<<<grid_for(w.rows, 1), kThreads, 0, stream>>>(static_cast<const decltype(type)*>(w.data), w.rows, w.columns, w.row_stride, amax, verdict);
    return cudaGetLastError();
  });
}

cudaError_t quantize_rows(const Rows& w, const float* amax, std::int8_t* qweight, std::int64_t qweight_stride, std::int64_t padded, float* scale,
                          float* zero_point, cudaStream_t stream) {
  return with_float_type(w.dtype, [&](auto type) {
    quantize<<<grid_for(w.rows, 1), kThreads, 0, stream>>>(static_cast<const decltype(type)*>(w.data), w.rows, w.columns, w.row_stride, amax, qweight,
                                                          qweight_stride, padded, scale, zero_point);
    return cudaGetLastError();
  });
}

}  // namespace squareq::cuda
