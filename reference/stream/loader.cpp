// The loader thread: takes the visits of the pass in order and makes each one complete in its slot.
#include <cstring>

#include "reference/stream/session.hpp"

namespace squareq::reference {

/// The next visit to prepare is within the schedule's lookahead, and its last attempt has not failed.
bool Session::window_open() const {
  return pass_ && !pass_->failure && pass_->prepared < pass_->visits().size() && pass_->prepared - pass_->cursor <= pass_->schedule->lookahead;
}

/// The slot that a visit must wait for: its own, while earlier visits use other bytes there; or another one in which the same block
/// is still in use. Null when the visit can go ahead.
const Slot* Session::blocking_slot(const sq_visit& visit) const {
  const Slot& own = memory_.slots[visit.slot];
  if (own.block == visit.block) return nullptr;
  if (own.users) return &own;
  for (const Slot& slot : memory_.slots)
    if (slot.block == visit.block && slot.users) return &slot;
  return nullptr;
}

void Session::run() {
  std::unique_lock lock(mutex_);
  constexpr Clock::time_point not_blocked{};
  Clock::time_point blocked_since = not_blocked;
  while (!stopping_) {
    const bool open = window_open();
    if (open && !blocking_slot(pass_->visits()[pass_->prepared])) {
      if (blocked_since != not_blocked) counters_.slot_wait += Clock::now() - blocked_since;
      blocked_since = not_blocked;
      prepare(lock);
      continue;
    }
    if (!open) blocked_since = not_blocked;
    else if (blocked_since == not_blocked) blocked_since = Clock::now();
    changed_.wait(lock);
  }
}

/// Prepares the next visit without a load, where the version tag of its slot already names the block.
bool Session::take_from_slot() {
  const sq_visit visit = pass_->visits()[pass_->prepared];
  Slot& slot = memory_.slots[visit.slot];
  if (slot.block != visit.block) return false;
  ++slot.users;
  ++pass_->prepared;
  changed_.notify_all();
  return true;
}

void Session::prepare(std::unique_lock<std::mutex>& lock) {
  if (take_from_slot()) return;
  const std::uint64_t pass = pass_->number;
  const sq_visit visit = pass_->visits()[pass_->prepared];
  Slot& slot = memory_.slots[visit.slot];

  std::vector<std::uint32_t> evicted;
  for (Slot& other : memory_.slots) {
    if (&other != &slot && other.block != visit.block) continue;
    if (other.block) evicted.push_back(*other.block);
    other.block.reset();
  }
  counters_.evictions += evicted.size();
  loading_ = true;
  lock.unlock();

  Counters spent;
  std::optional<Failure> failure;
  for (const std::uint32_t block : evicted) evict(block);
  if (plan_.poison_slots) std::memset(slot.memory.data(), 0xA5, slot.memory.bytes());
  try {
    load(visit.block, slot.memory.data(), spent);
  } catch (const Error& error) {
    failure = Failure{error.problem(), false};
  }

  lock.lock();
  loading_ = false;
  counters_.copy += spent.copy;
  counters_.read += spent.read;
  counters_.read_bytes += spent.read_bytes;
  const bool current = pass_ && pass_->number == pass;  // else the pass was abandoned meanwhile
  if (!failure) {
    slot.block = visit.block;
    ++counters_.loads;
    counters_.loaded_bytes += plan_.blocks[visit.block].extent_bytes;
    if (current) ++slot.users, ++pass_->prepared;
  } else if (current) {
    pass_->failure = failure;
  }
  changed_.notify_all();
}

void Session::load(std::uint32_t block, std::byte* destination, Counters& spent) {
  if (states_[block] == SQ_UNLOADED) transition(block, SQ_HOST_STAGED);
  transition(block, SQ_PREFETCHING);
  const auto start = Clock::now();
  try {
    spent.read_bytes = fetch(plan_, memory_.blocks[block], block, destination);
  } catch (...) {
    transition(block, SQ_UNLOADED);
    throw;
  }
  spent.copy = Clock::now() - start;
  if (spent.read_bytes) spent.read = spent.copy;
  transition(block, SQ_GPU_READY);
}

/// Frozen weights are never copied back: eviction only forgets.
void Session::evict(std::uint32_t block) {
  transition(block, SQ_EVICTING);
  transition(block, memory_.blocks[block].master_filled ? SQ_HOST_STAGED : SQ_UNLOADED);
}

void Session::transition(std::uint32_t block, sq_residency to) {
  const sq_residency from = std::exchange(states_[block], to);
  if (context_.host.on_transition) context_.host.on_transition(context_.host.user, id_, block, from, to);
}

void Session::unload_all() {
  for (std::uint32_t block = 0; block < states_.size(); ++block) {
    if (states_[block] == SQ_GPU_READY) transition(block, SQ_GPU_FREEING);
    if (states_[block] != SQ_UNLOADED) transition(block, SQ_UNLOADED);
  }
}

}  // namespace squareq::reference
