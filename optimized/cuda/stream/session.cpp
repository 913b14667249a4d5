#include "optimized/cuda/stream/session.hpp"

#include <algorithm>
#include <string>

#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/context.hpp"
#include "optimized/cuda/transfer/faults.hpp"
#include "squareq/text.hpp"

namespace squareq::cuda {
namespace {

constexpr double kMib = 1048576.0;
constexpr double kStallMs = 0.05;  // shorter waits are no stalls (SQ-TEL)

[[noreturn]] void refuse_state(const std::string& what) { throw Error(Code::CALL_STATE, what); }

const sq_stream_open_args& checked(const sq_stream_open_args& args) {
  if (args.read == nullptr) refuse(Code::CALL_NULL, {"", "read"}, "is required and null");
  if (args.slot_count > 0 && (args.slot_bytes == 0 || args.slot_bytes % kAlignment != 0))
    refuse(Code::CALL_ALIGN, {"", "slot_bytes"}, "is " + std::to_string(args.slot_bytes) + ", expected a multiple of " + std::to_string(kAlignment));
  return args;
}

}  // namespace

StreamSession::StreamSession(const sq_context& context, std::uint64_t id, const sq_stream_open_args& args)
    : context_(context),
      id_(id),
      blocks_(copy_blocks(checked(args), context.host.device)),
      schedules_(copy_schedules(args, blocks_)),
      slot_count_(args.slot_count),
      read_(args.read),
      read_user_(args.read_user),
      poison_(args.poison_slots != 0),
      state_(blocks_.size(), SQ_UNLOADED) {
  allocate(args);
  loader_ = std::thread([this] { run_loader(); });
  try {
    load_residents();
  } catch (...) {
    close();
    throw;
  }
}

StreamSession::~StreamSession() { close(); }

void StreamSession::close() {
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    closed_ = true;
    stop_ = true;
    cancel_ = true;
    pass_.reset();
    leases_.clear();
  }
  loader_wake_.notify_all();
  changed_.notify_all();
  if (loader_.joinable()) loader_.join();
  int former = 0;
  if (cudaGetDevice(&former) == cudaSuccess && cudaSetDevice(context_.host.device.index) == cudaSuccess) {
    cudaDeviceSynchronize();  // copies into the memory, and whatever still reads it; where the device is lost there is nothing to wait for
    const std::lock_guard lock(mutex_);
    for (Place& place : places_) {
      if (place.block == kNothing) continue;
      settle(place.block);
      transition(place.block, SQ_GPU_FREEING);
      transition(place.block, SQ_UNLOADED);
      place.block = kNothing;
    }
    arena_.reset();
    master_.reset();
    staging_.reset();
    cudaSetDevice(former);
  }
}

void StreamSession::check_open() const {
  if (closed_) refuse_state("stream session " + std::to_string(id_) + " is closed");
}

void StreamSession::begin_step(std::uint32_t schedule) {
  const std::lock_guard lock(mutex_);
  check_open();
  if (pass_) refuse_state("begin_step inside pass " + std::to_string(pass_number_));
  if (schedule >= schedules_.size())
    refuse(Code::CALL_VALUE, {"", "schedule"}, "is " + std::to_string(schedule) + ", the session has " + std::to_string(schedules_.size()));
  ++pass_number_;
  pass_.emplace();
  pass_->schedule = &schedules_[schedule];
  pass_->begun = Clock::now();
  pass_->at_begin = stats_;
  pass_->metrics = totals_;
  pass_->metrics.nan_count = context_.nonfinite.nan();
  pass_->metrics.inf_count = context_.nonfinite.inf();
  cancel_ = false;
  loader_wake_.notify_one();
}

sq_lease StreamSession::acquire(std::uint32_t block, cudaStream_t stream) {
  const CurrentDevice current(context_);
  std::unique_lock lock(mutex_);
  check_open();
  if (const auto resident = resident_place_.find(block); resident != resident_place_.end()) return lend(block, resident->second);
  const auto name = [this](std::uint32_t b) { return std::to_string(b) + (b < blocks_.size() ? " (" + printable(blocks_[b].name) + ")" : ""); };
  if (!pass_) refuse_state("acquire of block " + name(block) + " outside a pass");
  const std::vector<sq_visit>& visits = pass_->schedule->visits;
  const std::uint32_t visit = pass_->cursor;
  if (visit == visits.size()) refuse_state("acquire of block " + name(block) + " after the last of " + std::to_string(visit) + " visits");
  if (visits[visit].block != block)
    refuse_state("acquire of block " + name(block) + ", the next visit (" + std::to_string(visit) + ") is of block " + name(visits[visit].block));
  for (std::uint32_t s = 0; s < slot_count_; ++s) {
    const Place& place = places_[s];
    if (place.leases > 0 && s == visits[visit].slot && place.block != block)
      refuse_state("acquire of block " + name(block) + " in slot " + std::to_string(s) + ", which is still leased for block " + name(place.block));
    if (place.leases > 0 && s != visits[visit].slot && place.block == block)
      refuse_state("acquire of block " + name(block) + " in slot " + std::to_string(visits[visit].slot) + ", it is still leased in slot " + std::to_string(s));
  }
  wait_for_visit(lock, visit, stream);
  settle(block);
  ++pass_->cursor;
  const sq_lease lease = lend(block, visits[visit].slot);
  loader_wake_.notify_one();
  return lease;
}

