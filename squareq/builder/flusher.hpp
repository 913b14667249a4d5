// Starts write-back while the build still computes, so that the final fsync has little left to do.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace squareq {

class Flusher {
 public:
  /// Calls `sync` on its own thread whenever `written` has grown by `every` bytes. What sync throws is kept for finish().
  Flusher(const std::atomic<std::uint64_t>& written, std::uint64_t every, std::function<void()> sync)
      : thread_([this, &written, every, sync = std::move(sync)](std::stop_token stop) {
          std::uint64_t synced = 0;
          std::mutex mutex;
          std::unique_lock lock(mutex);
          while (!stop.stop_requested()) {
            wake_.wait_for(lock, stop, std::chrono::milliseconds(50), [] { return false; });
            if (written - synced < every) continue;
            synced = written;
            try {
              sync();
            } catch (...) {
              failure_ = std::current_exception();
              return;
            }
          }
        }) {}

  /// Ends the thread and rethrows what sync threw.
  void finish() {
    thread_.request_stop();
    thread_.join();
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  std::condition_variable_any wake_;
  std::exception_ptr failure_;
  std::jthread thread_;  // last: uses the members above
};

}  // namespace squareq
