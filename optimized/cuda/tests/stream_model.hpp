// A small model to stream to a device: blocks of one layer, a source that can fail and delay, a watch on the transitions, and an allocator of
// device and page-locked memory that counts and fails.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "optimized/cuda/tests/device_memory.hpp"

namespace squareq::cuda_tests {

inline constexpr std::int64_t kOut = 40, kIn = 128;

/// Block b's bytes repeat a pattern of b, so that any other block's, or poison, is seen at once. Parts: qweight, scale, zero_point.
class Model {
 public:
  explicit Model(std::uint32_t blocks, std::vector<std::uint32_t> residents = {});

  sq_stream_open_args open_args(std::uint32_t slots, const std::vector<sq_schedule>& schedules);
  std::uint64_t extent() const { return extent_; }
  const std::vector<unsigned char>& bytes(std::uint32_t block) const { return extents_[block]; }
  void set_zero_point(std::uint32_t block, std::int64_t row, float value);
  sq_block_desc& desc(std::size_t block) { return descs_[block]; }

  std::atomic<std::int64_t> failing_block{-1};  ///< so many of its reads deliver half and return IO_SHORT_READ
  std::atomic<int> failures_left{0};
  std::atomic<int> delay_ms{0};
  std::atomic<std::int64_t> reads{0};

 private:
  static sq_status read(void* user, std::uint32_t block, std::uint64_t offset, void* destination, std::uint64_t bytes, sq_error* error);

  std::uint64_t extent_ = 0;
  std::vector<sq_part_desc> parts_;
  sq_layer_desc layer_{};
  std::vector<std::string> names_;
  std::vector<sq_block_desc> descs_;
  std::vector<std::vector<unsigned char>> extents_;
};

/// Device and page-locked memory, to the byte, with an index that fails.
class StreamAllocator {
 public:
  const sq_allocator* table();
  std::atomic<std::int64_t> calls{0}, fail_at{-1};
  std::atomic<std::int64_t> live[4] = {};
  std::int64_t live_bytes() const { return live[0] + live[1] + live[2] + live[3]; }

 private:
  sq_allocator table_{};
};

/// Every transition against the table of spec/60-streaming.md.
class Watch {
 public:
  static void on_transition(void* user, std::uint64_t session, std::uint32_t block, std::int32_t from, std::int32_t to);
  int violations() const;
  int failures() const;
  bool all_unloaded() const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::uint64_t, std::uint32_t>, std::int32_t> state_;
  int violations_ = 0, failures_ = 0;
};

/// A non-blocking stream of the test's own.
struct TestStream {
  TestStream() { REQUIRE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)); }
  ~TestStream() { cudaStreamDestroy(stream); }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  /// What is queued from now on starts that much later.
  void delay(int milliseconds);
  cudaStream_t stream = nullptr;
};

std::vector<sq_visit> ring(std::uint32_t blocks, std::uint32_t slots);
sq_schedule schedule(const std::vector<sq_visit>& visits, std::uint32_t lookahead = 1);

/// The lease's whole block as the stream sees it at this point of its order: copied in that order, read when the stream is done.
class Seen {
 public:
  Seen(const Lease& lease, const Context& context, std::uint64_t extent, cudaStream_t stream);
  ~Seen() { cudaFreeHost(bytes_); }
  Seen(const Seen&) = delete;
  Seen& operator=(const Seen&) = delete;
  /// After the stream has been waited for.
  bool equals(const std::vector<unsigned char>& expected) const { return std::memcmp(bytes_, expected.data(), expected.size()) == 0; }
  unsigned char at(std::size_t i) const { return bytes_[i]; }
  void* place() const { return place_; }

 private:
  unsigned char* bytes_ = nullptr;
  void* place_ = nullptr;
};

}  // namespace squareq::cuda_tests
