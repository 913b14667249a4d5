// A stream session on the host: the compute side acquires and releases blocks in schedule order, one loader thread fills slots
// ahead of it (SQ-STR). Policy is the caller's: which visit uses which slot is data.
#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "reference/context.hpp"
#include "reference/stream/memory.hpp"
#include "reference/stream/plan.hpp"
#include "reference/weight.hpp"

namespace squareq::reference {

class Session : public std::enable_shared_from_this<Session> {
 public:
  /// Allocates, loads the residents, starts the loader. Throws GPU_OOM, HOST_OOM, or what the read callback returned.
  Session(sq_context& context, std::uint64_t id, StreamPlan plan);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session();  // stops and joins the loader, frees everything

  void begin_step(std::uint32_t schedule);
  sq_lease acquire(std::uint32_t block);
  void release(sq_lease lease);
  void end_step(bool abandoned);
  sq_stream_stats stats() const;
  sq_step_metrics last_step() const;

  /// The layer as it lies in memory; its parts stay valid until the lease is released.
  sq_weight lease_weight(sq_lease lease, std::uint32_t layer) const;
  /// The same, checked, for an operation: while the result lives, the lease cannot be released.
  Weight leased_weight(sq_lease lease, std::uint32_t layer);

 private:
  using Clock = std::chrono::steady_clock;

  struct Lease {
    std::uint32_t block = 0;
    std::optional<std::uint32_t> slot;         // none: a resident
    std::vector<std::vector<sq_part>> layers;  // parts bound to their place in memory
    std::uint64_t pass = 0;                    // in which it was granted; 0: outside any (residents only)
    std::uint32_t operations = 0;              // running through this lease
  };

  struct Failure {
    Problem problem;
    bool reported = false;  // an acquire has thrown it; the next acquire tries again
  };

  struct Counters {
    std::uint64_t loads = 0, loaded_bytes = 0, read_bytes = 0, hits = 0, misses = 0, waits = 0, evictions = 0, launches = 0;
    std::int64_t nans = 0, infinite = 0;
    std::chrono::nanoseconds wait{}, copy{}, read{}, slot_wait{};
  };

  /// One run over a schedule. Visits before `cursor` were acquired, visits before `prepared` are complete in their slots.
  struct Pass {
    std::uint64_t number = 0;
    const SchedulePlan* schedule = nullptr;
    std::size_t cursor = 0;
    std::size_t prepared = 0;
    bool complete() const { return prepared > cursor; }
    std::optional<Failure> failure;
    Clock::time_point start;
    Counters before;

    const std::vector<sq_visit>& visits() const { return schedule->visits; }
  };

  // loader.cpp: run() is the loader thread; only it (or the constructor and destructor, without it) changes residency states.
  void run();
  bool window_open() const;
  const Slot* blocking_slot(const sq_visit& visit) const;
  bool take_from_slot();
  void prepare(std::unique_lock<std::mutex>& lock);
  void load(std::uint32_t block, std::byte* destination, Counters& spent);
  void evict(std::uint32_t block);
  void transition(std::uint32_t block, sq_residency to);
  void unload_all();

  sq_lease grant(std::uint32_t block, std::optional<std::uint32_t> slot, std::byte* extent);
  const Lease& held(sq_lease lease) const;
  const std::string& name(std::uint32_t block) const { return plan_.blocks[block].name; }
  void wait_for_visit(std::unique_lock<std::mutex>& lock, const sq_visit& visit);
  Counters counters() const;
  void record_metrics();

  sq_context& context_;
  const std::uint64_t id_;
  const StreamPlan plan_;
  StreamMemory memory_;
  std::vector<sq_residency> states_;

  mutable std::mutex mutex_;  // guards everything below, and the slots' tags and users
  std::condition_variable changed_;
  bool stopping_ = false;
  bool loading_ = false;
  std::uint64_t passes_begun_ = 0, steps_ = 0;
  std::optional<Pass> pass_;
  std::map<sq_lease, Lease> leases_;
  Counters counters_;
  std::optional<sq_step_metrics> metrics_;

  std::thread loader_;  // last: everything it uses exists before it starts
};

/// Throws CALL_STATE where the context has no such session.
std::shared_ptr<Session> find_session(sq_context& context, std::uint64_t id);

}  // namespace squareq::reference
