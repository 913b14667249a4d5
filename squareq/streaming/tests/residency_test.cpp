// SQ-STR residency: the edges, and a recorder that sees what breaks them.

#include "squareq/streaming/residency.hpp"

#include <gtest/gtest.h>

#include <set>
#include <thread>

namespace squareq::streaming {
namespace {

TEST(Residency, HasEightNormalAndTwoFailureEdges) {  // SQ-STR-011, SQ-STR-012
  const std::set<std::pair<int, int>> normal{{SQ_UNLOADED, SQ_HOST_STAGED},    {SQ_HOST_STAGED, SQ_PREFETCHING}, {SQ_PREFETCHING, SQ_GPU_READY},
                                             {SQ_GPU_READY, SQ_EVICTING},      {SQ_GPU_READY, SQ_GPU_FREEING},   {SQ_EVICTING, SQ_HOST_STAGED},
                                             {SQ_EVICTING, SQ_UNLOADED},       {SQ_GPU_FREEING, SQ_UNLOADED}};
  const std::set<std::pair<int, int>> failure{{SQ_PREFETCHING, SQ_UNLOADED}, {SQ_HOST_STAGED, SQ_UNLOADED}};
  for (int from = -1; from <= kResidencyStates; ++from) {
    for (int to = -1; to <= kResidencyStates; ++to) {
      EXPECT_EQ(normal_edge(from, to), normal.count({from, to}) == 1) << from << " to " << to;
      EXPECT_EQ(failure_edge(from, to), failure.count({from, to}) == 1) << from << " to " << to;
      EXPECT_EQ(legal_edge(from, to), normal.count({from, to}) + failure.count({from, to}) == 1) << from << " to " << to;
    }
  }
}

TEST(Residency, NamesAreTheLowerCaseOnes) {  // SQ-STR-010
  EXPECT_EQ(residency_name(SQ_UNLOADED), "unloaded");
  EXPECT_EQ(residency_name(SQ_HOST_STAGED), "host_staged");
  EXPECT_EQ(residency_name(SQ_PREFETCHING), "prefetching");
  EXPECT_EQ(residency_name(SQ_GPU_READY), "gpu_ready");
  EXPECT_EQ(residency_name(SQ_EVICTING), "evicting");
  EXPECT_EQ(residency_name(SQ_GPU_FREEING), "gpu_freeing");
  EXPECT_EQ(residency_name(6), "unknown state");
}

TEST(TransitionRecorder, AcceptsALifeAndAFailedLoad) {
  TransitionRecorder recorder;
  const int life[] = {SQ_UNLOADED, SQ_HOST_STAGED, SQ_PREFETCHING, SQ_GPU_READY, SQ_GPU_FREEING, SQ_UNLOADED, SQ_HOST_STAGED, SQ_PREFETCHING, SQ_UNLOADED};
  for (std::size_t i = 1; i < std::size(life); ++i) TransitionRecorder::record(&recorder, 7, 3, life[i - 1], life[i]);
  EXPECT_TRUE(recorder.violations().empty());
  EXPECT_EQ(recorder.transitions().size(), 8u);
  EXPECT_EQ(recorder.state(7, 3), SQ_UNLOADED);
}

TEST(TransitionRecorder, ReportsIllegalEdgesAndGaps) {
  TransitionRecorder recorder;
  recorder.add({1, 0, SQ_UNLOADED, SQ_GPU_READY});
  ASSERT_EQ(recorder.violations().size(), 1u);
  EXPECT_EQ(recorder.violations()[0], "block 0: 'unloaded' to 'gpu_ready' is no legal transition");
  recorder.add({1, 0, SQ_HOST_STAGED, SQ_PREFETCHING});
  ASSERT_EQ(recorder.violations().size(), 2u);
  EXPECT_EQ(recorder.violations()[1], "block 0: 'host_staged' to 'prefetching', but the block was in 'gpu_ready'");
  recorder.add({2, 0, SQ_UNLOADED, SQ_HOST_STAGED});  // another session is another block
  EXPECT_EQ(recorder.violations().size(), 2u);
}

TEST(TransitionRecorder, TakesTransitionsFromManyThreads) {
  TransitionRecorder recorder;
  std::vector<std::thread> threads;
  for (std::uint32_t block = 0; block < 4; ++block)
    threads.emplace_back([&recorder, block] {
      for (int i = 0; i < 500; ++i) {
        recorder.add({1, block, SQ_UNLOADED, SQ_HOST_STAGED});
        recorder.add({1, block, SQ_HOST_STAGED, SQ_UNLOADED});
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(recorder.transitions().size(), 4000u);
  EXPECT_TRUE(recorder.violations().empty());
}

}  // namespace
}  // namespace squareq::streaming
