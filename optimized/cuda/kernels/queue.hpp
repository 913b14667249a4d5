// How a kernel is queued behind others. Plain C++17: nvcc compiles this too.
#pragma once

#include <cuda_runtime_api.h>

namespace squareq::cuda {

/// Where a kernel goes. `early`: it may start while the kernel queued before it, which is one of the same call, still runs (programmatic dependent
/// launch, compute capability 9.0 and up); it then reads what the call has made, and writes, behind wait_for_former() only.
struct Queue {
  cudaStream_t stream;
  bool early;
};

/// The kernels of one call, in their order. The first starts when everything before it in the stream is done, so what the caller brought may be read
/// by all of them at any time.
class Chain {
 public:
  Chain(cudaStream_t stream, bool overlaps) : stream_(stream), overlaps_(overlaps) {}

  cudaStream_t stream() const { return stream_; }
  /// For the next kernel.
  Queue next() {
    const Queue queue{stream_, overlaps_ && started_};
    started_ = true;
    return queue;
  }

 private:
  cudaStream_t stream_;
  bool overlaps_, started_ = false;
};

}  // namespace squareq::cuda
