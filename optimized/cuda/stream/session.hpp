// One stream session: a ring of slots and the residents in one block of device memory, a loader thread that reads extents into page-locked
// memory and queues one copy per block on a stream of its own, and leases. spec/60-streaming.md.
//
// The host never waits for a copy: acquire makes the caller's stream wait for the slot's ready event, release records the slot's free
// event, and the next load of the slot makes the copy stream wait for that. Every member function may be called from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "optimized/cuda/memory/memory.hpp"
#include "optimized/cuda/stream/blocks.hpp"
#include "optimized/cuda/transfer/event.hpp"
#include "squareq/contract.h"
#include "squareq/error.hpp"

struct sq_context;

namespace squareq::cuda {

class StreamSession : public std::enable_shared_from_this<StreamSession> {
 public:
  using Clock = std::chrono::steady_clock;

  /// Checks everything, then allocates, starts the loader and loads the residents. Throws CALL_*, GPU_OOM, HOST_OOM or what the
  /// read callback reported; nothing is held then.
  StreamSession(const sq_context& context, std::uint64_t id, const sq_stream_open_args& args);
  ~StreamSession();
  StreamSession(const StreamSession&) = delete;
  StreamSession& operator=(const StreamSession&) = delete;

  void begin_step(std::uint32_t schedule);
  /// Waits until the block's copy is queued; work queued on `stream` afterwards waits for the copy itself.
  sq_lease acquire(std::uint32_t block, cudaStream_t stream);
  /// The slot is free once `stream` has passed what is queued on it now.
  void release(sq_lease lease, cudaStream_t stream);
  /// Abandoned with leases held: waits for the device, because nothing says on which streams they are still read.
  void end_step(bool abandoned);
  /// Cancels what is under way, ends every lease, waits for the device, reports every block as unloaded and gives all memory back.
  /// Later calls throw CALL_STATE.
  void close();

  sq_stream_stats stats();
  /// Waits until the device has passed the pass.
  sq_step_metrics last_step();
  sq_weight lease_weight(sq_lease lease, std::uint32_t layer);

  /// A zero_point of a layer that is not 0 (the format allows none), found while the block was read.
  struct BadZeroPoint {
    std::int64_t row = 0;
    float value = 0;
  };
  /// Keeps a leased place from being reused while an operation queues work on it.
  class Hold {
   public:
    Hold(std::shared_ptr<StreamSession> session, sq_lease lease, std::uint32_t place, const BlockView* view, cudaStream_t stream)
        : session_(std::move(session)), lease_(lease), place_(place), view_(view), stream_(stream) {}
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    const sq_weight& layer(std::uint32_t index) const { return view_->layer(index); }

   private:
    std::shared_ptr<StreamSession> session_;
    sq_lease lease_;
    std::uint32_t place_;
    const BlockView* view_;
    cudaStream_t stream_;
  };
  /// For an operation that reads layer `layer` of the lease in work on `stream`. Throws CALL_STATE, CALL_VALUE, DT_ZP_NONZERO.
  std::shared_ptr<Hold> hold(sq_lease lease, std::uint32_t layer, cudaStream_t stream);

 private:
  static constexpr std::uint32_t kNothing = 0xFFFFFFFFu;

  /// A slot, or (after the slots) the memory of a resident.
  struct Place {
    std::byte* data = nullptr;
    std::uint64_t bytes = 0;
    std::uint32_t block = kNothing;  // the version tag: what the bytes are
    bool ready = false;              // the tagged block's copy is queued; `loaded` says when it is there
    bool used = false;               // held a block before (for poisoning)
    std::uint32_t leases = 0;
    std::uint32_t pins = 0;          // leases, and operations that read the place
    Event loaded;                    // the copy's end
    std::vector<Event> freed;        // recorded by releases since the last load: the next one waits for all
  };
  struct LeaseRecord {
    std::uint32_t block = 0;
    std::uint32_t place = 0;
    std::uint64_t pass = 0;  // 0: taken outside a pass
    const BlockView* view = nullptr;
  };
  struct Load {
    std::uint32_t block = 0;
    std::uint32_t place = 0;
  };
  struct Copy {
    Event asked;  // the copy stream reached the load
    Event begun;  // its slot was free
    Event ended;
  };
  struct Wait {
    Event asked;   // the compute stream reached the acquire
    Event loaded;  // the copy's end
  };
  /// What the device did during a pass, read when it is asked for.
  struct Trace {
    std::vector<Copy> copies;
    std::vector<Wait> waits;
    Event first_acquire, last_release;
  };
  /// A running pass.
  struct Pass {
    const ScheduleCopy* schedule = nullptr;
    std::uint32_t cursor = 0;  // visits acquired
    std::map<std::uint32_t, Problem> failed;  // visit -> why its load failed; not tried again before it is acquired again
    std::set<std::uint32_t> told;             // of these, those that an acquire has answered with
    Clock::time_point begun;
    sq_stream_stats at_begin{};
    sq_step_metrics metrics{};
    Trace trace;
  };
  /// A page-locked piece through which extents pass that have no master.
  struct Window {
    std::byte* data = nullptr;
    Event drained;  // its last copy; null: never used
  };

