// SQ-STR plans: bounds met to the byte, refusals that name both numbers, predictions against an independent event simulation.

#include "squareq/streaming/plan.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <numeric>

#include "squareq/error.hpp"

namespace squareq::streaming {
namespace {

constexpr std::uint64_t kDouble = 340844544, kSingle = 141963264;  // FLUX.1, V2 slab bytes
constexpr std::uint64_t kGiB = 1ull << 30;

PlanRequest flux1() {
  PlanRequest request;
  request.block_bytes.assign(19, kDouble);
  request.block_bytes.resize(57, kSingle);
  request.outside_bytes = 64463616;
  return request;
}

/// FLUX.1 at 512^2: 66.9 TFLOP a step, forward visits a third or so of a block's share.
Rates rates(const PlanRequest& request, double step_seconds, double link) {
  Rates r;
  r.link_bytes_per_second = link;
  // A double block does 2 x (113.2e6 elements x 1536 tokens) of linear work and so does a single one: all visits cost the same.
  const double visit = step_seconds / 3 / static_cast<double>(request.block_bytes.size());
  r.forward_seconds.assign(request.block_bytes.size(), visit);
  r.backward_seconds.assign(request.block_bytes.size(), 2 * visit);
  return r;
}

Error refused(const PlanRequest& request) {
  try {
    make_plan(request);
  } catch (const Error& e) {
    return e;
  }
  return Error(Code::OK, "accepted");
}

TEST(Plan, KeepsEverythingWithoutBounds) {
  const Plan plan = make_plan(flux1());
  EXPECT_EQ(plan.slots, 0u);
  EXPECT_EQ(plan.residents.size(), 57u);
  EXPECT_EQ(plan.session_bytes(), 11870650368u);
  EXPECT_EQ(plan.weight_bytes(), 11935113984u);  // the whole V2 slab
  EXPECT_EQ(plan.train_traffic.loads, 0u);
  EXPECT_EQ(plan.host_bytes, 0u);
}

TEST(Plan, TwoResidentBlocksAreTwoSlotsOfTheLargest) {  // SQ-STR-030
  PlanRequest request = flux1();
  request.resident_blocks = 2;
  const Plan plan = make_plan(request);
  EXPECT_EQ(plan.slots, 2u);
  EXPECT_EQ(plan.slot_bytes, kDouble);
  EXPECT_TRUE(plan.residents.empty());
  EXPECT_EQ(plan.session_bytes(), 2 * kDouble);
  EXPECT_EQ(plan.train_traffic.loads, 110u);
  // Two doubles stay at the step's start, two singles at its turnaround.
  EXPECT_EQ(plan.train_traffic.bytes, 2 * 11870650368u - 2 * kDouble - 2 * kSingle);
  EXPECT_EQ(plan.host_bytes, 11870650368u);
}

TEST(Plan, AsManyResidentBlocksAsThereAreStreamNothing) {
  PlanRequest request = flux1();
  request.resident_blocks = 57;
  EXPECT_EQ(make_plan(request).session_bytes(), 11870650368u);
  EXPECT_EQ(make_plan(request).train_traffic.loads, 0u);
}

TEST(Plan, StaysWithinTheBudgetAndUsesIt) {  // SQ-STR-033
  for (std::uint64_t budget = kGiB; budget <= 12 * kGiB; budget += kGiB) {
    PlanRequest request = flux1();
    request.budget = budget;
    const Plan plan = make_plan(request);
    EXPECT_LE(plan.weight_bytes(), budget);
    EXPECT_GT(plan.weight_bytes() + kDouble, std::min(budget, std::uint64_t{11935113984}));  // what is left is less than one block
    EXPECT_EQ(plan.residents.size() + plan.streamed.size(), 57u);
  }
}

TEST(Plan, MoreBudgetNeverMovesMoreBytesOnFlux1) {
  std::uint64_t previous = ~0ull;
  for (std::uint64_t budget = kGiB; budget <= 12 * kGiB; budget += kGiB / 2) {
    PlanRequest request = flux1();
    request.budget = budget;
    const Plan plan = make_plan(request);
    EXPECT_LE(plan.train_traffic.bytes, previous) << budget;
    previous = plan.train_traffic.bytes;
  }
  EXPECT_EQ(previous, 0u);
}

TEST(Plan, RefusesWhatIsBelowTheMinimumAndNamesBothNumbers) {  // SQ-STR-034
  PlanRequest request = flux1();
  const std::uint64_t least = minimum_weight_bytes(request);
  EXPECT_EQ(least, 2 * kDouble + request.outside_bytes);
  request.budget = least;
  EXPECT_LE(make_plan(request).weight_bytes(), least);
  request.budget = least - 1;
  const Error error = refused(request);
  EXPECT_EQ(error.code(), Code::CFG_BUDGET);
  EXPECT_NE(std::string(error.what()).find(std::to_string(least)), std::string::npos) << error.what();
  EXPECT_NE(std::string(error.what()).find(std::to_string(least - 1)), std::string::npos) << error.what();
}

TEST(Plan, VramBoundsTheOtherConsumersToo) {  // SQ-STR-035
  PlanRequest request = flux1();
  request.others = {{"activations", 3 * kGiB}, {"adapters", kGiB}};
  request.vram = 8 * kGiB;
  const Plan plan = make_plan(request);
  EXPECT_LE(plan.device_bytes(), 8 * kGiB);
  EXPECT_EQ(plan.device_bytes(), plan.slot_total() + plan.resident_bytes + plan.outside_bytes + 4 * kGiB);
  request.vram = minimum_weight_bytes(request) + 4 * kGiB - 1;
  const Error error = refused(request);
  EXPECT_EQ(error.code(), Code::CFG_BUDGET);
  EXPECT_NE(std::string(error.what()).find("activations"), std::string::npos) << error.what();
}

TEST(Plan, ResidentBlocksThatDoNotFitAreRefused) {
  PlanRequest request = flux1();
  request.resident_blocks = 10;
  request.budget = 2 * kGiB;
  EXPECT_EQ(refused(request).code(), Code::CFG_BUDGET);
}

TEST(Plan, RatesMustMatchTheBlocks) {
  PlanRequest request = flux1();
  request.rates = Rates{25e9, {1.0}, {1.0}};
  EXPECT_EQ(refused(request).code(), Code::CFG_VALUE);
}

TEST(Plan, HoldsItsBoundsForAnyModel) {
  EXPECT_TRUE(rc::check([] {
    PlanRequest request;
    request.block_bytes = *rc::gen::nonEmpty(rc::gen::container<std::vector<std::uint64_t>>(rc::gen::map(rc::gen::inRange(1, 9), [](int k) { return 256ull * static_cast<std::uint64_t>(k); })));
    if (request.block_bytes.size() > 24) request.block_bytes.resize(24);
    request.outside_bytes = *rc::gen::inRange<std::uint64_t>(0, 1000);
    const std::uint64_t all = std::accumulate(request.block_bytes.begin(), request.block_bytes.end(), request.outside_bytes);
    request.budget = *rc::gen::inRange<std::uint64_t>(1, all + 2);
    const std::uint64_t least = minimum_weight_bytes(request);
    RC_ASSERT(least <= all);
    if (request.budget < least) {
      RC_ASSERT(refused(request).code() == Code::CFG_BUDGET);
      return;
    }
    const Plan plan = make_plan(request);
    RC_ASSERT(plan.weight_bytes() <= request.budget);
    std::vector<std::uint32_t> both = plan.residents;
    both.insert(both.end(), plan.streamed.begin(), plan.streamed.end());
    std::sort(both.begin(), both.end());
    for (std::uint32_t i = 0; i < both.size(); ++i) RC_ASSERT(both[i] == i);
    RC_ASSERT(both.size() == request.block_bytes.size());
    for (const std::uint32_t block : plan.streamed) RC_ASSERT(request.block_bytes[block] <= plan.slot_bytes);
    RC_ASSERT(plan.train_traffic.loads == train_loads(plan.streamed.size(), plan.slots));
    RC_ASSERT(plan.forward_traffic.loads == forward_loads(plan.streamed.size(), plan.slots));
  }));
}

/// Fixed residents: 5.4 GB of FLUX.1 streamed, spread evenly by bytes, the other blocks resident.
Prediction placed(double link, double compute_seconds, std::uint32_t slots) {
  PlanRequest request = flux1();
  const Rates r = rates(request, compute_seconds, link);
  const auto streamed = spread_streamed(request.block_bytes, 5400000000, kDouble);
  std::vector<TimedVisit> order;
  for (std::uint32_t i = 0; i < 57; ++i) order.push_back({i, r.forward_seconds[i]});
  for (std::uint32_t i = 57; i-- > 0;) order.push_back({i, r.backward_seconds[i]});
  return predict(train_schedule(streamed, slots), request.block_bytes, order, link);
}

TEST(Predict, AgreesWithThePublishedPlacementTable) {  // event simulation of another author: FLUX.1 512^2, even by bytes, slots 2 / 4
  const double card_4090 = 0.62, card_4090_int8 = 0.21, card_h200 = 0.10;
  EXPECT_NEAR(placed(25e9, card_4090, 2).pass_seconds, 0.66, 0.66 * 0.06);
  EXPECT_NEAR(placed(25e9, card_4090, 4).pass_seconds, 0.64, 0.64 * 0.06);
  EXPECT_NEAR(placed(12e9, card_4090, 2).pass_seconds, 0.92, 0.92 * 0.06);
  EXPECT_NEAR(placed(12e9, card_4090, 4).pass_seconds, 0.84, 0.84 * 0.06);
  EXPECT_NEAR(placed(25e9, card_4090_int8, 2).pass_seconds, 0.41, 0.41 * 0.06);
  EXPECT_NEAR(placed(25e9, card_4090_int8, 4).pass_seconds, 0.38, 0.38 * 0.06);
  EXPECT_NEAR(placed(52e9, card_h200, 2).pass_seconds, 0.20, 0.20 * 0.06);
  EXPECT_NEAR(placed(52e9, card_h200, 4).pass_seconds, 0.18, 0.18 * 0.06);
}

TEST(Predict, IsTheSumOfComputeAndExposure) {  // SQ-STR-061
  for (const double link : {1e9, 12e9, 25e9, 1e15}) {
    const Prediction p = placed(link, 0.62, 2);
    EXPECT_NEAR(p.pass_seconds, p.compute_seconds + p.exposed_seconds, 1e-9);
    EXPECT_NEAR(p.compute_seconds, 0.62, 1e-9);
    EXPECT_GE(p.pass_seconds, p.transfer_seconds);  // one link
  }
  EXPECT_NEAR(placed(1e15, 0.62, 2).exposed_seconds, 0, 1e-4);
}

TEST(Predict, HandCountedRing) {
  // Three blocks of 1 s of link each, two slots, compute 1 s a visit: 0 1 2 | 2 1 0. Hits: 0, 1 at the start, 2 and 1 at the
  // turnaround. Load of 2 into slot 0 begins at t = 1 and is ready at 2: hidden. Load of 0 begins when 2 is released the second
  // time, at t = 4, and is ready at 5, when block 1 is done: hidden. Pass: 6 s.
  const std::vector<std::uint64_t> bytes(3, 100);
  const std::vector<std::uint32_t> blocks{0, 1, 2};
  const std::vector<TimedVisit> order{{0, 1}, {1, 1}, {2, 1}, {2, 1}, {1, 1}, {0, 1}};
  const Prediction even = predict(train_schedule(blocks, 2), bytes, order, 100);
  EXPECT_DOUBLE_EQ(even.pass_seconds, 6);
  EXPECT_DOUBLE_EQ(even.transfer_seconds, 2);
  EXPECT_DOUBLE_EQ(even.exposed_seconds, 0);
  // Half the link rate: each load takes 2 s, of which 1 s is exposed.
  EXPECT_DOUBLE_EQ(predict(train_schedule(blocks, 2), bytes, order, 50).exposed_seconds, 2);
  // One slot: 2N - 2C = 4 loads, nothing hidden.
  EXPECT_DOUBLE_EQ(predict(train_schedule(blocks, 1), bytes, order, 100).pass_seconds, 10);
}

}  // namespace
}  // namespace squareq::streaming
