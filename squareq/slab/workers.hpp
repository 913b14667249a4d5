// Threads that take tasks in order until none is left, one failed or the user interrupted.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace squareq {

class Workers {
 public:
  /// Runs task(worker, index) for every index in [0, tasks) on `workers` threads. Calls `tick` from the calling thread about ten
  /// times a second and once at the end; it may set `stop`. Waits for all threads, then rethrows the first exception.
  template <class Task, class Tick>
  static void run(std::size_t workers, std::size_t tasks, std::atomic<bool>& stop, Task task, Tick tick) {
    std::atomic<std::size_t> next{0};
    std::mutex mutex;
    std::condition_variable finished;
    std::size_t running = workers;
    std::exception_ptr failure;
    const auto work = [&](std::size_t worker) {
      try {
        for (std::size_t i = next++; i < tasks && !stop; i = next++) task(worker, i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!stop.exchange(true)) failure = std::current_exception();
      }
      const std::lock_guard lock(mutex);
      --running;
      finished.notify_all();
    };
    {
      std::vector<std::jthread> threads;
      for (std::size_t w = 0; w < workers; ++w) threads.emplace_back(work, w);
      std::unique_lock lock(mutex);
      while (!finished.wait_for(lock, std::chrono::milliseconds(100), [&] { return running == 0; })) {
        lock.unlock();
        tick();
        lock.lock();
      }
    }
    if (failure) std::rethrow_exception(failure);
    tick();
  }
};

}  // namespace squareq