void StreamSession::wait_for_visit(std::unique_lock<std::mutex>& lock, std::uint32_t visit, cudaStream_t stream) {
  const sq_visit v = pass_->schedule->visits[visit];
  const Place& place = places_[v.slot];
  const auto queued = [&] { return place.block == v.block && place.ready; };
  Event asked;
  if (!pass_->trace.first_acquire) pass_->trace.first_acquire = asked = events_->record(stream);
  if (!queued()) {
    if (!asked) asked = events_->record(stream);
    if (pass_->told.erase(visit)) pass_->failed.erase(visit);  // the load is tried again, now that somebody waits for it
    const std::uint64_t pass = pass_number_;
    const Clock::time_point begin = Clock::now();
    const auto ended = [&] { return closed_ || !pass_ || pass_number_ != pass; };
    loader_wake_.notify_one();
    changed_.wait(lock, [&] { return ended() || queued() || pass_->failed.contains(visit); });
    stats_.wait_ns += static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count());
    if (ended()) refuse_state("the pass ended while block " + printable(blocks_[v.block].name) + " was awaited");
    if (const auto failed = pass_->failed.find(visit); failed != pass_->failed.end()) {
      pass_->told.insert(visit);
      throw Error(failed->second);
    }
  } else if (passed(place.loaded)) {
    ++stats_.hits;
    return;
  }
  if (!asked) asked = events_->record(stream);
  let_stream_wait(place, stream);
  pass_->trace.waits.push_back({asked, place.loaded});
  ++stats_.misses;
}

void StreamSession::let_stream_wait(const Place& place, cudaStream_t stream) {
  if (fault("no_ready_wait")) return;
  wait_for(fault("wrong_ready_stream") ? copy_stream_.get() : stream, place.loaded);
}

/// A block whose copy is queued counts as loaded from the moment that somebody uses the slot in the order of the streams.
void StreamSession::settle(std::uint32_t block) {
  if (state_[block] == SQ_PREFETCHING) transition(block, SQ_GPU_READY);
}

sq_lease StreamSession::lend(std::uint32_t block, std::uint32_t place) {
  const sq_lease lease = next_lease_++;
  leases_[lease] = {block, place, pass_ ? pass_number_ : 0, &views_.at({block, place})};
  ++places_[place].leases;
  ++places_[place].pins;
  return lease;
}

const StreamSession::LeaseRecord& StreamSession::find_lease(sq_lease lease) const {
  check_open();
  const auto found = leases_.find(lease);
  if (found == leases_.end()) refuse_state("lease " + std::to_string(lease) + " of stream session " + std::to_string(id_) + " is not held (released, or never given)");
  return found->second;
}

void StreamSession::drop_lease(const LeaseRecord& record) {
  --places_[record.place].leases;
  --places_[record.place].pins;
}

void StreamSession::release(sq_lease lease, cudaStream_t stream) {
  const CurrentDevice current(context_);
  const std::lock_guard lock(mutex_);
  const LeaseRecord record = find_lease(lease);
  if (record.place < slot_count_) {  // a resident's memory is not reused
    const Event freed = events_->record(fault("wrong_free_stream") ? copy_stream_.get() : stream);
    places_[record.place].freed.push_back(freed);
    if (pass_) pass_->trace.last_release = freed;
  }
  drop_lease(record);
  leases_.erase(lease);
  loader_wake_.notify_one();
}

std::shared_ptr<StreamSession::Hold> StreamSession::hold(sq_lease lease, std::uint32_t layer, cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  const LeaseRecord& record = find_lease(lease);
  const sq_weight& weight = record.view->layer(layer);
  if (const auto bad = bad_zero_points_.find({record.block, layer}); bad != bad_zero_points_.end())
    refuse(Code::DT_ZP_NONZERO, {weight.name, "zero_point"}, "row " + std::to_string(bad->second.row) + " is " + std::to_string(bad->second.value) + ", must be 0");
  auto held = std::make_shared<Hold>(shared_from_this(), lease, record.place, record.view, stream);
  ++places_[record.place].pins;
  ++totals_.launches;
  return held;
}

StreamSession::Hold::~Hold() { session_->unpin(place_, lease_, stream_); }

/// Where the lease went while the operation was queueing work, what it queued keeps the slot too.
void StreamSession::unpin(std::uint32_t place, sq_lease lease, cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  if (!leases_.contains(lease) && place < slot_count_) {
    try {
      places_[place].freed.push_back(events_->record(stream));
    } catch (const Error&) {
      cudaDeviceSynchronize();  // no event to wait for: wait here
    }
  }
  --places_[place].pins;
  loader_wake_.notify_one();
}

