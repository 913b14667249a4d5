// Counts NaN and infinite elements on the device, so that a step reads two numbers once instead of a flag per block.
#include "optimized/cuda/kernels/element.cuh"
#include "optimized/cuda/kernels/kernels.hpp"

namespace squareq::cuda {
namespace {

__device__ double widened(double x) { return x; }
template <class T>
__device__ float widened(T x) { return to_float(x); }

__device__ std::int64_t element_of(const Strided& x, std::int64_t index) {
  if (x.rank == 1) return index * x.strides[0];
  std::int64_t element = 0;
  for (int d = x.rank; d-- > 0; index /= x.shape[d]) element += index % x.shape[d] * x.strides[d];
  return element;
}

__device__ unsigned long long sum_of_warp(unsigned long long value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(kAllLanes, value, offset);
  return value;
}

template <class T>
__global__ void count(Strided x, const T* data, unsigned long long* counts, unsigned long long* totals) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  unsigned long long nans = 0, infinite = 0;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < x.count; i += step) {
    const auto value = widened(data[element_of(x, i)]);
    nans += isnan(value) ? 1 : 0;
    infinite += isinf(value) ? 1 : 0;
  }
  nans = sum_of_warp(nans);
  infinite = sum_of_warp(infinite);
  if (threadIdx.x % 32 != 0) return;
  for (unsigned long long* target : {counts, totals}) {
    if (nans) atomicAdd(&target[0], nans);
    if (infinite) atomicAdd(&target[1], infinite);
  }
}

}  // namespace

cudaError_t count_nonfinite(const Strided& x, std::int64_t* counts, std::int64_t* totals, cudaStream_t stream) {
  if (x.count == 0) return cudaSuccess;
  return with_float_type(x.dtype, [&](auto type) {
    // Two's complement: adding to the signed counters as unsigned is the same addition.
    count<<<grid_for(x.count, 4 * kThreads), kThreads, 0, stream>>>(x, static_cast<const decltype(type)*>(x.data), reinterpret_cast<unsigned long long*>(counts),
                                                                         reinterpret_cast<unsigned long long*>(totals));
    return cudaGetLastError();
  });
}

}  // namespace squareq::cuda
