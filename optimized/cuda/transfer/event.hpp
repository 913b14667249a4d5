// CUDA events and the copy stream as owned objects.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <mutex>
#include <vector>

namespace squareq::cuda {

/// Events that go back to their pool when the last holder lets go. They time, so that one event serves ordering and measuring.
/// Thread-safe; the pool's device must be current where events are made.
class EventPool : public std::enable_shared_from_this<EventPool> {
 public:
  EventPool() = default;
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;
  ~EventPool();

  using Held = std::shared_ptr<CUevent_st>;
  /// An unused event, recorded on `stream`.
  Held record(cudaStream_t stream);

 private:
  std::mutex mutex_;
  std::vector<cudaEvent_t> free_;
};

using Event = EventPool::Held;

/// Work queued on `stream` from now on waits for the event.
void wait_for(cudaStream_t stream, const Event& event);
/// Whether the device has passed the event. Throws what the device failed with.
bool passed(const Event& event);
/// Blocks until the device has passed the event.
void synchronize(const Event& event);
/// Milliseconds from `from` to `to`, both passed; never below 0.
double milliseconds_between(const Event& from, const Event& to);

/// A stream that does not wait for the legacy default stream.
class OwnStream {
 public:
  OwnStream();
  ~OwnStream();
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace squareq::cuda