  // session.cpp
  void check_open() const;
  const LeaseRecord& find_lease(sq_lease lease) const;
  sq_lease lend(std::uint32_t block, std::uint32_t place);
  void unpin(std::uint32_t place, sq_lease lease, cudaStream_t stream);
  void drop_lease(const LeaseRecord& record);
  void wait_for_visit(std::unique_lock<std::mutex>& lock, std::uint32_t visit, cudaStream_t stream);
  void let_stream_wait(const Place& place, cudaStream_t stream);
  void settle(std::uint32_t block);
  void finish_metrics();

  // loader.cpp: all with the mutex held but for transfer() and what it calls
  void allocate(const sq_stream_open_args& args);
  void allocate_host(bool master);
  void load_residents();
  void run_loader();
  std::optional<Load> next_load(bool& waits_for_slot) const;
  bool block_free_to_move(std::uint32_t block, std::uint32_t visit) const;
  void perform(std::unique_lock<std::mutex>& lock, const Load& load);
  void transfer(const Load& load, const std::vector<Event>& freed, bool poison, Copy& copy, double& read_ms);
  void begin_copy(const Load& load, const std::vector<Event>& freed, bool poison, Copy& copy);
  void read_source(std::uint32_t block, std::uint64_t offset, std::byte* destination, std::uint64_t bytes);
  void look_for_zero_points(std::uint32_t block, std::uint64_t offset, const std::byte* bytes, std::uint64_t count);
  void evict(std::uint32_t place);
  void transition(std::uint32_t block, std::int32_t to);

  const sq_context& context_;
  const std::uint64_t id_;
  const std::vector<BlockCopy> blocks_;
  const std::vector<ScheduleCopy> schedules_;
  const std::uint32_t slot_count_;
  const sq_read_extent read_;
  void* const read_user_;
  const bool poison_;

  std::shared_ptr<EventPool> events_ = std::make_shared<EventPool>();
  OwnStream copy_stream_;
  Memory arena_;   // slots, then residents
  Memory master_;  // every streamed extent, page-locked; only with keep_host_master
  Memory staging_;
  std::vector<Window> windows_;  // in staging_
  std::uint64_t window_bytes_ = 0;
  std::size_t next_window_ = 0;
  std::vector<std::uint64_t> master_offset_;  // per block
  std::vector<bool> master_valid_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, BlockView> views_;  // (block, place)
  std::map<std::uint32_t, std::uint32_t> resident_place_;

  std::mutex mutex_;
  std::condition_variable loader_wake_;
  std::condition_variable changed_;  // a load ended, a pin was dropped, the pass ended
  std::thread loader_;
  std::atomic<bool> cancel_{false};
  bool stop_ = false;
  bool closed_ = false;
  std::optional<Load> request_;   // a resident to load at open
  std::optional<Problem> request_failed_;
  std::optional<Load> loading_;
  std::vector<Place> places_;
  std::vector<std::int32_t> state_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, BadZeroPoint> bad_zero_points_;  // (block, layer)
  std::map<sq_lease, LeaseRecord> leases_;
  sq_lease next_lease_ = 1;
  std::uint64_t pass_number_ = 0;
  std::optional<Pass> pass_;
  std::optional<sq_step_metrics> last_step_;
  Trace last_trace_;  // of last_step_, until it is read
  bool last_step_pending_ = false;  // the device's share is not in last_step_ yet
  sq_stream_stats stats_{};
  sq_step_metrics totals_{};  // counters over the session's life; a pass reports differences
};

extern const sq_stream_group stream_group;
extern const sq_telemetry_group telemetry_group;

}  // namespace squareq::cuda
