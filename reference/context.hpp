// One instance of the reference: the host's table, the allocator, and the open stream sessions.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "squareq/contract.h"
#include "squareq/error.hpp"

namespace squareq::reference {
class Session;
}

struct sq_context {
  sq_host host{};
  sq_allocator allocator{};  // host.allocator, or plain aligned allocation
  unsigned threads = 1;

  std::mutex mutex;  // guards sessions and next_session
  std::map<std::uint64_t, std::shared_ptr<squareq::reference::Session>> sessions;
  std::uint64_t next_session = 1;
  std::atomic<std::uint64_t> next_lease{1};  // one counter for all sessions: a lease of another session is never mistaken
  std::atomic<std::int64_t> nan_count{0}, inf_count{0};  // found by numeric_guard so far; a pass reports its share
};

namespace squareq::reference {

/// Fills `context` from the host's table. Throws CALL_VERSION, CALL_DEVICE, CALL_NULL.
void configure(sq_context& context, const sq_host* host);

/// Memory of one kind from the host's allocator; freed on destruction. Throws GPU_OOM (DEVICE, SCRATCH) or HOST_OOM naming the bytes.
class Memory {
 public:
  Memory() = default;
  Memory(const sq_context& context, sq_memory_kind kind, std::uint64_t bytes, const std::string& tag);
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept { swap(other); return *this; }
  ~Memory();

  std::byte* data() const { return data_; }
  std::uint64_t bytes() const { return bytes_; }

 private:
  void swap(Memory& other) noexcept {
    std::swap(context_, other.context_);
    std::swap(kind_, other.kind_);
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
  }
  const sq_context* context_ = nullptr;
  sq_memory_kind kind_ = SQ_MEM_HOST;
  std::uint64_t bytes_ = 0;
  std::byte* data_ = nullptr;
};

/// A float matrix [rows, columns] in scratch memory, all zero.
class Matrix {
 public:
  Matrix(const sq_context& context, std::int64_t rows, std::int64_t columns, const char* tag);
  float* row(std::int64_t i) const { return reinterpret_cast<float*>(memory_.data()) + i * columns_; }

 private:
  Memory memory_;
  std::int64_t columns_;
};

/// body(i) for every i in [0, count), split over the context's threads. Each i is computed by one thread in the same way, so the
/// number of threads changes no bit.
template <class Body>
void parallel_for(const sq_context& context, std::int64_t count, const Body& body) {
  const std::int64_t workers = std::min<std::int64_t>(context.threads, count);
  const auto share = [&](std::int64_t worker) {
    for (std::int64_t i = count * worker / workers; i < count * (worker + 1) / workers; ++i) body(i);
  };
  std::vector<std::jthread> others;
  for (std::int64_t worker = 1; worker < workers; ++worker) others.emplace_back(share, worker);
  if (workers > 0) share(0);
}

}  // namespace squareq::reference
