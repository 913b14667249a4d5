// SQ-STR schedules: load counts against the closed forms and an independent Belady simulation; no slot is overwritten in use.

#include "squareq/streaming/schedule.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "squareq/error.hpp"

namespace squareq::streaming {
namespace {

std::vector<std::uint32_t> blocks(std::uint32_t n) {
  std::vector<std::uint32_t> all(n);
  std::iota(all.begin(), all.end(), 0u);
  return all;
}

std::vector<std::uint32_t> train_order(std::uint32_t n) {
  std::vector<std::uint32_t> order = blocks(n);
  for (std::uint32_t i = n; i-- > 0;) order.push_back(i);
  return order;
}

/// Misses of Belady's optimal replacement on `order` repeated `passes` times with a cache of `capacity` blocks.
std::uint64_t belady(const std::vector<std::uint32_t>& order, std::uint32_t capacity, std::uint32_t passes) {
  std::vector<std::uint32_t> trace;
  for (std::uint32_t p = 0; p < passes; ++p) trace.insert(trace.end(), order.begin(), order.end());
  std::set<std::uint32_t> cache;
  std::uint64_t misses = 0;
  for (std::size_t t = 0; t < trace.size(); ++t) {
    if (cache.count(trace[t])) continue;
    ++misses;
    if (cache.size() == capacity) {
      auto farthest = cache.begin();
      std::ptrdiff_t distance = -1;
      for (auto it = cache.begin(); it != cache.end(); ++it) {
        const std::ptrdiff_t next = std::find(trace.begin() + static_cast<std::ptrdiff_t>(t), trace.end(), *it) - trace.begin();
        if (next > distance) {
          distance = next;
          farthest = it;
        }
      }
      cache.erase(farthest);
    }
    cache.insert(trace[t]);
  }
  return misses;
}

TEST(TrainSchedule, ReachesBeladysBoundForEveryCountOfBlocksAndSlots) {  // SQ-STR-022
  for (std::uint32_t n = 1; n <= 20; ++n) {
    for (std::uint32_t c = 1; c <= n + 1; ++c) {
      const Schedule schedule = train_schedule(blocks(n), c);
      const std::vector<std::uint64_t> bytes(n, 1);
      SlotTags tags;
      std::uint64_t total = replay(schedule, bytes, tags).loads;
      for (int step = 1; step < 4; ++step) {
        const PassTraffic traffic = replay(schedule, bytes, tags);
        total += traffic.loads;
        EXPECT_EQ(traffic.loads, c >= n ? 0u : 2 * n - 2 * c) << "N=" << n << " C=" << c;
        EXPECT_EQ(traffic.hits + traffic.loads, 2 * n);
      }
      EXPECT_EQ(total, belady(train_order(n), c, 4)) << "N=" << n << " C=" << c;
      EXPECT_EQ(train_loads(n, c), c >= n ? 0u : 2 * n - 2 * c);
    }
  }
}

TEST(TrainSchedule, MatchesThePublishedCounts) {
  for (const auto& [n, c, loads] : std::vector<std::array<std::uint32_t, 3>>{
         {57, 2, 110}, {40, 2, 76}, {26, 4, 44}, {45, 2, 86}, {56, 10, 92}, {57, 10, 94}, {57, 24, 66}, {57, 30, 54}, {56, 20, 72}}) {
    SlotTags tags;
    const std::vector<std::uint64_t> bytes(n, 1);
    const Schedule schedule = train_schedule(blocks(n), c);
    replay(schedule, bytes, tags);
    EXPECT_EQ(replay(schedule, bytes, tags).loads, loads) << "N=" << n << " C=" << c;
  }
}

TEST(ForwardSchedule, KeepsAllButTwoSlots) {  // SQ-STR-023
  for (std::uint32_t n = 1; n <= 20; ++n) {
    for (std::uint32_t c = 1; c <= n + 1; ++c) {
      const Schedule schedule = forward_schedule(blocks(n), c);
      const std::vector<std::uint64_t> bytes(n, 1);
      SlotTags tags;
      replay(schedule, bytes, tags);
      const std::uint64_t loads = replay(schedule, bytes, tags).loads;
      EXPECT_EQ(loads, forward_loads(n, c)) << "N=" << n << " C=" << c;
      const std::uint64_t expected = c >= n ? 0 : c == 1 ? n : n - c == 1 ? 2 : n - c + 2;
      EXPECT_EQ(loads, expected) << "N=" << n << " C=" << c;
      // The optimum over all policies, averaged over whole periods, is N (N - C) / (N - 1); we lose less than 2 loads to it.
      if (c < n && c > 1) {
        EXPECT_LT(static_cast<double>(loads) - static_cast<double>(n) * (n - c) / (n - 1), 2.0);
      }
      if (n <= 10) {
        EXPECT_GE(loads * 8 + std::min(n, c), belady(blocks(n), c, 8)) << "N=" << n << " C=" << c;
      }
    }
  }
  EXPECT_EQ(forward_loads(57, 24), 35u);
}

TEST(Schedules, VisitEveryBlockInTheOrderOfThePass) {  // SQ-STR-020, SQ-STR-021
  const std::vector<std::uint32_t> streamed{1, 4, 5, 9, 12};
  for (std::uint32_t c = 1; c <= 6; ++c) {
    std::vector<std::uint32_t> seen;
    for (const sq_visit& v : train_schedule(streamed, c).visits) seen.push_back(v.block);
    EXPECT_EQ(seen, (std::vector<std::uint32_t>{1, 4, 5, 9, 12, 12, 9, 5, 4, 1}));
    seen.clear();
    for (const sq_visit& v : forward_schedule(streamed, c).visits) seen.push_back(v.block);
    EXPECT_EQ(seen, streamed);
  }
}

TEST(Schedules, NeedASlotWhereBlocksAreStreamed) {
  EXPECT_TRUE(train_schedule({}, 0).visits.empty());
  EXPECT_TRUE(forward_schedule({}, 0).visits.empty());
  for (const auto make : {train_schedule, forward_schedule}) {
    try {
      make(blocks(3), 0, kUnboundedLookahead);
      ADD_FAILURE() << "accepted 3 blocks and no slot";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::CALL_VALUE);
    }
  }
}

TEST(Schedules, LoadsOverlapTheVisitBeforeFromTwoSlotsOn) {  // SQ-STR-024
  for (std::uint32_t n = 3; n <= 20; ++n) {
    for (std::uint32_t c = 2; c < n; ++c) {
      for (const Schedule& s : {train_schedule(blocks(n), c), forward_schedule(blocks(n), c)}) {
        SlotTags tags;
        replay(s, std::vector<std::uint64_t>(n, 1), tags);
        for (std::size_t j = 1; j < s.visits.size(); ++j) {
          const sq_visit& v = s.visits[j];
          const bool loads = tags[v.slot] != v.block;
          tags[v.slot] = v.block;
          // A miss may load during the visit before it: that visit uses another slot.
          if (loads) {
            EXPECT_NE(s.visits[j - 1].slot, v.slot) << s.name << " N=" << n << " C=" << c << " visit " << j;
          }
        }
      }
    }
  }
}

/// Runs passes with a loader and a computing loop whose steps interleave at random, by the rule of sq_schedule. Returns false if a
/// slot is overwritten between a load and its use, if the loop computes on the wrong block, or if neither side can move.
class RandomEngine {
 public:
  RandomEngine(std::uint32_t slots, std::uint64_t seed) : holds_(slots, -1), random_(seed) {}

