#include "bench/cuda/clock.hpp"

namespace squareq::bench {
namespace {

__device__ unsigned long long nanoseconds() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__global__ void stamp_kernel(ClockStamp* stamps, unsigned delay_ns) {
  unsigned multiprocessor;
  asm("mov.u32 %0, %%smid;" : "=r"(multiprocessor));
  const unsigned long long begin = nanoseconds();
  while (nanoseconds() - begin < delay_ns) {
  }
  stamps[multiprocessor] = {static_cast<unsigned long long>(clock64()), nanoseconds()};
}

}  // namespace

cudaError_t queue_clock_stamp(ClockStamp* stamps, int multiprocessors, std::uint32_t delay_ns, cudaStream_t stream) {
  stamp_kernel<<<static_cast<unsigned>(multiprocessors), 1, 0, stream>>>(stamps, delay_ns);
  return cudaGetLastError();
}

}  // namespace squareq::bench
