#include "optimized/cuda/transfer/event.hpp"

#include "optimized/cuda/context.hpp"

namespace squareq::cuda {

EventPool::~EventPool() {
  for (const cudaEvent_t event : free_) cudaEventDestroy(event);
}

EventPool::Held EventPool::record(cudaStream_t stream) {
  cudaEvent_t event = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      event = free_.back();
      free_.pop_back();
    }
  }
  if (!event) check_cuda(cudaEventCreate(&event), "making an event");
  Held held(event, [pool = shared_from_this()](cudaEvent_t e) {
    const std::lock_guard lock(pool->mutex_);
    pool->free_.push_back(e);
  });
  check_cuda(cudaEventRecord(event, stream), "recording an event");
  return held;
}

void wait_for(cudaStream_t stream, const Event& event) { check_cuda(cudaStreamWaitEvent(stream, event.get(), 0), "waiting for an event"); }

bool passed(const Event& event) {
  const cudaError_t status = cudaEventQuery(event.get());
  if (status != cudaErrorNotReady) check_cuda(status, "asking for an event");
  else static_cast<void>(cudaGetLastError());  // "not ready" is an answer; a later launch must not find it as its error
  return status == cudaSuccess;
}

void synchronize(const Event& event) { check_cuda(cudaEventSynchronize(event.get()), "waiting for an event"); }

double milliseconds_between(const Event& from, const Event& to) {
  float elapsed = 0;
  check_cuda(cudaEventElapsedTime(&elapsed, from.get(), to.get()), "reading the time between two events");
  return elapsed > 0 ? static_cast<double>(elapsed) : 0;
}

OwnStream::OwnStream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making the copy stream"); }

OwnStream::~OwnStream() { cudaStreamDestroy(stream_); }

}  // namespace squareq::cuda
