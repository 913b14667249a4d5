#include "reference/arguments.hpp"
#include "reference/boundary.hpp"
#include "reference/groups.hpp"
#include "reference/stream/session.hpp"

namespace squareq::reference {
namespace {

sq_context& required(sq_context* context) {
  if (!context) throw Error(Code::CALL_NULL, "context is null");
  return *context;
}

sq_status open(sq_context* context, const sq_stream_open_args* args, std::uint64_t* session, sq_error* e) {
  return guarded(e, [&] {
    if (!session) throw Error(Code::CALL_NULL, "stream open: session is null");
    StreamPlan plan = check_plan(args);
    std::uint64_t id = 0;
    {
      const std::lock_guard lock(required(context).mutex);
      id = context->next_session++;
    }
    auto opened = std::make_shared<Session>(*context, id, std::move(plan));
    const std::lock_guard lock(context->mutex);
    context->sessions.emplace(id, std::move(opened));
    *session = id;
  });
}

sq_status begin_step(sq_context* context, std::uint64_t session, std::uint32_t schedule, sq_error* e) {
  return guarded(e, [&] { find_session(required(context), session)->begin_step(schedule); });
}

sq_status acquire(sq_context* context, std::uint64_t session, std::uint32_t block, sq_stream_handle, sq_lease* lease, sq_error* e) {
  return guarded(e, [&] {
    if (!lease) throw Error(Code::CALL_NULL, "acquire: lease is null");
    *lease = find_session(required(context), session)->acquire(block);
  });
}

sq_status release(sq_context* context, std::uint64_t session, sq_lease lease, sq_stream_handle, sq_error* e) {
  return guarded(e, [&] { find_session(required(context), session)->release(lease); });
}

sq_status end_step(sq_context* context, std::uint64_t session, std::uint32_t abandoned, sq_error* e) {
  return guarded(e, [&] { find_session(required(context), session)->end_step(abandoned != 0); });
}

sq_status stats(sq_context* context, std::uint64_t session, sq_stream_stats* out, sq_error* e) {
  return guarded(e, [&] { write_struct(out, find_session(required(context), session)->stats(), "sq_stream_stats"); });
}

sq_status lease_weight(sq_context* context, std::uint64_t session, sq_lease lease, std::uint32_t layer, sq_weight* out, sq_error* e) {
  return guarded(e, [&] { write_struct(out, find_session(required(context), session)->lease_weight(lease, layer), "sq_weight"); });
}

sq_status close(sq_context* context, std::uint64_t session, sq_error* e) {
  return guarded(e, [&] {
    std::shared_ptr<Session> closing = find_session(required(context), session);  // destroyed, and its loader joined, outside the lock
    const std::lock_guard lock(context->mutex);
    context->sessions.erase(session);
  });
}

sq_status last_step(sq_context* context, std::uint64_t session, sq_step_metrics* out, sq_error* e) {
  return guarded(e, [&] { write_struct(out, find_session(required(context), session)->last_step(), "sq_step_metrics"); });
}

}  // namespace

extern const sq_stream_group stream_group = {sizeof(sq_stream_group), 0, open, begin_step, acquire, release, end_step, stats, lease_weight, close};
extern const sq_telemetry_group telemetry_group = {sizeof(sq_telemetry_group), 0, last_step};

}  // namespace squareq::reference
