// The contract's tables of the groups "stream" and "telemetry".
#include <atomic>
#include <string>

#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/context.hpp"
#include "optimized/cuda/stream/session.hpp"

namespace squareq::cuda {
namespace {

const sq_context& checked(const sq_context* context) {
  if (!context) throw Error(Code::CALL_NULL, "context is null");
  return *context;
}

template <class T>
T& output(T* pointer, const char* name) {
  if (!pointer) throw Error(Code::CALL_NULL, std::string(name) + " is null");
  return *pointer;
}

/// Fills a caller's struct as far as its version goes.
template <class T>
void write_struct(T* out, const T& value, const char* name) {
  const std::uint32_t size = read_struct(out, name).size;
  std::memcpy(out, &value, std::min<std::size_t>(size, sizeof(T)));
  out->size = size;
}

sq_status open(sq_context* context, const sq_stream_open_args* given, std::uint64_t* session, sq_error* error) {
  return guarded(error, [&] {
    static std::atomic<std::uint64_t> next{1};  // process-wide, so that another context's session id is never taken for ours
    const sq_context& owner = checked(context);
    const sq_stream_open_args args = read_struct(given, "sq_stream_open_args");
    std::uint64_t& id = output(session, "session");
    const CurrentDevice current(owner);
    const std::uint64_t fresh = next++;
    auto opened = std::make_shared<StreamSession>(owner, fresh, args);
    const std::lock_guard lock(owner.sessions_mutex);
    owner.sessions.emplace(fresh, std::move(opened));
    id = fresh;
  });
}

sq_status begin_step(sq_context* context, std::uint64_t session, std::uint32_t schedule, sq_error* error) {
  return guarded(error, [&] { checked(context).session(session)->begin_step(schedule); });
}

sq_status acquire(sq_context* context, std::uint64_t session, std::uint32_t block, sq_stream_handle stream, sq_lease* lease, sq_error* error) {
  return guarded(error, [&] {
    sq_lease& out = output(lease, "lease");
    out = checked(context).session(session)->acquire(block, cuda_stream(stream));
  });
}

sq_status release(sq_context* context, std::uint64_t session, sq_lease lease, sq_stream_handle stream, sq_error* error) {
  return guarded(error, [&] { checked(context).session(session)->release(lease, cuda_stream(stream)); });
}

sq_status end_step(sq_context* context, std::uint64_t session, std::uint32_t abandoned, sq_error* error) {
  return guarded(error, [&] { checked(context).session(session)->end_step(abandoned != 0); });
}

sq_status stats(sq_context* context, std::uint64_t session, sq_stream_stats* out, sq_error* error) {
  return guarded(error, [&] { write_struct(out, checked(context).session(session)->stats(), "sq_stream_stats"); });
}

sq_status lease_weight(sq_context* context, std::uint64_t session, sq_lease lease, std::uint32_t layer, sq_weight* weight, sq_error* error) {
  return guarded(error, [&] { write_struct(weight, checked(context).session(session)->lease_weight(lease, layer), "sq_weight"); });
}

sq_status close(sq_context* context, std::uint64_t session, sq_error* error) {
  return guarded(error, [&] {
    const sq_context& owner = checked(context);
    const std::shared_ptr<StreamSession> closing = owner.session(session);
    {
      const std::lock_guard lock(owner.sessions_mutex);
      owner.sessions.erase(session);
    }
    closing->close();
  });
}

sq_status last_step(sq_context* context, std::uint64_t session, sq_step_metrics* metrics, sq_error* error) {
  return guarded(error, [&] { write_struct(metrics, checked(context).session(session)->last_step(), "sq_step_metrics"); });
}

}  // namespace

extern const sq_stream_group stream_group = {sizeof(sq_stream_group), 0, open, begin_step, acquire, release, end_step, stats, lease_weight, close};

extern const sq_telemetry_group telemetry_group = {sizeof(sq_telemetry_group), 0, last_step};

}  // namespace squareq::cuda
