// The pool under what once crashed it: loops so short that the caller ends one while a worker still holds a piece of it.
#include "optimized/cpu/worker_pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace squareq::cpu {
namespace {

/// Sums [0, count) in `loops` short loops; every loop must see each item once.
void run_short_loops(WorkerPool& pool, int loops, std::int64_t count) {
  for (int i = 0; i < loops; ++i) {
    std::atomic<std::int64_t> sum{0};
    pool.parallel_for(count, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t item = begin; item < end; ++item) sum += item;
    });
    ASSERT_EQ(sum, count * (count - 1) / 2) << "loop " << i;
  }
}

// More workers than cores: they are preempted between taking a piece and calling the body.
TEST(WorkerPool, ShortLoopsOnMoreThreadsThanCores) {
  WorkerPool pool(std::thread::hardware_concurrency() + 3);
  run_short_loops(pool, 200000, 16);
}

TEST(WorkerPool, CallersThatOverlapGetTheirOwnLoops) {
  WorkerPool pool(3);
  std::vector<std::jthread> callers;
  for (int caller = 0; caller < 3; ++caller) callers.emplace_back([&] { run_short_loops(pool, 20000, 11); });
}

TEST(WorkerPool, PiecesAreNoSmallerThanTheGrain) {
  WorkerPool pool(4);
  std::atomic<std::int64_t> items{0}, short_pieces{0};
  pool.parallel_for(1000, 300, [&](std::int64_t begin, std::int64_t end) {
    items += end - begin;
    short_pieces += end - begin < 300;
  });
  EXPECT_EQ(items, 1000);
  EXPECT_LE(short_pieces, 1);  // the last one
  pool.parallel_for(0, 1, [&](std::int64_t, std::int64_t) { ADD_FAILURE() << "a loop over nothing called its body"; });
}

}  // namespace
}  // namespace squareq::cpu
