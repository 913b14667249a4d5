// The SM clock that a piece of work really ran at: every multiprocessor counts its cycles, and a stamp before and behind the work reads the counter
// together with the device's time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace squareq::bench {

/// What one multiprocessor says.
struct ClockStamp {
  unsigned long long cycles, nanoseconds;
};

/// Queues a kernel in which every multiprocessor waits `delay_ns` and then writes its counters to stamps[its index]; `stamps` holds `multiprocessors`
/// entries. The wait gives the host the time to queue what follows, so that what follows starts without a gap.
cudaError_t queue_clock_stamp(ClockStamp* stamps, int multiprocessors, std::uint32_t delay_ns, cudaStream_t stream);

}  // namespace squareq::bench
