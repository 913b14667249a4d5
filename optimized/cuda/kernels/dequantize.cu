// W[n, k] = q[n, k] * scale[n] (SQ-QNT): the product is rounded to fp32, then once more to a 16-bit output. One block per row.
#include "optimized/cuda/kernels/element.cuh"
#include "optimized/cuda/kernels/kernels.hpp"

namespace squareq::cuda {
namespace {

template <class T>
__global__ void dequantize(const std::int8_t* qweight, std::int64_t qweight_stride, const float* scale, T* out, std::int64_t rows, std::int64_t columns,
                           std::int64_t out_stride) {
  for (std::int64_t n = blockIdx.x; n < rows; n += gridDim.x) {
    const float s = scale[n];
    for (std::int64_t k = threadIdx.x; k < columns; k += kThreads)
      out[n * out_stride + k] = from_float<T>(__fmul_rn(static_cast<float>(qweight[n * qweight_stride + k]), s));
  }
}

__global__ void nonzero(const float* values, std::int64_t count, unsigned long long* first) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step)
    if (values[i] != 0.0f) atomicMin(first, static_cast<unsigned long long>(i));
}

}  // namespace

cudaError_t dequantize_rows(const std::int8_t* qweight, std::int64_t qweight_stride, const float* scale, const Rows& out, cudaStream_t stream) {
  const auto launch = [&](auto* data) {
    dequantize<<<grid_for(out.rows, 1), kThreads, 0, stream>>>(qweight, qweight_stride, scale, data, out.rows, out.columns, out.row_stride);
    return cudaGetLastError();
  };
  switch (out.dtype) {
    case SQ_F32: return launch(static_cast<float*>(out.data));
    case SQ_F16: return launch(static_cast<__half*>(out.data));
    case SQ_BF16: return launch(static_cast<__nv_bfloat16*>(out.data));
    default: return cudaErrorInvalidValue;
  }
}

cudaError_t find_nonzero(const float* values, std::int64_t count, unsigned long long* first, cudaStream_t stream) {
  nonzero<<<grid_for(count, kThreads), kThreads, 0, stream>>>(values, count, first);
  return cudaGetLastError();
}

}  // namespace squareq::cuda
