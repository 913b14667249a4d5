// The caller's side of a stream session. Every refusal leaves the session as it was.
#include "reference/stream/session.hpp"

#include "reference/arguments.hpp"
#include "squareq/text.hpp"

namespace squareq::reference {
namespace {

[[noreturn]] void wrong_state(const std::string& message) { throw Error(Code::CALL_STATE, message); }

std::string quoted(const std::string& name) { return std::string(1, '\'').append(printable(name)).append(1, '\''); }

double milliseconds(std::chrono::nanoseconds t) { return std::chrono::duration<double, std::milli>(t).count(); }

}  // namespace

Session::Session(sq_context& context, std::uint64_t id, StreamPlan plan)
    : context_(context), id_(id), plan_(std::move(plan)), memory_(context, plan_), states_(plan_.blocks.size(), SQ_UNLOADED) {
  try {
    for (std::uint32_t block = 0; block < plan_.blocks.size(); ++block)
      if (Counters ignored; plan_.blocks[block].resident) load(block, memory_.blocks[block].resident.data(), ignored);
  } catch (...) {
    unload_all();
    throw;
  }
  loader_ = std::thread([this] { run(); });
}

Session::~Session() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  loader_.join();
  unload_all();
}

void Session::begin_step(std::uint32_t schedule) {
  const std::lock_guard lock(mutex_);
  if (pass_) wrong_state("begin_step: a pass over schedule " + quoted(pass_->schedule->name) + " is still open");
  if (schedule >= plan_.schedules.size())
    throw Error(Code::CALL_VALUE, "begin_step: schedule is " + std::to_string(schedule) + ", there are " + std::to_string(plan_.schedules.size()));
  pass_.emplace();
  pass_->number = ++passes_begun_;
  pass_->schedule = &plan_.schedules[schedule];
  pass_->start = Clock::now();
  pass_->before = counters();
  changed_.notify_all();
}

sq_lease Session::acquire(std::uint32_t block) {
  std::unique_lock lock(mutex_);
  if (block >= plan_.blocks.size()) throw Error(Code::CALL_VALUE, "acquire: block is " + std::to_string(block) + ", there are " + std::to_string(plan_.blocks.size()));
  if (plan_.blocks[block].resident) return grant(block, {}, memory_.blocks[block].resident.data());
  if (!pass_) wrong_state("acquire: block " + quoted(name(block)) + " was asked for outside a pass");
  if (pass_->cursor == pass_->visits().size())
    wrong_state("acquire: block " + quoted(name(block)) + " was asked for, but all " + std::to_string(pass_->cursor) + " visits of schedule " +
                quoted(pass_->schedule->name) + " are done");
  const sq_visit visit = pass_->visits()[pass_->cursor];
  if (visit.block != block)
    wrong_state("acquire: block " + quoted(name(block)) + " was asked for, but visit " + std::to_string(pass_->cursor) + " is of block " + quoted(name(visit.block)));

  if (pass_->complete() || take_from_slot()) ++counters_.hits;
  else wait_for_visit(lock, visit);
  ++pass_->cursor;
  changed_.notify_all();  // the lookahead window has moved
  return grant(block, visit.slot, memory_.slots[visit.slot].memory.data());
}

void Session::wait_for_visit(std::unique_lock<std::mutex>& lock, const sq_visit& visit) {
  // All earlier visits are acquired, so a slot in use is held by a lease: waiting for it here could last forever.
  if (const Slot* slot = blocking_slot(visit); slot && slot->users)
    wrong_state("acquire: block " + quoted(name(visit.block)) + " needs slot " + std::to_string(visit.slot) + ", but the lease on block " +
                quoted(name(*slot->block)) + " is not released");
  if (pass_->failure && pass_->failure->reported) pass_->failure.reset();
  changed_.notify_all();
  const auto start = Clock::now();
  const std::uint64_t pass = pass_->number;
  changed_.wait(lock, [&] { return stopping_ || !pass_ || pass_->number != pass || pass_->failure || pass_->complete(); });
  const auto waited = Clock::now() - start;
  counters_.wait += waited;
  if (waited > std::chrono::microseconds(50)) ++counters_.waits;
  if (stopping_ || !pass_ || pass_->number != pass) wrong_state("acquire: the pass ended while block " + quoted(name(visit.block)) + " was waited for");
  if (!pass_->complete()) {
    pass_->failure->reported = true;
    throw Error(pass_->failure->problem);
  }
  ++counters_.misses;
}

sq_lease Session::grant(std::uint32_t block, std::optional<std::uint32_t> slot, std::byte* extent) {
  Lease lease{block, slot, {}, pass_ ? pass_->number : 0, 0};
  for (const LayerPlan& layer : plan_.blocks[block].layers) lease.layers.push_back(layer.bind(extent));
  const sq_lease id = context_.next_lease++;
  leases_.emplace(id, std::move(lease));
  return id;
}

const Session::Lease& Session::held(sq_lease lease) const {
  const auto found = leases_.find(lease);
  if (found == leases_.end()) wrong_state("lease " + std::to_string(lease) + " is not held: it was released, given up, or is of another session");
  return found->second;
}

void Session::release(sq_lease id) {
  const std::lock_guard lock(mutex_);
  const Lease& lease = held(id);
  if (lease.operations) wrong_state("release: " + std::to_string(lease.operations) + " operations still run on the lease of block " + quoted(name(lease.block)));
  if (lease.slot) --memory_.slots[*lease.slot].users;
  leases_.erase(id);
  changed_.notify_all();
}

