#include <deque>
#include <map>
#include <mutex>

#include "gates/mutants/copies.hpp"

namespace squareq::mutants {
namespace {

/// A session's own read callback, called through one that misbehaves.
struct Reader {
  sq_read_extent read;
  void* user;
  unsigned calls = 0;
};
std::deque<Reader> readers;
std::mutex mutex;

template <sq_read_extent wrapper>
sq_status open_through(sq_context* c, const sq_stream_open_args* a, std::uint64_t* session, sq_error* e) {
  const std::lock_guard lock(mutex);
  readers.push_back({a->read, a->read_user});
  sq_stream_open_args args = *a;
  args.read = wrapper;
  args.read_user = &readers.back();
  return base().stream->open(c, &args, session, e);
}

/// StageHand: a missing layer becomes zeros.
sq_status zero_fill(void* user, std::uint32_t block, std::uint64_t offset, void* to, std::uint64_t bytes, sq_error* e) {
  auto* r = static_cast<Reader*>(user);
  if (r->read(r->user, block, offset, to, bytes, e) != SQ_OK) std::memset(to, 0, bytes);
  return SQ_OK;
}
/// Every fifth read is forgotten: the slot keeps the bytes of the block before.
sq_status forgotten_load(void* user, std::uint32_t block, std::uint64_t offset, void* to, std::uint64_t bytes, sq_error* e) {
  auto* r = static_cast<Reader*>(user);
  if (++r->calls % 5 == 0) return SQ_OK;
  return r->read(r->user, block, offset, to, bytes, e);
}
/// The payload moved without its last bytes (the scales of the last layer).
sq_status short_tail(void* user, std::uint32_t block, std::uint64_t offset, void* to, std::uint64_t bytes, sq_error* e) {
  auto* r = static_cast<Reader*>(user);
  const sq_status status = r->read(r->user, block, offset, to, bytes, e);
  if (status == SQ_OK && bytes > 1024) std::memset(static_cast<char*>(to) + bytes - 1024, 0, 1024);
  return status;
}

/// Releases take effect only at the next call: a released lease goes on working.
struct Pending {
  std::uint64_t session;
  sq_lease lease;
};
std::map<sq_context*, Pending> pending;
void settle(sq_context* c) {
  const auto at = pending.find(c);
  if (at == pending.end()) return;
  base().stream->release(c, at->second.session, at->second.lease, nullptr, nullptr);
  pending.erase(at);
}
sq_status late_release(sq_context* c, std::uint64_t session, sq_lease lease, sq_stream_handle, sq_error*) {
  settle(c);
  pending[c] = {session, lease};
  return SQ_OK;
}
sq_status settled_acquire(sq_context* c, std::uint64_t session, std::uint32_t block, sq_stream_handle stream, sq_lease* lease, sq_error* e) {
  settle(c);
  return base().stream->acquire(c, session, block, stream, lease, e);
}
sq_status settled_end(sq_context* c, std::uint64_t session, std::uint32_t abandoned, sq_error* e) {
  settle(c);
  return base().stream->end_step(c, session, abandoned, e);
}

sq_status budget_ignored(sq_context* c, const sq_stream_open_args* a, std::uint64_t* session, sq_error* e) {
  sq_stream_open_args args = *a;
  args.budget_bytes = 0;
  return base().stream->open(c, &args, session, e);
}
/// Every slot is twice as large as the plan says.
sq_status fat_slots(sq_context* c, const sq_stream_open_args* a, std::uint64_t* session, sq_error* e) {
  sq_stream_open_args args = *a;
  args.slot_bytes *= 2;
  args.budget_bytes = 0;
  return base().stream->open(c, &args, session, e);
}

}  // namespace

const Mutation stream_mutations[] = {
    {"zeros_for_a_failed_read", [](Tables& t) { t.stream.open = open_through<zero_fill>; }},
    {"forgotten_load", [](Tables& t) { t.stream.open = open_through<forgotten_load>; }},
    {"tail_of_extent_missing", [](Tables& t) { t.stream.open = open_through<short_tail>; }},
    {"released_lease_works",
     [](Tables& t) {
       t.stream.release = late_release;
       t.stream.acquire = settled_acquire;
       t.stream.end_step = settled_end;
     }},
    {"budget_ignored", [](Tables& t) { t.stream.open = budget_ignored; }},
    {"slots_larger_than_planned", [](Tables& t) { t.stream.open = fat_slots; }},
};
const unsigned stream_mutation_count = std::size(stream_mutations);

}  // namespace squareq::mutants
