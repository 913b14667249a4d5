#include "optimized/cpu/context.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <thread>

#include "optimized/cpu/stream/session.hpp"
#include "squareq/error.hpp"

namespace squareq::cpu {
namespace {

unsigned wanted_threads(std::uint32_t threads) {
  if (threads != 0) return threads;
  return std::max(1u, std::thread::hardware_concurrency());
}

void copy_text(char* to, std::size_t capacity, const std::string& from) {
  const std::size_t n = std::min(capacity - 1, from.size());
  std::memcpy(to, from.data(), n);
  to[n] = '\0';
}

sq_status fill(sq_error* error, Code code, const std::string& message, const Problem* problem) {
  if (error != nullptr && error->size >= sizeof(sq_error)) {
    error->code = static_cast<sq_status>(code);
    copy_text(error->message, sizeof error->message, message);
    copy_text(error->layer, sizeof error->layer, problem ? problem->layer : "");
    copy_text(error->tensor, sizeof error->tensor, problem ? problem->tensor : "");
    copy_text(error->file, sizeof error->file, problem ? problem->file : "");
  }
  return static_cast<sq_status>(code);
}

}  // namespace

Context::Context(const sq_host& given)
    : allocator(given.allocator), host(given), kernels(select_kernels()), pool(wanted_threads(given.threads)) {
  host.allocator = nullptr;
}

Context::~Context() = default;

std::shared_ptr<StreamSession> Context::session(std::uint64_t id) {
  const std::lock_guard lock(sessions_mutex);
  const auto found = sessions.find(id);
  if (found == sessions.end()) throw Error(Code::CALL_STATE, "stream session " + std::to_string(id) + " is not open in this context");
  return found->second;
}

Context& unwrap(sq_context* context) {
  if (context == nullptr) throw Error(Code::CALL_NULL, "context is null");
  return *reinterpret_cast<Context*>(context);
}

sq_status guarded(sq_error* error, const std::function<void()>& body) noexcept {
  try {
    body();
    return SQ_OK;
  } catch (const Error& e) {
    return fill(error, e.code(), e.what(), &e.problem());
  } catch (const std::bad_alloc&) {
    return fill(error, Code::HOST_OOM, "host memory exhausted", nullptr);
  } catch (const std::exception& e) {
    return fill(error, Code::INTERNAL, e.what(), nullptr);
  }
}

void refuse_struct(const char* name, std::uint64_t given, std::uint64_t expected) {
  if (expected == 0) throw Error(Code::CALL_NULL, std::string(name) + " is null");
  throw Error(Code::CALL_VERSION, std::string(name) + " has size " + std::to_string(given) + ", this implementation needs " + std::to_string(expected));
}

}  // namespace squareq::cpu