  ::testing::AssertionResult run(const Schedule& s) {
    std::size_t cursor = 0, loader = 0;  // visits computed; visits whose bytes are in place or in flight
    bool leased = false;
    while (cursor < s.visits.size()) {
      const bool can_load = loader < s.visits.size() && loader - cursor <= s.lookahead && slot_is_free(s, loader, cursor);
      const bool can_compute = leased || cursor < loader;
      if (!can_load && !can_compute) return ::testing::AssertionFailure() << "neither side can move at visit " << cursor;
      if (can_load && (!can_compute || next() % 2)) {
        holds_[s.visits[loader].slot] = s.visits[loader].block;
        ++loader;
      } else if (!leased) {
        leased = true;
      } else {
        if (holds_[s.visits[cursor].slot] != s.visits[cursor].block)
          return ::testing::AssertionFailure() << "visit " << cursor << " wants block " << s.visits[cursor].block << ", slot holds " << holds_[s.visits[cursor].slot];
        leased = false;
        ++cursor;
      }
    }
    return ::testing::AssertionSuccess();
  }

 private:
  std::uint64_t next() { return random_ = random_ * 6364136223846793005ull + 1442695040888963407ull, random_ >> 33; }
  static bool slot_is_free(const Schedule& s, std::size_t visit, std::size_t cursor) {
    for (std::size_t k = cursor; k < visit; ++k)
      if (s.visits[k].slot == s.visits[visit].slot && s.visits[k].block != s.visits[visit].block) return false;
    return true;
  }
  std::vector<std::int64_t> holds_;
  std::uint64_t random_;
};

TEST(Schedules, NeverOverwriteASlotInUseAcrossStepsAndSwitches) {  // SQ-STR-025, SQ-STR-026
  EXPECT_TRUE(rc::check([] {
    const auto n = *rc::gen::inRange<std::uint32_t>(1, 21);
    const auto c = *rc::gen::inRange<std::uint32_t>(1, 22);
    const auto lookahead = *rc::gen::elementOf(std::vector<std::uint32_t>{0, 1, 2, 5, kUnboundedLookahead});
    const auto kinds = *rc::gen::container<std::vector<bool>>(8, rc::gen::arbitrary<bool>());
    const Schedule train = train_schedule(blocks(n), c, lookahead), forward = forward_schedule(blocks(n), c, lookahead);
    RandomEngine engine(c, *rc::gen::arbitrary<std::uint64_t>());
    for (const bool kind : kinds) RC_ASSERT(static_cast<bool>(engine.run(kind ? train : forward)));
  }));
}

TEST(Schedules, UseOnlyTheSlotsTheyWereGiven) {
  for (std::uint32_t n = 1; n <= 20; ++n)
    for (std::uint32_t c = 1; c <= n; ++c)
      for (const Schedule& s : {train_schedule(blocks(n), c), forward_schedule(blocks(n), c)})
        for (const sq_visit& v : s.visits) EXPECT_LT(v.slot, c);
}

TEST(Spread, EqualBlocksFollowTheClosedFormula) {  // SQ-STR-031
  for (std::uint32_t n = 1; n <= 60; ++n) {
    const std::vector<std::uint64_t> bytes(n, 141963264);
    for (std::uint32_t s = 0; s <= n; ++s) {
      std::vector<std::uint32_t> expected;
      for (std::uint32_t i = 0; i < s; ++i) expected.push_back((2 * i + 1) * n / (2 * s));
      EXPECT_EQ(spread_streamed(bytes, s * std::uint64_t{141963264}, 141963264), expected) << "N=" << n << " S=" << s;
    }
  }
}

TEST(Spread, UnequalBlocksStreamTheSameShareOfBytesEverywhere) {  // SQ-STR-032
  std::vector<std::uint64_t> bytes(19, 340844544);
  bytes.resize(57, 141963264);
  const std::uint64_t total = std::accumulate(bytes.begin(), bytes.end(), std::uint64_t{0});
  for (std::uint64_t k = 1; k < 20; ++k) {
    const std::uint64_t target = total / 20 * k;
    std::uint64_t passed = 0, taken = 0, next = 0;
    const auto chosen = spread_streamed(bytes, target, 340844544);
    for (std::uint32_t i = 0; i < 57; ++i) {
      passed += bytes[i];
      if (next < chosen.size() && chosen[next] == i) taken += bytes[i], ++next;
      const double due = static_cast<double>(target) / static_cast<double>(total) * static_cast<double>(passed);
      EXPECT_LT(std::abs(static_cast<double>(taken) - due), 340844544.0);
    }
  }
}

TEST(Spread, LeavesOutBlocksLargerThanTheSlot) {
  EXPECT_EQ(spread_streamed(std::vector<std::uint64_t>{10, 30, 10, 30, 10}, 30, 10), (std::vector<std::uint32_t>{0, 2, 4}));
}

}  // namespace
}  // namespace squareq::streaming
