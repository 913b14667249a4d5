// A small fixed pool for the elementwise loops; the GEMM's threads are the BLAS library's own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace squareq::cpu {

/// Threads are started once. One parallel loop runs at a time; a second caller runs its own loop alone on its own thread, so calls
/// that overlap never wait for each other. Results cannot depend on it: items are independent.
class WorkerPool {
 public:
  explicit WorkerPool(unsigned threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  unsigned threads() const { return static_cast<unsigned>(workers_.size()) + 1; }

  /// Calls body(begin, end) over pieces of [0, count) of at least `grain` items; `body` must not throw.
  void parallel_for(std::int64_t count, std::int64_t grain, const std::function<void(std::int64_t, std::int64_t)>& body);

 private:
  struct Job {
    const std::function<void(std::int64_t, std::int64_t)>* body = nullptr;  // null: no loop is running
    std::int64_t count = 0;
    std::int64_t piece = 0;
  };

  void work();
  void run_pieces(const Job& job);

  std::vector<std::thread> workers_;
  std::mutex busy_;  // held by the caller of the running loop
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::uint64_t generation_ = 0;
  unsigned active_ = 0;
  bool stop_ = false;

  Job job_;  // under mutex_; whoever runs pieces holds a copy, for the caller ends the job while workers still run
  std::atomic<std::int64_t> next_{0};
};

}  // namespace squareq::cpu
