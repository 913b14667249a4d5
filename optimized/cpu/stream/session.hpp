// One stream session: a ring of slots and the residents in one arena, a loader thread that fills slots ahead of the compute loop,
// and leases. spec/60-streaming.md; every member function may be called from any thread.
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

#include "optimized/cpu/memory.hpp"
#include "optimized/cpu/stream/blocks.hpp"
#include "squareq/contract.h"
#include "squareq/error.hpp"

namespace squareq::cpu {

struct Context;

class StreamSession : public std::enable_shared_from_this<StreamSession> {
 public:
  using Clock = std::chrono::steady_clock;

  /// Checks everything, then allocates, starts the loader and loads the residents. Throws CALL_*, GPU_OOM, HOST_OOM or what the
  /// read callback reported.
  StreamSession(Context& context, std::uint64_t id, const sq_stream_open_args& args);
  ~StreamSession();
  StreamSession(const StreamSession&) = delete;
  StreamSession& operator=(const StreamSession&) = delete;

  void begin_step(std::uint32_t schedule);
  sq_lease acquire(std::uint32_t block);
  void release(sq_lease lease);
  void end_step(bool abandoned);
  /// Cancels what is under way, ends every lease and reports every block as unloaded. Later calls throw CALL_STATE.
  void close();

  sq_stream_stats stats();
  sq_step_metrics last_step();
  sq_weight lease_weight(sq_lease lease, std::uint32_t layer);

  /// Keeps a leased place from being reused while an operation reads it.
  class Hold {
   public:
    Hold(std::shared_ptr<StreamSession> session, std::uint32_t place, const BlockView* view)
        : session_(std::move(session)), place_(place), view_(view) {}
    ~Hold() { session_->unpin(place_); }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    const sq_weight& layer(std::uint32_t index) const { return view_->layer(index); }

   private:
    std::shared_ptr<StreamSession> session_;
    std::uint32_t place_;
    const BlockView* view_;
  };
  std::shared_ptr<Hold> hold(sq_lease lease);

 private:
  static constexpr std::uint32_t kNothing = 0xFFFFFFFFu;

  /// A slot, or (after the slots) the memory of a resident.
  struct Place {
    std::byte* data = nullptr;
    std::uint32_t block = kNothing;  // the version tag: what the bytes are
    bool ready = false;              // false while the tagged block is being loaded
    bool used = false;               // held a block before (for poisoning)
    std::uint32_t leases = 0;
    std::uint32_t pins = 0;          // leases, and operations that read the place
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
  /// A running pass.
  struct Pass {
    const ScheduleCopy* schedule = nullptr;
    std::uint32_t cursor = 0;  // visits acquired
    std::map<std::uint32_t, Problem> failed;  // visit -> why its load failed; not tried again before it is acquired again
    std::set<std::uint32_t> told;             // of these, those that an acquire has answered with
    Clock::time_point begun;
    sq_stream_stats at_begin{};
    sq_step_metrics metrics{};
  };

  // session.cpp
  void check_open() const;
  const LeaseRecord& find_lease(sq_lease lease) const;
  sq_lease lend(std::uint32_t block, std::uint32_t place);
  void unpin(std::uint32_t place);
  void drop_lease(const LeaseRecord& record);
  void wait_for_visit(std::unique_lock<std::mutex>& lock, std::uint32_t visit);
  void finish_metrics();

  // loader.cpp: all with the mutex held but for transfer()
  void allocate(const sq_stream_open_args& args);
  void load_residents();
  void run_loader();
  std::optional<Load> next_load(bool& waits_for_slot) const;
  bool block_free_to_move(std::uint32_t block, std::uint32_t visit) const;
  void perform(std::unique_lock<std::mutex>& lock, const Load& load);
  void read_source(std::uint32_t block, std::byte* destination);
  void evict(std::uint32_t place);
  void transition(std::uint32_t block, std::int32_t to);

  Context& context_;
  const std::uint64_t id_;
  const std::vector<BlockCopy> blocks_;
  const std::vector<ScheduleCopy> schedules_;
  const std::uint32_t slot_count_;
  const sq_read_extent read_;
  void* const read_user_;
  const bool poison_;

  Block arena_;
  Block master_;
  std::vector<std::uint64_t> master_offset_;  // per block; only with a host master
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
  std::map<sq_lease, LeaseRecord> leases_;
  sq_lease next_lease_ = 1;
  std::uint64_t pass_number_ = 0;
  std::optional<Pass> pass_;
  std::optional<sq_step_metrics> last_step_;
  sq_stream_stats stats_{};
  sq_step_metrics totals_{};  // counters over the session's life; a pass reports differences
};

}  // namespace squareq::cpu
