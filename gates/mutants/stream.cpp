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

/// Every extent is read twice.
sq_status read_twice(void* user, std::uint32_t block, std::uint64_t offset, void* to, std::uint64_t bytes, sq_error* e) {
  auto* r = static_cast<Reader*>(user);
  if (const sq_status status = r->read(r->user, block, offset, to, bytes, e); status != SQ_OK) return status;
  return r->read(r->user, block, offset, to, bytes, e);
}
/// Whatever a read failed of is an I/O error.
sq_status one_code_for_all(void* user, std::uint32_t block, std::uint64_t offset, void* to, std::uint64_t bytes, sq_error* e) {
  auto* r = static_cast<Reader*>(user);
  return r->read(r->user, block, offset, to, bytes, e) == SQ_OK ? SQ_OK : SQ_IO_ERROR;
}
/// A load spoils the slot that was filled before: evicted while in use.
sq_status spoil_the_last(void* user, std::uint32_t block, std::uint64_t offset, void* to, std::uint64_t bytes, sq_error* e) {
  static void* last = nullptr;
  auto* r = static_cast<Reader*>(user);
  if (last && last != to) static_cast<char*>(last)[5] ^= 1;
  last = to;
  return r->read(r->user, block, offset, to, bytes, e);
}

/// A slot that does not exist is taken for one that does.
sq_status slots_clamped(sq_context* c, const sq_stream_open_args* a, std::uint64_t* session, sq_error* e) {
  if (!a || !a->schedules || !a->slot_count) return base().stream->open(c, a, session, e);
  std::vector<std::vector<sq_visit>> visits;
  std::vector<sq_schedule> schedules(a->schedules, a->schedules + a->schedule_count);
  for (sq_schedule& s : schedules) {
    std::vector<sq_visit>& copy = visits.emplace_back(s.visits, s.visits + s.visit_count);
    for (sq_visit& v : copy) v.slot %= a->slot_count;
    s.visits = copy.data();
  }
  sq_stream_open_args args = *a;
  args.schedules = schedules.data();
  return base().stream->open(c, &args, session, e);
}
/// 64 bytes of every session are never given back.
sq_status leaks_per_session(sq_context* c, const sq_stream_open_args* a, std::uint64_t* session, sq_error* e) {
  if (const sq_allocator* m = host_allocator()) m->allocate(m->user, SQ_MEM_HOST, 64, 64, nullptr, "leaked");
  return base().stream->open(c, a, session, e);
}
sq_status evictions_uncounted(sq_context* c, std::uint64_t session, sq_stream_stats* out, sq_error* e) {
  const sq_status status = base().stream->stats(c, session, out, e);
  if (status == SQ_OK) out->evictions /= 2;
  return status;
}
/// A wrong block is served as the next one.
sq_status out_of_turn(sq_context* c, std::uint64_t session, std::uint32_t block, sq_stream_handle stream, sq_lease* lease, sq_error* e) {
  const sq_status status = base().stream->acquire(c, session, block, stream, lease, e);
  if (status != SQ_CALL_STATE) return status;
  for (std::uint32_t other = 0; other < 16; ++other)
    if (base().stream->acquire(c, session, other, stream, lease, nullptr) == SQ_OK) return SQ_OK;
  return status;
}
/// The step from gpu_ready to evicting is not told.
sq_host told;
void half_told(void*, std::uint64_t session, std::uint32_t block, std::int32_t from, std::int32_t to) {
  if (to != SQ_EVICTING) told.on_transition(told.user, session, block, from, to);
}
sq_status create_half_told(const sq_host* host, sq_context** context, sq_error* e) {
  told = *host;
  sq_host copy = *host;
  if (copy.on_transition) copy.on_transition = half_told;
  return base().create(&copy, context, e);
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
    {"reads_twice", [](Tables& t) { t.stream.open = open_through<read_twice>; }},
    {"one_code_for_all_failures", [](Tables& t) { t.stream.open = open_through<one_code_for_all>; }},
    {"evicted_while_in_use", [](Tables& t) { t.stream.open = open_through<spoil_the_last>; }},
    {"slots_clamped", [](Tables& t) { t.stream.open = slots_clamped; }},
    {"leaks_per_session", [](Tables& t) { t.stream.open = leaks_per_session; }},
    {"evictions_uncounted", [](Tables& t) { t.stream.stats = evictions_uncounted; }},
    {"served_out_of_turn", [](Tables& t) { t.stream.acquire = out_of_turn; }},
    {"eviction_not_told", [](Tables& t) { t.implementation.create = create_half_told; }},
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
