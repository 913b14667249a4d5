// The loader's half of a session: what to load next, and loading it.
#include <algorithm>
#include <cstring>
#include <string>
#include <system_error>

#include "optimized/cpu/context.hpp"
#include "optimized/cpu/stream/session.hpp"
#include "squareq/text.hpp"

namespace squareq::cpu {
namespace {

constexpr std::uint64_t kReadPiece = std::uint64_t{8} << 20;  // large enough for full disk rate, small enough to cancel between

double milliseconds(StreamSession::Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

}  // namespace

void StreamSession::allocate(const sq_stream_open_args& args) {
  std::uint64_t device = 0, host = 0;
  bool overflow = __builtin_mul_overflow(args.slot_bytes, static_cast<std::uint64_t>(args.slot_count), &device);
  for (const BlockCopy& b : blocks_) {
    if (b.resident) overflow |= __builtin_add_overflow(device, b.bytes, &device);
    if (!b.resident) overflow |= __builtin_add_overflow(host, b.bytes, &host);
  }
  if (overflow) throw Error(Code::CALL_VALUE, "slots and blocks add up to more bytes than 64 bits hold");
  if (args.budget_bytes != 0 && device > args.budget_bytes)
    throw Error(Code::GPU_OOM, "slots and residents need " + std::to_string(device) + " bytes, the budget is " + std::to_string(args.budget_bytes));
  if (device > 0) arena_ = Block(context_.allocator, SQ_MEM_DEVICE, device, "cpu.stream.arena", SQ_GPU_OOM);
  if (args.keep_host_master != 0 && host > 0) {
    master_ = Block(context_.allocator, SQ_MEM_HOST, host, "cpu.stream.master", SQ_HOST_OOM);
    master_offset_.resize(blocks_.size());
    master_valid_.assign(blocks_.size(), false);
    std::uint64_t offset = 0;
    for (std::size_t b = 0; b < blocks_.size(); ++b)
      if (!blocks_[b].resident) {
        master_offset_[b] = offset;
        offset += blocks_[b].bytes;
      }
  }
  std::byte* next = arena_.data();
  for (std::uint32_t s = 0; s < slot_count_; ++s, next += args.slot_bytes) places_.emplace_back().data = next;
  for (std::uint32_t b = 0; b < blocks_.size(); ++b) {
    if (!blocks_[b].resident) continue;
    const auto place = static_cast<std::uint32_t>(places_.size());
    places_.emplace_back().data = next;
    resident_place_[b] = place;
    views_.try_emplace({b, place}, blocks_[b], next);
    next += blocks_[b].bytes;
  }
  for (const ScheduleCopy& s : schedules_)
    for (const sq_visit v : s.visits) views_.try_emplace({v.block, v.slot}, blocks_[v.block], places_[v.slot].data);
  stats_.device_bytes = stats_.peak_device_bytes = device;
  stats_.host_bytes = master_.bytes();
}

void StreamSession::load_residents() {
  for (const auto& [block, place] : resident_place_) {
    std::unique_lock lock(mutex_);
    request_ = Load{block, place};
    loader_wake_.notify_one();
    changed_.wait(lock, [this] { return !request_; });
    if (request_failed_) throw Error(*request_failed_);
  }
}

void StreamSession::run_loader() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    bool waits_for_slot = false;
    const std::optional<Load> load = request_ ? request_ : next_load(waits_for_slot);
    if (load) {
      perform(lock, *load);
      request_.reset();
      changed_.notify_all();
      continue;
    }
    const Clock::time_point begin = Clock::now();
    loader_wake_.wait(lock);
    if (waits_for_slot) totals_.slot_wait_ms += milliseconds(Clock::now() - begin);
  }
}

/// Of each slot only its first visit from the cursor on can be loaded for: a later one has an unreleased visit before it
/// (SQ-STR-025). Loads go in visit order.
std::optional<StreamSession::Load> StreamSession::next_load(bool& waits_for_slot) const {
  if (!pass_ || cancel_) return {};
  const std::vector<sq_visit>& visits = pass_->schedule->visits;
  std::vector<bool> seen(slot_count_, false);
  std::uint32_t unseen = slot_count_;
  for (std::uint32_t j = pass_->cursor; j < visits.size() && unseen > 0 && j - pass_->cursor <= pass_->schedule->lookahead; ++j) {
    const sq_visit v = visits[j];
    if (seen[v.slot]) continue;
    seen[v.slot] = true;
    --unseen;
    const Place& place = places_[v.slot];
    if ((place.block == v.block && place.ready) || pass_->failed.contains(j)) continue;
    if (place.pins > 0 || !block_free_to_move(v.block, j)) {
      waits_for_slot = true;
      continue;
    }
    return Load{v.block, v.slot};
  }
  return {};
}

