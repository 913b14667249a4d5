// The state of one instance of this backend.
#pragma once

#include <atomic>
#include <cstdint>
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


/// Runs `body` and turns every exception into a status and an error record.
sq_status guarded(sq_error* error, const std::function<void()>& body) noexcept;

/// Throws CALL_NULL for a null context.
Context& unwrap(sq_context* context);

[[noreturn]] void refuse_struct(const char* name, std::uint64_t given, std::uint64_t expected);

/// Throws CALL_NULL for a null struct, CALL_VERSION for one smaller than this implementation's.
template <class T>
const T& checked_struct(const T* value, const char* name) {
  if (value == nullptr) refuse_struct(name, 0, 0);
  if (value->size < sizeof(T)) refuse_struct(name, value->size, sizeof(T));
  return *value;
}

}  // namespace squareq::cpu
