// Partial sums of the branch's products, added up in their order.
#include "optimized/cuda/kernels/element.cuh"
#include "optimized/cuda/kernels/launch.cuh"
#include "optimized/cuda/kernels/thin_product.hpp"

namespace squareq::cuda {
namespace {

__global__ void __launch_bounds__(kThreads) thin_sum_kernel(const __grid_constant__ ThinSums sums) {
  let_next_start();  // at once: a product with the weight needs these sums at its end only
  wait_for_former();
  const ThinSum& job = sums.jobs[blockIdx.y];
  const std::int64_t count = job.outer * job.rank, step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const std::int64_t outer = i / job.rank, r = i % job.rank;
    float total = 0;
#pragma unroll 8
    for (std::int64_t piece = 0; piece < job.pieces; ++piece) total = __fadd_rn(total, job.partial[piece * count + i]);
    // What lies beyond the true rank stays 0 even where the wide operand is infinite.
    if (r >= job.true_rank) total = 0;
    float widened = total;
    if (job.rounded && job.rounded_dtype == SQ_BF16) {
      const __nv_bfloat16 value = from_float<__nv_bfloat16>(total);
      static_cast<__nv_bfloat16*>(job.rounded)[i] = value;
      widened = to_float(value);
    } else if (job.rounded) {
      const __half value = from_float<__half>(total);
      static_cast<__half*>(job.rounded)[i] = value;
      widened = to_float(value);
    }
    if (r >= job.true_rank) continue;
    if (job.wide) job.wide[outer * job.wide_stride + r] = widened;
    if (!job.gradient) continue;
    float& target = job.gradient[outer * job.outer_stride + r * job.inner_stride];
    const float share = __fmul_rn(job.factor, total);
    target = job.add ? __fadd_rn(target, share) : share;
  }
}

}  // namespace

cudaError_t thin_sum(const ThinSums& sums, Queue queue) {
  std::int64_t most = 0;
  for (int i = 0; i < sums.count; ++i) most = sums.jobs[i].outer * sums.jobs[i].rank > most ? sums.jobs[i].outer * sums.jobs[i].rank : most;
  if (most == 0) return cudaSuccess;
  return launch(thin_sum_kernel, dim3(grid_for(most, kThreads), static_cast<unsigned>(sums.count)), kThreads, 0, 1, queue, sums);
}

}  // namespace squareq::cuda
