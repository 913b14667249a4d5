// Sessions that are misused or fed by a failing disk or allocator: typed errors, nothing lost, the session stays usable.
#include "reference/tests/stream_harness.hpp"

namespace squareq::tests {
namespace {

sq_error last_error;

sq_status try_acquire(World& world, StreamSession& session, std::uint32_t block, sq_lease* lease) {
  last_error = make_error();
  return world.context.stream().acquire(world.context.get(), session.id(), block, nullptr, lease, &last_error);
}

TEST(StreamFaults, FailedReadReachesAcquireAndCanBeRetried) {
  for (const bool master : {false, true}) {
    World world({.blocks = 4, .slots = 2, .lookahead = 4, .residents = {}, .budget = 0, .poison = true, .master = master});
    world.reader.fail_block = 2;
    {
      StreamSession session(world.context, world.args);
      session.begin_step(1);
      Lease(session, 0).release();
      Lease(session, 1).release();
      sq_lease lease = 0;
      for (int attempt = 0; attempt < 3; ++attempt) {
        EXPECT_EQ(try_acquire(world, session, 2, &lease), SQ_IO_ERROR);
        EXPECT_TRUE(mentions(last_error.message, {"blocks.2", "disk unplugged"})) << last_error.message;
        EXPECT_STREQ(last_error.file, "model.safetensors");
        EXPECT_EQ(world.transitions.state(2), SQ_UNLOADED);
        EXPECT_EQ(lease, 0u);
      }
      world.reader.fail_block = -1;
      Lease healed(session, 2);
      EXPECT_TRUE(holds(world, session, healed.layer(0), 2));
      healed.release();
      Lease(session, 3).release();
      session.end_step();
      run_pass(world, session, 0);
    }
    EXPECT_EQ(world.transitions.violations(), std::vector<std::string>{});
    EXPECT_EQ(world.allocator.live(), 0);
  }
}

TEST(StreamFaults, EveryFailingReadOfAPass) {
  for (std::int64_t call = 0; call < 8; ++call) {
    World world({.blocks = 5, .slots = 2});
    world.reader.fail_call = call;
    StreamSession session(world.context, world.args);
    session.begin_step(0);
    int failures = 0;
    for (const sq_visit& visit : world.visits[0]) {
      sq_lease lease = 0;
      while (try_acquire(world, session, visit.block, &lease) != SQ_OK) ++failures;
      auto ref = sized<sq_weight_ref>();
      ref.session = session.id();
      ref.lease = lease;
      EXPECT_TRUE(holds(world, session, ref, visit.block));
      world.context.stream().release(world.context.get(), session.id(), lease, nullptr, nullptr);
    }
    session.end_step();
    EXPECT_EQ(failures, 1) << "read " << call;
    EXPECT_EQ(world.transitions.violations(), std::vector<std::string>{});
  }
}

TEST(StreamFaults, AbandonedPassGivesUpLeasesAndLoads) {
  World world({.blocks = 5, .slots = 3});
  world.reader.delay_us = 1000;
  StreamSession session(world.context, world.args);
  for (int pass = 0; pass < 10; ++pass) {
    session.begin_step(0);
    const Lease first(session, 0), second(session, 1);
    session.end_step(true);
    expect_error(Code::CALL_STATE, [&] { holds(world, session, first.layer(0), 0); });
  }
  run_pass(world, session, 0);
  EXPECT_EQ(world.transitions.violations(), std::vector<std::string>{});
}

TEST(StreamFaults, WrongStatesAreRefusedAndNameBoth) {
  World world({.blocks = 4, .slots = 2});
  StreamSession session(world.context, world.args);
  expect_error(Code::CALL_STATE, [&] { Lease(session, 0); });
  expect_error(Code::CALL_STATE, [&] { session.end_step(); });
  expect_error(Code::CALL_STATE, [&] { session.end_step(true); });
  expect_error(Code::CALL_VALUE, [&] { session.begin_step(9); });
  auto metrics = sized<sq_step_metrics>();
  EXPECT_EQ(world.context.telemetry().last_step(world.context.get(), session.id(), &metrics, nullptr), SQ_CALL_STATE);
  session.begin_step(0);
  expect_error(Code::CALL_STATE, [&] { session.begin_step(0); });
  EXPECT_TRUE(mentions(expect_error(Code::CALL_STATE, [&] { Lease(session, 2); }).message, {"blocks.2", "blocks.0"}));
  expect_error(Code::CALL_VALUE, [&] { Lease(session, 77); });
  expect_error(Code::CALL_STATE, [&] { session.end_step(); });
  Lease first(session, 0);
  Lease second(session, 1);
  EXPECT_TRUE(mentions(expect_error(Code::CALL_STATE, [&] { Lease(session, 2); }).message, {"blocks.2", "blocks.0"})) << "slot 0 is still leased";
  first.release();
  Lease third(session, 2);
  const sq_weight_ref stale = second.layer(0);
  EXPECT_TRUE(mentions(expect_error(Code::CALL_VALUE, [&] { holds(world, session, third.layer(5), 2); }).message, {"5", "1"}));
  second.release();
  expect_error(Code::CALL_STATE, [&] { second.release(); });
  Tensor out(SQ_F32, {layer_out, layer_in});
  auto args = sized<sq_dequantize_args>();
  args.weight = &stale;
  args.out = &out;
  expect_error(Code::CALL_STATE, [&] { call(world.context.linear().dequantize, world.context, args); });
  const sq_weight_ref live = third.layer(0);
  args.weight = &live;
  call(world.context.linear().dequantize, world.context, args);
  session.end_step(true);
}

TEST(StreamFaults, ClosedAndForeignSessions) {
  World world({.blocks = 2, .slots = 2});
  std::uint64_t closed = 0;
  {
    StreamSession session(world.context, world.args);
    closed = session.id();
  }
  EXPECT_EQ(world.context.stream().begin_step(world.context.get(), closed, 0, nullptr), SQ_CALL_STATE);
  EXPECT_EQ(world.context.stream().close(world.context.get(), closed, nullptr), SQ_CALL_STATE);
  StreamSession a(world.context, world.args), b(world.context, world.args);
  a.begin_step(0);
  b.begin_step(0);
  const Lease of_a(a, 0);
  sq_weight_ref mixed = of_a.layer(0);
  expect_error(Code::CALL_STATE, [&] { holds(world, b, mixed, 0); });
}

TEST(StreamFaults, ContextDestroyedWithAnOpenPass) {
  World world({.blocks = 4, .slots = 2});
  world.reader.delay_us = 3000;
  std::uint64_t id = 0;
  ASSERT_EQ(world.context.stream().open(world.context.get(), &world.args, &id, nullptr), SQ_OK);
  ASSERT_EQ(world.context.stream().begin_step(world.context.get(), id, 0, nullptr), SQ_OK);
  world.context = World::make(world);
  EXPECT_EQ(world.allocator.live(), 0);
}

TEST(StreamFaults, BudgetIsCheckedBeforeAnyAllocation) {
  World world({.blocks = 4, .slots = 2, .lookahead = 4, .residents = {3}, .budget = 3 * BlockBytes::extent - 1});
  const Problem problem = expect_error(Code::GPU_OOM, [&] { StreamSession(world.context, world.args); });
  EXPECT_TRUE(mentions(problem.message, {std::to_string(3 * BlockBytes::extent), std::to_string(3 * BlockBytes::extent - 1)})) << problem.message;
  EXPECT_EQ(world.allocator.calls(), 0);
  EXPECT_EQ(world.reader.calls(), 0);
  world.args.budget_bytes += 1;
  StreamSession fits(world.context, world.args);
}

TEST(StreamFaults, EveryFailingAllocationOfOpen) {
  World world({.blocks = 4, .slots = 2, .lookahead = 4, .residents = {3}, .budget = 0, .poison = true, .master = true});
  for (std::int64_t call = 0; call < 6; ++call) {
    world.allocator.fail_at(world.allocator.calls() + call);
    const Problem problem = expect_error(call < 2 || call == 5 ? Code::GPU_OOM : Code::HOST_OOM, [&] { StreamSession(world.context, world.args); });
    EXPECT_TRUE(mentions(problem.message, {std::to_string(BlockBytes::extent)})) << problem.message;
    EXPECT_EQ(world.allocator.live(), 0);
  }
  world.allocator.fail_at(-1);
  StreamSession session(world.context, world.args);
  run_pass(world, session, 0);
}

TEST(StreamFaults, FailingResidentFailsOpen) {
  World world({.blocks = 3, .slots = 1, .lookahead = 4, .residents = {0, 2}});
  world.reader.fail_block = 2;
  EXPECT_TRUE(mentions(expect_error(Code::IO_ERROR, [&] { StreamSession(world.context, world.args); }).message, {"blocks.2"}));
  EXPECT_EQ(world.allocator.live(), 0);
  EXPECT_EQ(world.transitions.state(0), SQ_UNLOADED);
  EXPECT_EQ(world.transitions.violations(), std::vector<std::string>{});
}

TEST(StreamFaults, BadTablesAreRefusedBeforeAnyAllocation) {
  const auto refused = [](Code code, const std::function<void(World&)>& damage) {
    World world({.blocks = 3, .slots = 2});
    damage(world);
    expect_error(code, [&] { StreamSession(world.context, world.args); });
    EXPECT_EQ(world.allocator.calls(), 0);
  };
  refused(Code::CALL_NULL, [](World& w) { w.args.read = nullptr; });
  refused(Code::CALL_NULL, [](World& w) { w.args.blocks = nullptr; });
  refused(Code::CALL_NULL, [](World& w) { w.blocks[1].name = nullptr; });
  refused(Code::CALL_SHAPE, [](World& w) { w.args.slot_bytes = 1792; });
  refused(Code::CALL_ALIGN, [](World& w) { w.args.slot_bytes = 2049; });
  refused(Code::CALL_ALIGN, [](World& w) { w.blocks[1].extent_bytes = 2000; });
  refused(Code::CALL_ALIGN, [](World& w) { w.parts[1].offset = 1540; });
  refused(Code::CALL_SHAPE, [](World& w) { w.parts[2].offset = 2048; });
  refused(Code::CALL_SHAPE, [](World& w) { w.parts[2].shape[0] = -4; });
  refused(Code::CALL_SHAPE, [](World& w) { w.parts[0].shape[0] = INT64_MAX, w.parts[0].shape[1] = 3; });
  refused(Code::CALL_SHAPE, [](World& w) { w.parts[0].rank = 99; });
  refused(Code::CALL_SHAPE, [](World& w) { w.parts[1].shape[0] = 31; });
  refused(Code::CALL_DTYPE, [](World& w) { w.parts[1].dtype = SQ_BF16; });
  refused(Code::CALL_PART, [](World& w) { w.layers[2].part_count = 1; });
  refused(Code::CALL_UNSUPPORTED, [](World& w) { w.layers[2].format = "nf4"; });
  refused(Code::CALL_VALUE, [](World& w) { w.blocks[0].flags = 8; });
  refused(Code::CALL_VALUE, [](World& w) { w.visits[0][3].block = 3; });
  refused(Code::CALL_VALUE, [](World& w) { w.visits[0][3].slot = 2; });
  refused(Code::CALL_VALUE, [](World& w) { w.blocks[1].flags = SQ_BLOCK_RESIDENT; });
  refused(Code::GPU_OOM, [](World& w) { w.args.slot_bytes = UINT64_MAX / 256 * 256 - 255 / 256, w.args.slot_count = 3; });
}

}  // namespace
}  // namespace squareq::tests
