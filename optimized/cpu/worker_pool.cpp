#include "optimized/cpu/worker_pool.hpp"

#include <algorithm>

namespace squareq::cpu {

WorkerPool::WorkerPool(unsigned threads) {
  for (unsigned i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void WorkerPool::parallel_for(std::int64_t count, std::int64_t grain, const std::function<void(std::int64_t, std::int64_t)>& body) {
  if (count <= 0) return;
  std::unique_lock busy(busy_, std::defer_lock);
  if (workers_.empty() || count < 2 * grain || !busy.try_lock()) {
    body(0, count);
    return;
  }
  // A few pieces per thread even out unequal speeds.
  const Job job{&body, count, std::max(grain, (count + 4 * threads() - 1) / (4 * static_cast<std::int64_t>(threads())))};
  {
    const std::lock_guard lock(mutex_);
    job_ = job;
    next_.store(0, std::memory_order_relaxed);
    ++generation_;
  }
  wake_.notify_all();
  run_pieces(job);
  std::unique_lock lock(mutex_);
  job_.body = nullptr;  // a worker that wakes only now has nothing to join: a busy machine costs no waiting
  done_.wait(lock, [this] { return active_ == 0; });
}

void WorkerPool::run_pieces(const Job& job) {
  for (;;) {
    const std::int64_t begin = next_.fetch_add(job.piece, std::memory_order_relaxed);
    if (begin >= job.count) return;
    (*job.body)(begin, std::min(begin + job.piece, job.count));
  }
}

void WorkerPool::work() {
  std::uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
    if (stop_) return;
    seen = generation_;
    const Job job = job_;
    if (job.body == nullptr) continue;
    ++active_;
    lock.unlock();
    run_pieces(job);
    lock.lock();
    if (--active_ == 0) done_.notify_one();
  }
}

}  // namespace squareq::cpu
