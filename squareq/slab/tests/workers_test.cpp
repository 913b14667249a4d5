// Workers: every task once, the first failure rethrown after all threads ended, a stop that ends what has not begun.
#include "squareq/slab/workers.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

namespace squareq {
namespace {

TEST(Workers, EveryTaskRunsOnceAndTickEndsIt) {
  std::vector<std::atomic<int>> runs(1000);
  std::atomic<bool> stop{false};
  int ticks = 0;
  Workers::run(
      4, runs.size(), stop,
      [&](std::size_t worker, std::size_t i) {
        EXPECT_LT(worker, 4u);
        ++runs[i];
      },
      [&] { ++ticks; });
  for (std::size_t i = 0; i < runs.size(); ++i) EXPECT_EQ(runs[i], 1) << i;
  EXPECT_GE(ticks, 1);
}

TEST(Workers, NoTaskIsNoError) {
  std::atomic<bool> stop{false};
  Workers::run(
      3, 0, stop, [](std::size_t, std::size_t) { FAIL(); }, [] {});
}

// Tasks last 1 ms, so that a pool which goes on regardless takes seconds and is told from one that stops.
constexpr std::size_t many = 4000;

TEST(Workers, TheFailureComesBackAndTheRestIsNotBegun) {
  std::atomic<bool> stop{false};
  std::atomic<std::size_t> begun{0};
  const auto task = [&](std::size_t, std::size_t i) {
    ++begun;
    if (i == 7) throw std::runtime_error("task 7");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  try {
    Workers::run(2, many, stop, task, [] {});
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "task 7");
  }
  EXPECT_TRUE(stop);
  EXPECT_LT(begun, many / 2);
}

TEST(Workers, TickMayStopThem) {
  std::atomic<bool> stop{false};
  std::atomic<std::size_t> begun{0};
  const auto task = [&](std::size_t, std::size_t) {
    ++begun;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  Workers::run(2, many, stop, task, [&] { stop = true; });
  EXPECT_GT(begun, 0u);
  EXPECT_LT(begun, many / 2);
}

}  // namespace
}  // namespace squareq
