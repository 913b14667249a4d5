// A one-line progress meter on stderr with rate and estimated time left. Silent when stderr is no terminal or --quiet was given.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace squareq::cli {

class ProgressMeter {
 public:
  /// `unit` is "B" (shown as MB/GB with a rate in MB/s) or a word such as "step".
  ProgressMeter(std::string title, std::string unit, bool quiet);
  ~ProgressMeter();
  ProgressMeter(const ProgressMeter&) = delete;
  ProgressMeter& operator=(const ProgressMeter&) = delete;

  /// Shows `done` of `total`; redraws at most ten times a second. Not thread-safe.
  void update(std::uint64_t done, std::uint64_t total, std::string_view what);

 private:
  using Clock = std::chrono::steady_clock;

  std::string title_;
  std::string unit_;
  bool visible_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_{};
  std::uint64_t first_ = 0;
  bool begun_ = false;
};

}  // namespace squareq::cli
