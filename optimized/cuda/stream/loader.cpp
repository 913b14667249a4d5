// The loader's half of a session: what to load next, reading it into page-locked memory, queueing its copy.
#include <algorithm>
#include <cstring>
#include <string>

#include "optimized/cuda/context.hpp"
#include "optimized/cuda/stream/session.hpp"
#include "optimized/cuda/transfer/faults.hpp"
#include "squareq/tensor.hpp"
#include "squareq/text.hpp"

namespace squareq::cuda {
namespace {

constexpr std::uint64_t kReadPiece = std::uint64_t{8} << 20;     // large enough for full disk rate, small enough to cancel between
constexpr std::uint64_t kWindowBytes = std::uint64_t{64} << 20;  // at most; a block that fits crosses the bus in one copy
constexpr std::size_t kWindows = 2;                              // one is read into while the other is copied from

double milliseconds(StreamSession::Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

}  // namespace

void StreamSession::allocate(const sq_stream_open_args& args) {
  std::uint64_t device = 0;
  bool overflow = __builtin_mul_overflow(args.slot_bytes, static_cast<std::uint64_t>(args.slot_count), &device);
  for (const BlockCopy& b : blocks_)
    if (b.resident) overflow |= __builtin_add_overflow(device, b.bytes, &device);
  if (overflow) throw Error(Code::CALL_VALUE, "slots and blocks add up to more bytes than 64 bits hold");
  if (args.budget_bytes != 0 && device > args.budget_bytes)
    throw Error(Code::GPU_OOM, "slots and residents need " + std::to_string(device) + " bytes, the budget is " + std::to_string(args.budget_bytes));
  if (device > 0) arena_ = Memory(context_, SQ_MEM_DEVICE, device, copy_stream_.get(), "cuda.stream.arena");
  allocate_host(args.keep_host_master != 0);
  std::byte* next = arena_.data();
  for (std::uint32_t s = 0; s < slot_count_; ++s, next += args.slot_bytes) {
    places_.emplace_back().data = next;
    places_.back().bytes = args.slot_bytes;
  }
  for (std::uint32_t b = 0; b < blocks_.size(); ++b) {
    if (!blocks_[b].resident) continue;
    const auto place = static_cast<std::uint32_t>(places_.size());
    places_.emplace_back().data = next;
    places_.back().bytes = blocks_[b].bytes;
    resident_place_[b] = place;
    views_.try_emplace({b, place}, blocks_[b], next);
    next += blocks_[b].bytes;
  }
  for (const ScheduleCopy& s : schedules_)
    for (const sq_visit v : s.visits) {
      const std::uint32_t bound = fault("slot_off_by_one") ? (v.slot + 1) % slot_count_ : v.slot;
      views_.try_emplace({v.block, v.slot}, blocks_[v.block], places_[bound].data);
    }
  stats_.device_bytes = stats_.peak_device_bytes = device;
}

/// The master of all streamed blocks, and windows for the blocks that have none: all of them, or the residents while the session opens.
void StreamSession::allocate_host(bool master) {
  std::uint64_t streamed = 0, largest = 0;
  for (const BlockCopy& b : blocks_) {
    if (!b.resident && __builtin_add_overflow(streamed, b.bytes, &streamed))
      throw Error(Code::CALL_VALUE, "blocks add up to more bytes than 64 bits hold");
    if (b.resident || !master) largest = std::max(largest, b.bytes);
  }
  if (master && streamed > 0) {
    master_ = Memory(context_, SQ_MEM_HOST_PINNED, streamed, copy_stream_.get(), "cuda.stream.master");
    master_offset_.resize(blocks_.size());
    master_valid_.assign(blocks_.size(), false);
    std::uint64_t offset = 0;
    for (std::size_t b = 0; b < blocks_.size(); ++b)
      if (!blocks_[b].resident) {
        master_offset_[b] = offset;
        offset += blocks_[b].bytes;
      }
  }
  window_bytes_ = std::min(largest, kWindowBytes);
  if (window_bytes_ > 0) {
    staging_ = Memory(context_, SQ_MEM_HOST_PINNED, kWindows * window_bytes_, copy_stream_.get(), "cuda.stream.windows");
    for (std::size_t w = 0; w < kWindows; ++w) windows_.push_back({staging_.data() + w * window_bytes_, {}});
  }
  stats_.host_bytes = master_.bytes() + staging_.bytes();
}

void StreamSession::load_residents() {
  std::unique_lock lock(mutex_);
  for (const auto& [block, place] : resident_place_) {
    request_ = Load{block, place};
    loader_wake_.notify_one();
    changed_.wait(lock, [this] { return !request_; });
    if (request_failed_) throw Error(*request_failed_);
  }
  if (resident_place_.empty()) return;
  // Residents are leased on any stream without a wait, so their copies end here; with a master nothing else needs the windows.
  check_cuda(cudaStreamSynchronize(copy_stream_.get()), "loading the residents");
  for (const auto& [block, place] : resident_place_) settle(block);
  if (master_.data() == nullptr && slot_count_ > 0) return;
  windows_.clear();
  staging_.reset();
  stats_.host_bytes = master_.bytes();
}

void StreamSession::run_loader() {
  static_cast<void>(cudaSetDevice(context_.host.device.index));  // where this fails the first copy says so
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
  const bool resident = blocks_[load.block].resident;
  for (std::uint32_t s = 0; s < slot_count_; ++s)
    if (places_[s].block == load.block || s == load.place) evict(s);
  loading_ = load;
  place.block = load.block;
  place.ready = false;
  const bool poison = poison_ && place.used;
  place.used = true;
  if (state_[load.block] == SQ_UNLOADED) transition(load.block, SQ_HOST_STAGED);
  const std::vector<Event> freed = place.freed;
  Copy copy;
  std::optional<Problem> problem;
  double read_ms = 0;
  lock.unlock();
  try {
    transfer(load, freed, poison, copy, read_ms);
  } catch (const Error& e) {
    problem = e.problem();
  } catch (const std::exception& e) {
    problem = Problem{Code::INTERNAL, std::string("cuda: ") + e.what(), {}, {}, {}};
  }
  lock.lock();
  loading_.reset();
  totals_.disk_read_ms += read_ms;
  if (problem || (cancel_ && !resident)) {
    // What is queued into the slot stays in the order of the copy stream, and so does the next load of the slot: it must not overtake
    // the readers that this load waited for, so they stay recorded.
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
  place.loaded = copy.ended;
  place.freed.clear();
  if (resident) return;
  if (pass_) pass_->trace.copies.push_back(copy);
  totals_.h2d_bytes += static_cast<std::int64_t>(blocks_[load.block].bytes);
  stats_.loads += 1;
  stats_.loaded_bytes += blocks_[load.block].bytes;
}

/// Without the mutex: brings the block's bytes into page-locked memory and queues their copy into the place.
void StreamSession::transfer(const Load& load, const std::vector<Event>& freed, bool poison, Copy& copy, double& read_ms) {
  const BlockCopy& block = blocks_[load.block];
  std::byte* place = places_[load.place].data;
  const auto timed_read = [&](std::uint64_t offset, std::byte* destination, std::uint64_t bytes) {
    const Clock::time_point begin = Clock::now();
    read_source(load.block, offset, destination, bytes);
    read_ms += milliseconds(Clock::now() - begin);
    look_for_zero_points(load.block, offset, destination, bytes);
  };
  const auto send = [&](std::uint64_t offset, const std::byte* from, std::uint64_t bytes) {
    check_cuda(cudaMemcpyAsync(place + offset, from, bytes, cudaMemcpyHostToDevice, copy_stream_.get()), "copying block " + printable(block.name));
  };
  const auto prefetching = [&] {
    const std::lock_guard relock(mutex_);
    transition(load.block, SQ_PREFETCHING);
  };
  if (!block.resident && master_.data() != nullptr) {
    std::byte* master = master_.data() + master_offset_[load.block];
    if (!master_valid_[load.block]) {
      timed_read(0, master, block.bytes);
      master_valid_[load.block] = true;  // the loader alone reads and writes this
    }
    prefetching();
    begin_copy(load, freed, poison, copy);
    send(0, master, block.bytes);
  } else {
    prefetching();
    for (std::uint64_t offset = 0; offset < block.bytes; offset += window_bytes_) {
      Window& window = windows_[next_window_++ % windows_.size()];
      if (window.drained) synchronize(window.drained);
      const std::uint64_t piece = std::min(window_bytes_, block.bytes - offset);
      timed_read(offset, window.data, piece);
      if (offset == 0) begin_copy(load, freed, poison, copy);  // the slot is waited for as late as possible
      send(offset, window.data, piece);
      window.drained = events_->record(copy_stream_.get());
    }
  }
  copy.ended = events_->record(copy_stream_.get());
}

/// The copy stream waits for everybody who reads the slot.
void StreamSession::begin_copy(const Load& load, const std::vector<Event>& freed, bool poison, Copy& copy) {
  copy.asked = events_->record(copy_stream_.get());
  if (!fault("no_free_wait"))
    for (const Event& reader : freed) wait_for(copy_stream_.get(), reader);
  const Place& place = places_[load.place];
  if (poison && !fault("no_poison")) check_cuda(cudaMemsetAsync(place.data, 0xA5, place.bytes, copy_stream_.get()), "poisoning a slot");
  delay_copy(copy_stream_.get());
  copy.begun = events_->record(copy_stream_.get());
}

void StreamSession::read_source(std::uint32_t block, std::uint64_t offset, std::byte* destination, std::uint64_t bytes) {
  for (std::uint64_t done = 0; done < bytes; done += kReadPiece) {
    if (cancel_) throw Error(Code::IO_INTERRUPTED, "load of block " + printable(blocks_[block].name) + " was cancelled");
    const std::uint64_t piece = std::min(kReadPiece, bytes - done);
    sq_error error{};
    error.size = sizeof error;
    const sq_status status = read_(read_user_, block, offset + done, destination + done, piece, &error);
    if (status != SQ_OK) {
      std::string text = error.message[0] != '\0' ? error.message : std::string(code_meaning(static_cast<Code>(status)));
      throw Error(static_cast<Code>(status), "block " + printable(blocks_[block].name) + ": " + text, error.file, error.layer, error.tensor);
    }
    const std::lock_guard lock(mutex_);
    totals_.disk_read_bytes += static_cast<std::int64_t>(piece);
  }
}

/// The format allows no zero_point but 0. The bytes pass through here once, so that no operation has to ask the device.
void StreamSession::look_for_zero_points(std::uint32_t block, std::uint64_t offset, const std::byte* bytes, std::uint64_t count) {
  for (std::uint32_t l = 0; l < blocks_[block].layers.size(); ++l)
    for (const PartCopy& part : blocks_[block].layers[l].parts) {
      if (part.name != "zero_point" || part.tensor.dtype != SQ_F32 || part.tensor.rank != 1) continue;  // refused where it is used
      const std::uint64_t first = std::max(part.offset, offset);
      const std::uint64_t last = std::min(part.offset + static_cast<std::uint64_t>(part.tensor.shape[0]) * sizeof(float), offset + count);
      for (std::uint64_t at = first; at < last; at += sizeof(float)) {
        float value;
        std::memcpy(&value, bytes + (at - offset), sizeof value);
        if (value == 0.0f) continue;
        const std::lock_guard lock(mutex_);
        bad_zero_points_.try_emplace({block, l}, BadZeroPoint{static_cast<std::int64_t>((at - part.offset) / sizeof(float)), value});
        break;
      }
    }
}

void StreamSession::evict(std::uint32_t index) {
  Place& place = places_[index];
  if (place.block == kNothing || !place.ready) return;
  settle(place.block);
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

}  // namespace squareq::cuda