void Session::end_step(bool abandoned) {
  std::unique_lock lock(mutex_);
  if (!pass_) wrong_state("end_step: no pass is open");
  for (const auto& [id, lease] : leases_) {
    if (lease.pass != pass_->number) continue;  // a resident leased outside the pass
    if (!abandoned) wrong_state("end_step: the lease on block " + quoted(name(lease.block)) + " is not released");
    if (lease.operations) wrong_state("end_step: operations still run on the lease of block " + quoted(name(lease.block)));
  }
  if (!abandoned && pass_->cursor < pass_->visits().size())
    wrong_state("end_step: visit " + std::to_string(pass_->cursor) + " of " + std::to_string(pass_->visits().size()) + ", block " +
                quoted(name(pass_->visits()[pass_->cursor].block)) + ", was never acquired");
  std::erase_if(leases_, [&](const auto& entry) { return entry.second.pass == pass_->number; });
  for (Slot& slot : memory_.slots) slot.users = 0;
  ++steps_;
  record_metrics();
  pass_.reset();
  changed_.notify_all();
  changed_.wait(lock, [&] { return !loading_; });  // only an abandoned pass can have a load under way
}

Session::Counters Session::counters() const {
  Counters now = counters_;
  now.nans = context_.nan_count;
  now.infinite = context_.inf_count;
  return now;
}

void Session::record_metrics() {
  const Counters now = counters();
  const Counters& before = pass_->before;
  const auto wall = Clock::now() - pass_->start;
  constexpr double mib = 1024.0 * 1024.0;
  std::int64_t busy = 0;
  for (const Slot& slot : memory_.slots) busy += slot.block.has_value();
  sq_step_metrics m{};
  m.size = sizeof(sq_step_metrics);
  m.step = static_cast<std::int64_t>(steps_) - 1;
  m.h2d_bytes = static_cast<std::int64_t>(now.loaded_bytes - before.loaded_bytes);
  m.copy_time_ms = milliseconds(now.copy - before.copy);
  m.stall_time_ms = milliseconds(now.wait - before.wait);
  m.compute_time_ms = milliseconds(wall) - m.stall_time_ms;
  m.stall_count = static_cast<std::int64_t>(now.waits - before.waits);
  m.evictions = static_cast<std::int64_t>(now.evictions - before.evictions);
  m.prefetch_hits = static_cast<std::int64_t>(now.hits - before.hits);
  m.prefetch_misses = static_cast<std::int64_t>(now.misses - before.misses);
  m.vram_used_mb = m.vram_reserved_mb = static_cast<double>(plan_.device_bytes) / mib;
  m.host_pool_in_use = busy;
  m.host_pool_free = static_cast<std::int64_t>(memory_.slots.size()) - busy;
  m.nan_count = now.nans - before.nans;
  m.inf_count = now.infinite - before.infinite;
  m.wall_ms = milliseconds(wall);
  m.slot_wait_ms = milliseconds(now.slot_wait - before.slot_wait);
  m.disk_read_bytes = static_cast<std::int64_t>(now.read_bytes - before.read_bytes);
  m.disk_read_ms = milliseconds(now.read - before.read);
  m.vram_peak_bytes = static_cast<std::int64_t>(plan_.device_bytes);
  m.launches = static_cast<std::int64_t>(now.launches - before.launches);
  metrics_ = m;
}

sq_stream_stats Session::stats() const {
  const std::lock_guard lock(mutex_);
  sq_stream_stats s{};
  s.size = sizeof(sq_stream_stats);
  s.device_bytes = s.peak_device_bytes = plan_.device_bytes;
  s.host_bytes = memory_.host_bytes;
  s.loads = counters_.loads;
  s.loaded_bytes = counters_.loaded_bytes;
  s.hits = counters_.hits;
  s.misses = counters_.misses;
  s.wait_ns = static_cast<std::uint64_t>(counters_.wait.count());
  s.evictions = counters_.evictions;
  s.steps = steps_;
  return s;
}

sq_step_metrics Session::last_step() const {
  const std::lock_guard lock(mutex_);
  if (!metrics_) wrong_state("last_step: no pass has finished yet");
  return *metrics_;
}

sq_weight Session::lease_weight(sq_lease id, std::uint32_t layer) const {
  const std::lock_guard lock(mutex_);
  const Lease& lease = held(id);
  if (layer >= lease.layers.size())
    throw Error(Code::CALL_VALUE, "layer is " + std::to_string(layer) + ", block " + quoted(name(lease.block)) + " has " + std::to_string(lease.layers.size()));
  return plan_.blocks[lease.block].layers[layer].weight(lease.layers[layer]);
}

Weight Session::leased_weight(sq_lease id, std::uint32_t layer) {
  const sq_weight weight = lease_weight(id, layer);
  Pin pin;
  {
    const std::lock_guard lock(mutex_);
    held(id);
    ++leases_.at(id).operations;
    ++counters_.launches;
    pin = Pin(this, [self = shared_from_this(), id](void*) {
      const std::lock_guard unpin(self->mutex_);
      --self->leases_.at(id).operations;
    });
  }
  Weight checked = check_weight(weight);
  checked.pin = std::move(pin);
  return checked;
}

std::shared_ptr<Session> find_session(sq_context& context, std::uint64_t id) {
  const std::lock_guard lock(context.mutex);
  const auto found = context.sessions.find(id);
  if (found == context.sessions.end()) wrong_state("session " + std::to_string(id) + " is not open");
  return found->second;
}

}  // namespace squareq::reference
