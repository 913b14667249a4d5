// Starts write-back while the build still computes, so that the final fsync has little left to do.
#pragma once

#include <fcntl.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <thread>

#include "squareq/slab/file.hpp"

namespace squareq {

class Flusher {
 public:
  /// Asks the kernel to write back what `file` holds dirty, on a thread of its own, whenever `written` has grown by `every` bytes.
  /// No barrier and no promise: the promise is the fsync at the end, which also reports what failed.
  Flusher(const std::filesystem::path& file, const std::atomic<std::uint64_t>& written, std::uint64_t every)
      : fd_(::open(file.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW)), thread_([this, &written, every](std::stop_token stop) {
          std::uint64_t started = 0;
          std::mutex mutex;
          std::unique_lock lock(mutex);
          while (!stop.stop_requested()) {
            wake_.wait_for(lock, stop, std::chrono::milliseconds(50), [] { return false; });
            if (!fd_ || written - started < every) continue;
            started = written;
            (void)::sync_file_range(fd_.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
          }
        }) {}

 private:
  UniqueFd fd_;
  std::condition_variable_any wake_;
  std::jthread thread_;  // last: uses the members above
};

}  // namespace squareq
