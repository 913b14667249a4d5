// The state of one instance of this backend.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "optimized/cpu/kernels.hpp"
#include "optimized/cpu/memory.hpp"
#include "optimized/cpu/worker_pool.hpp"
#include "squareq/contract.h"

namespace squareq::cpu {

class StreamSession;

struct Context {
  explicit Context(const sq_host& host);
  ~Context();

  /// The session of this id; throws CALL_STATE where it is closed or was never opened here.
  std::shared_ptr<StreamSession> session(std::uint64_t id);

  Allocator allocator;  // first: everything below may hold its memory
  sq_host host;         // its `allocator` pointer is not used after construction
  const Kernels& kernels;
  WorkerPool pool;

  std::mutex sessions_mutex;
  std::map<std::uint64_t, std::shared_ptr<StreamSession>> sessions;
  std::atomic<std::int64_t> nan_count{0};  // what numeric_guard has found, for the step metrics
  std::atomic<std::int64_t> inf_count{0};
};

/// Throws CALL_NULL.
Context& unwrap(sq_context* context);

/// Runs `body` and turns every exception into a status and an error record.
sq_status guarded(sq_error* error, const std::function<void()>& body) noexcept;

[[noreturn]] void refuse_struct(const char* name, std::uint64_t given, std::uint64_t expected);

/// A copy of a caller's struct, whose own size says how far it reaches: fields that an older caller did not have read as zero (SQ-CNV-001).
/// Throws CALL_NULL for a null struct, CALL_VERSION for one that does not even hold its size.
template <class T>
T checked_struct(const T* value, const char* name) {
  if (value == nullptr) refuse_struct(name, 0, 0);
  if (value->size < 8) refuse_struct(name, value->size, sizeof(T));
  T copy{};
  std::memcpy(&copy, value, std::min<std::size_t>(value->size, sizeof(T)));
  return copy;
}

/// Fills a caller's record, no further than it reaches. Throws as checked_struct.
template <class T>
void fill_struct(T* target, T value, const char* name) {
  checked_struct(target, name);
  value.size = target->size;
  std::memcpy(target, &value, std::min<std::size_t>(target->size, sizeof(T)));
}

}  // namespace squareq::cpu