sq_weight StreamSession::lease_weight(sq_lease lease, std::uint32_t layer) {
  const std::lock_guard lock(mutex_);
  return find_lease(lease).view->layer(layer);
}

void StreamSession::end_step(bool abandoned) {
  const CurrentDevice current(context_);
  std::unique_lock lock(mutex_);
  check_open();
  if (!pass_) refuse_state("end_step outside a pass");
  std::uint32_t held = 0;
  for (const auto& [id, record] : leases_) held += record.pass == pass_number_ ? 1 : 0;
  const std::size_t visits = pass_->schedule->visits.size();
  if (!abandoned && (pass_->cursor != visits || held > 0))
    refuse_state("end_step after " + std::to_string(pass_->cursor) + " of " + std::to_string(visits) + " visits with " + std::to_string(held) + " leases held");
  if (abandoned) {
    cancel_ = true;
    changed_.wait(lock, [this] { return !loading_; });
    if (held > 0) check_cuda(cudaDeviceSynchronize(), "waiting for the work of an abandoned pass");
    std::erase_if(leases_, [this](const auto& entry) {
      const bool mine = entry.second.pass == pass_number_;
      if (mine) drop_lease(entry.second);
      return mine;
    });
  }
  ++stats_.steps;
  finish_metrics();
  pass_.reset();
  changed_.notify_all();
}

void StreamSession::finish_metrics() {
  const sq_step_metrics& before = pass_->metrics;
  const sq_stream_stats& then = pass_->at_begin;
  sq_step_metrics m{};
  m.size = sizeof m;
  m.step = static_cast<std::int64_t>(stats_.steps) - 1;
  m.h2d_bytes = totals_.h2d_bytes - before.h2d_bytes;
  m.wall_ms = std::chrono::duration<double, std::milli>(Clock::now() - pass_->begun).count();
  m.evictions = static_cast<std::int64_t>(stats_.evictions - then.evictions);
  m.prefetch_hits = static_cast<std::int64_t>(stats_.hits - then.hits);
  m.prefetch_misses = static_cast<std::int64_t>(stats_.misses - then.misses);
  m.vram_used_mb = m.vram_reserved_mb = static_cast<double>(stats_.device_bytes) / kMib;
  for (std::uint32_t s = 0; s < slot_count_; ++s) (places_[s].block == kNothing ? m.host_pool_free : m.host_pool_in_use) += 1;
  m.nan_count = before.nan_count;  // as of the beginning; last_step() takes the difference
  m.inf_count = before.inf_count;
  m.slot_wait_ms = totals_.slot_wait_ms - before.slot_wait_ms;
  m.disk_read_bytes = totals_.disk_read_bytes - before.disk_read_bytes;
  m.disk_read_ms = totals_.disk_read_ms - before.disk_read_ms;
  m.pinned_bytes = static_cast<std::int64_t>(stats_.host_bytes);
  m.vram_peak_bytes = static_cast<std::int64_t>(stats_.peak_device_bytes);
  m.launches = totals_.launches - before.launches;
  last_step_ = m;
  last_trace_ = std::move(pass_->trace);
  last_step_pending_ = true;
}

sq_stream_stats StreamSession::stats() {
  const std::lock_guard lock(mutex_);
  check_open();
  sq_stream_stats s = stats_;
  s.size = sizeof s;
  return s;
}

sq_step_metrics StreamSession::last_step() {
  const CurrentDevice current(context_);
  const std::lock_guard lock(mutex_);
  check_open();
  if (!last_step_) refuse_state("no pass of stream session " + std::to_string(id_) + " has ended yet");
  sq_step_metrics& m = *last_step_;
  if (!last_step_pending_) return m;
  for (const Copy& copy : last_trace_.copies) {
    synchronize(copy.ended);
    m.copy_time_ms += milliseconds_between(copy.begun, copy.ended);
    m.slot_wait_ms += milliseconds_between(copy.asked, copy.begun);
  }
  for (const Wait& wait : last_trace_.waits) {
    synchronize(wait.asked);
    synchronize(wait.loaded);
    const double waited = milliseconds_between(wait.asked, wait.loaded);
    m.stall_time_ms += waited;
    m.stall_count += waited > kStallMs ? 1 : 0;
  }
  if (last_trace_.first_acquire && last_trace_.last_release) {
    synchronize(last_trace_.last_release);
    m.wall_ms = std::max(m.wall_ms, milliseconds_between(last_trace_.first_acquire, last_trace_.last_release));
  }
  m.compute_time_ms = std::max(0.0, m.wall_ms - m.stall_time_ms);
  m.nan_count = context_.nonfinite.nan() - m.nan_count;
  m.inf_count = context_.nonfinite.inf() - m.inf_count;
  last_trace_ = {};
  last_step_pending_ = false;
  return m;
}

}  // namespace squareq::cuda
