// Sessions that work: schedules, loads, leases, budgets, statistics (spec/60-streaming.md).
#include "reference/tests/stream_harness.hpp"

#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

namespace squareq::tests {
namespace {

TEST(Stream, TrainingPassLoadsTwiceStreamedMinusTwiceSlots) {
  for (const std::uint32_t slots : {1u, 2u, 3u, 5u})
    for (const bool master : {false, true}) {
      World world({.blocks = 5, .slots = slots, .lookahead = 10, .residents = {}, .budget = slots * BlockBytes::extent, .poison = true, .master = master});
      {
        StreamSession session(world.context, world.args);
        run_pass(world, session, 0);
        for (int pass = 0; pass < 3; ++pass) {
          const std::uint64_t before = session.stats().loads;
          run_pass(world, session, 0);
          EXPECT_EQ(session.stats().loads - before, 2 * 5 - 2 * slots) << slots << " slots";
        }
        const sq_stream_stats stats = session.stats();
        EXPECT_EQ(stats.device_bytes, slots * BlockBytes::extent);
        EXPECT_EQ(stats.device_bytes, static_cast<std::uint64_t>(world.allocator.live(SQ_MEM_DEVICE)));
        EXPECT_EQ(stats.host_bytes, master ? 5 * BlockBytes::extent : 0u);
        EXPECT_EQ(stats.hits + stats.misses, 4u * 10u);
        EXPECT_EQ(stats.loaded_bytes, stats.loads * BlockBytes::extent);
        EXPECT_EQ(stats.steps, 4u);
        EXPECT_EQ(world.reader.calls(), static_cast<std::int64_t>(master ? 5 : stats.loads));
      }
      EXPECT_EQ(world.transitions.violations(), std::vector<std::string>{});
      for (std::uint32_t b = 0; b < 5; ++b) EXPECT_EQ(world.transitions.state(b), SQ_UNLOADED);
      EXPECT_EQ(world.allocator.live(), 0);
    }
}

TEST(Stream, PrefetchedBlockIsAHit) {
  World world({.blocks = 2, .slots = 2});
  StreamSession session(world.context, world.args);
  session.begin_step(0);
  while (session.stats().loads < 2) std::this_thread::yield();
  for (const std::uint32_t block : {0u, 1u, 1u, 0u}) Lease(session, block).release();
  session.end_step();
  EXPECT_EQ(session.stats().hits, 4u);
  EXPECT_EQ(session.stats().misses, 0u);
  EXPECT_EQ(session.stats().wait_ns, 0u);
}

TEST(Stream, LookaheadBoundsThePrefetch) {
  World world({.blocks = 5, .slots = 5, .lookahead = 1});
  StreamSession session(world.context, world.args);
  session.begin_step(0);
  while (session.stats().loads < 2) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(session.stats().loads, 2u) << "visits 0 and 1 are within the lookahead of 1, visit 2 is not";
  const Lease lease(session, 0);
  while (session.stats().loads < 3) std::this_thread::yield();
  session.end_step(true);
}

TEST(Stream, SlowReaderIsWaitedForAndCounted) {
  World world({.blocks = 3, .slots = 1});
  world.reader.delay_us = 2000;
  StreamSession session(world.context, world.args);
  run_pass(world, session, 1);
  EXPECT_EQ(session.stats().misses, 3u);
  EXPECT_GT(session.stats().wait_ns, 3u * 1'000'000u);
  auto metrics = sized<sq_step_metrics>();
  sq_error e = make_error();
  check(world.context.telemetry().last_step(world.context.get(), session.id(), &metrics, &e), e);
  EXPECT_EQ(metrics.step, 0);
  EXPECT_EQ(metrics.prefetch_misses, 3);
  EXPECT_EQ(metrics.stall_count, 3);
  EXPECT_EQ(metrics.h2d_bytes, 3 * static_cast<std::int64_t>(BlockBytes::extent));
  EXPECT_EQ(metrics.disk_read_bytes, metrics.h2d_bytes);
  EXPECT_EQ(metrics.evictions, 2);
  EXPECT_EQ(metrics.d2h_bytes, 0);
  EXPECT_GT(metrics.stall_time_ms, 3.0);
  EXPECT_GE(metrics.wall_ms, metrics.stall_time_ms);
}

TEST(Stream, ResidentsAreLeasedAtAnyTimeAndOutliveAPass) {
  World world({.blocks = 4, .slots = 1, .lookahead = 2, .residents = {1, 3}});
  StreamSession session(world.context, world.args);
  EXPECT_EQ(world.transitions.state(1), SQ_GPU_READY);
  EXPECT_EQ(session.stats().device_bytes, 3 * BlockBytes::extent);
  EXPECT_EQ(session.stats().loads, 0u) << "residents are not counted";
  const Lease outside(session, 3);
  session.begin_step(1);
  Lease(session, 0).release();
  const Lease inside(session, 1);
  session.end_step(true);
  EXPECT_TRUE(holds(world, session, outside.layer(0), 3));
  expect_error(Code::CALL_STATE, [&] { holds(world, session, inside.layer(0), 1); });
  run_pass(world, session, 0);
}

TEST(Stream, ComputesThroughLeasesWhatDirectWeightsGive) {
  World world({.blocks = 6, .slots = 2});
  world.reader.delay_us = 200;
  std::vector<float> x(3 * layer_in);
  std::mt19937 random(7);
  for (float& v : x) v = static_cast<float>(random() % 1000) / 500.0f - 1.0f;
  const Tensor input = tensor_of(SQ_F32, {3, layer_in}, x);
  const auto forward = [&](const sq_weight_ref& ref) {
    Tensor y(SQ_F32, {3, layer_out}), copy = input;
    auto args = sized<sq_linear_forward_args>();
    args.weight = &ref;
    args.x = &copy;
    args.y = &y;
    call(world.context.linear().linear_forward, world.context, args);
    return y.bytes;
  };
  StreamSession session(world.context, world.args);
  for (int pass = 0; pass < 20; ++pass) {
    session.begin_step(0);
    for (const sq_visit& visit : world.visits[0]) {
      const Lease lease(session, visit.block);
      const auto* bytes = world.reader.block(visit.block).data();
      const std::vector<sq_part> parts = {{"qweight", make_tensor(bytes, SQ_I8, {layer_out, layer_in})}, {"scale", make_tensor(bytes + BlockBytes::scale_at, SQ_F32, {layer_out})},
                                          {"bias", make_tensor(bytes + BlockBytes::bias_at, SQ_F32, {layer_out})}};
      const sq_weight weight = {sizeof(sq_weight), 3, "bp8_v2", "direct", layer_out, layer_in, parts.data()};
      auto direct = sized<sq_weight_ref>();
      direct.weight = &weight;
      ASSERT_EQ(forward(lease.layer(0)), forward(direct)) << "pass " << pass << ", block " << visit.block;
    }
    session.end_step();
  }
}

TEST(Stream, AllocatesNothingAfterOpen) {
  World world({.blocks = 5, .slots = 2, .lookahead = 4, .residents = {}, .budget = 0, .poison = true, .master = true});
  StreamSession session(world.context, world.args);
  const std::int64_t calls = world.allocator.calls();
  EXPECT_EQ(calls, 2 + 5);
  for (int pass = 0; pass < 3; ++pass) run_pass(world, session, static_cast<std::uint32_t>(pass % 2));
  EXPECT_EQ(world.allocator.calls(), calls);
}

/// Random blocks, slots, lookahead, visit lists, leases held across visits, abandoned passes: bytes are right at every visit.
RC_GTEST_PROP(StreamProperty, RandomSchedulesDeliverTheRightBytes, ()) {
  const auto blocks = *rc::gen::inRange<std::uint32_t>(1, 7), slots = *rc::gen::inRange<std::uint32_t>(1, 5), lookahead = *rc::gen::inRange<std::uint32_t>(0, 9);
  World world({.blocks = blocks, .slots = slots, .lookahead = lookahead, .residents = {}, .budget = 0, .poison = true, .master = *rc::gen::arbitrary<bool>()});
  world.reader.delay_us = *rc::gen::element(0, 0, 100);
  for (auto& list : world.visits) {
    list.clear();
    for (int i = *rc::gen::inRange(0, 25); i > 0; --i) list.push_back({*rc::gen::inRange<std::uint32_t>(0, blocks), *rc::gen::inRange<std::uint32_t>(0, slots)});
  }
  world.refresh();
  {
    StreamSession session(world.context, world.args);
    for (int pass = 0; pass < 4; ++pass) {
      const auto schedule = *rc::gen::inRange<std::uint32_t>(0, 2);
      const auto& list = world.visits[schedule];
      const auto stop = *rc::gen::inRange<std::size_t>(0, 2 * list.size() + 1);  // beyond the end: not abandoned
      session.begin_step(schedule);
      std::unique_ptr<Lease> held;  // each lease outlives the next acquire where the two can coexist
      for (std::size_t i = 0; i < std::min(stop, list.size()); ++i) {
        if (i > 0 && (list[i].slot == list[i - 1].slot) != (list[i].block == list[i - 1].block)) held.reset();
        auto lease = std::make_unique<Lease>(session, list[i].block);
        RC_ASSERT(holds(world, session, lease->layer(0), list[i].block));
        if (held) RC_ASSERT(holds(world, session, held->layer(0), list[i - 1].block));
        held = std::move(lease);
      }
      if (stop >= list.size()) held.reset();
      session.end_step(stop < list.size());
    }
  }
  RC_ASSERT(world.transitions.violations().empty());
  RC_ASSERT(world.allocator.live() == 0);
}

}  // namespace
}  // namespace squareq::tests