/// A block is in one place at a time: where another slot holds it, that copy must not be leased or wanted earlier.
bool StreamSession::block_free_to_move(std::uint32_t block, std::uint32_t visit) const {
  const sq_visit target = pass_->schedule->visits[visit];
  for (std::uint32_t s = 0; s < slot_count_; ++s) {
    if (s == target.slot || places_[s].block != block) continue;
    if (places_[s].pins > 0) return false;
    for (std::uint32_t j = pass_->cursor; j < visit; ++j)
      if (pass_->schedule->visits[j].block == block) return false;
  }
  return true;
}

void StreamSession::perform(std::unique_lock<std::mutex>& lock, const Load& load) {
  Place& place = places_[load.place];
  const std::uint64_t bytes = blocks_[load.block].bytes;
  const bool resident = blocks_[load.block].resident;
  for (std::uint32_t s = 0; s < slot_count_; ++s)
    if (places_[s].block == load.block || s == load.place) evict(s);
  loading_ = load;
  place.block = load.block;
  place.ready = false;
  const bool poison = poison_ && place.used;
  place.used = true;
  if (state_[load.block] == SQ_UNLOADED) transition(load.block, SQ_HOST_STAGED);
  std::byte* master = !resident && master_.data() != nullptr ? master_.data() + master_offset_[load.block] : nullptr;
  const bool staged = master != nullptr && master_valid_[load.block];
  if (master == nullptr || staged) transition(load.block, SQ_PREFETCHING);
  std::optional<Problem> problem;
  double read_ms = 0, copy_ms = 0;
  lock.unlock();
  try {
    if (poison) std::memset(place.data, 0xA5, bytes);
    const Clock::time_point begin = Clock::now();
    if (!staged) {
      read_source(load.block, master != nullptr ? master : place.data);
      read_ms = milliseconds(Clock::now() - begin);
    }
    if (master != nullptr && !staged) {
      const std::lock_guard relock(mutex_);
      master_valid_[load.block] = true;
      transition(load.block, SQ_PREFETCHING);
    }
    if (master != nullptr) std::memcpy(place.data, master, bytes);
    copy_ms = milliseconds(Clock::now() - begin) - (master != nullptr ? read_ms : 0);
  } catch (const Error& e) {
    problem = e.problem();
  }
  lock.lock();
  loading_.reset();
  totals_.disk_read_ms += read_ms;
  totals_.copy_time_ms += copy_ms;
  if (problem || (cancel_ && !resident)) {
    place.block = kNothing;
    transition(load.block, SQ_UNLOADED);
    if (resident) request_failed_ = problem;
    if (problem && pass_ && !resident && !cancel_) {
      const std::vector<sq_visit>& visits = pass_->schedule->visits;
      for (std::uint32_t j = pass_->cursor; j < visits.size(); ++j)
        if (visits[j].slot == load.place) {
          pass_->failed.emplace(j, *problem);
          break;
        }
    }
    return;
  }
  place.ready = true;
  transition(load.block, SQ_GPU_READY);
  if (resident) return;
  totals_.h2d_bytes += static_cast<std::int64_t>(bytes);
  stats_.loads += 1;
  stats_.loaded_bytes += bytes;
}

void StreamSession::read_source(std::uint32_t block, std::byte* destination) {
  const std::uint64_t bytes = blocks_[block].bytes;
  for (std::uint64_t offset = 0; offset < bytes; offset += kReadPiece) {
    if (cancel_) throw Error(Code::IO_INTERRUPTED, "load of block " + printable(blocks_[block].name) + " was cancelled");
    const std::uint64_t piece = std::min(kReadPiece, bytes - offset);
    sq_error error{};
    error.size = sizeof error;
    const sq_status status = read_(read_user_, block, offset, destination + offset, piece, &error);
    if (status != SQ_OK) {
      std::string text = error.message[0] != '\0' ? error.message : std::string(code_meaning(static_cast<Code>(status)));
      throw Error(static_cast<Code>(status), "block " + printable(blocks_[block].name) + ": " + text, error.file, error.layer, error.tensor);
    }
    const std::lock_guard lock(mutex_);
    totals_.disk_read_bytes += static_cast<std::int64_t>(piece);
  }
}

void StreamSession::evict(std::uint32_t index) {
  Place& place = places_[index];
  if (place.block == kNothing || !place.ready) return;
  transition(place.block, SQ_EVICTING);
  transition(place.block, SQ_UNLOADED);  // also with a host master: a block that just leaves makes no failure transition (SQ-STR-011)
  place.block = kNothing;
  place.ready = false;
  ++stats_.evictions;
}

void StreamSession::transition(std::uint32_t block, std::int32_t to) {
  const std::int32_t from = state_[block];
  state_[block] = to;
  if (context_.host.on_transition != nullptr) context_.host.on_transition(context_.host.user, id_, block, from, to);
}

}  // namespace squareq::cpu
