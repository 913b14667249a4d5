// The stream engine through the contract: bytes, loads, states, faults, refusals, memory (spec/60-streaming.md).
#include "stream_fixture.hpp"

#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

namespace squareq::test {
namespace {

void walk(StreamSession& session, const Context& context, const TestModel& model, const std::vector<sq_visit>& visits) {
  session.begin_step(0);
  for (const sq_visit v : visits) {
    Lease lease(session, v.block);
    expect_bytes(lease, context, model, v.block);
  }
  session.end_step();
}

TEST(Stream, LoadsWhatTheTagsSay_SQ_STR_022_026_TEL_020_021) {
  for (const std::uint32_t n : {1u, 5u, 8u})
    for (std::uint32_t c = 1; c <= n; ++c)
      for (const std::uint32_t master : {0u, 1u}) {
        TestModel model(n);
        Watch watch;
        const Context context = watched_context(watch);
        const auto visits = sawtooth(n, c);
        const std::vector<sq_schedule> schedules = {schedule(visits)};
        auto args = model.open_args(c, schedules);
        args.poison_slots = 1;
        args.keep_host_master = master;
        {
          StreamSession session(context, args);
          walk(session, context, model, visits);
          const auto first = session.stats();
          for (int pass = 0; pass < 3; ++pass) walk(session, context, model, visits);
          const auto s = session.stats();
          EXPECT_EQ(s.loads - first.loads, 3u * (c >= n ? 0 : 2 * n - 2 * c)) << n << " blocks, " << c << " slots";
          EXPECT_EQ(s.loaded_bytes, s.loads * model.extent());
          EXPECT_EQ(s.hits + s.misses, 4u * visits.size());
          EXPECT_EQ(s.device_bytes, c * model.extent());
          EXPECT_EQ(s.host_bytes, master ? n * model.extent() : 0u);
          for (std::uint32_t b = 0; master && b < n; ++b) {
            EXPECT_EQ(model.reads(b), 1) << "read once into the master";
          }
          auto m = sized<sq_step_metrics>();
          sq_error e = make_error();
          check(context.telemetry().last_step(context.get(), session.id(), &m, &e), e);
          EXPECT_EQ(m.step, 3);
          EXPECT_EQ(m.h2d_bytes, static_cast<std::int64_t>((c >= n ? 0 : 2 * n - 2 * c) * model.extent()));
          EXPECT_EQ(m.prefetch_hits + m.prefetch_misses, static_cast<std::int64_t>(visits.size()));
          EXPECT_EQ(m.disk_read_bytes, master ? 0 : m.h2d_bytes);
          EXPECT_EQ(m.host_pool_in_use, c);
        }
        EXPECT_EQ(watch.violations(), 0);
        EXPECT_EQ(watch.failures(), 0);
        EXPECT_TRUE(watch.all_unloaded());
      }
}

TEST(Stream, PrefetchRunsDuringTheVisitBefore_SQ_STR_024) {
  TestModel model(4);
  model.set_delay(std::chrono::milliseconds(5));
  const Context context = make_context();
  const auto visits = sawtooth(4, 2);
  const std::vector<sq_schedule> schedules = {schedule(visits)};
  StreamSession session(context, model.open_args(2, schedules));
  session.begin_step(0);
  for (const sq_visit v : visits) {
    Lease lease(session, v.block);
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
  }
  session.end_step();
  EXPECT_EQ(session.stats().misses, 1u) << "only the first block of a cold pass is waited for";
}

TEST(Stream, LookaheadBoundsTheLoads_SQ_STR_025) {
  TestModel model(6);
  const Context context = make_context();
  const auto visits = sawtooth(6, 6);
  const std::vector<sq_schedule> schedules = {schedule(visits, 1)};
  StreamSession session(context, model.open_args(6, schedules));
  session.begin_step(0);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(session.stats().loads, 2u);
  {
    Lease lease(session, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    EXPECT_EQ(session.stats().loads, 3u);
  }
  session.end_step(true);
}

TEST(Stream, ResidentsAreLeasedAnyTime_SQ_STR_041) {
  TestModel model(3, {1});
  Watch watch;
  const Context context = watched_context(watch);
  const std::vector<sq_visit> visits = {{0, 0}, {2, 0}};
  const std::vector<sq_schedule> schedules = {schedule(visits)};
  {
    StreamSession session(context, model.open_args(1, schedules));
    EXPECT_EQ(session.stats().device_bytes, 2 * model.extent());
    Lease outside(session, 1);
    expect_bytes(outside, context, model, 1);
    walk(session, context, model, visits);
    Lease second(session, 1);
    EXPECT_EQ(session.stats().hits + session.stats().misses, 2u);
  }
  EXPECT_EQ(watch.violations(), 0);
  EXPECT_TRUE(watch.all_unloaded());
}

TEST(Stream, AFailedReadIsToldAndRetried_SQ_STR_012_050_051_052) {
  for (const std::uint32_t master : {0u, 1u}) {
    TestModel model(4);
    Watch watch;
    CountingAllocator memory;
    {
      const Context context = watched_context(watch, memory.table());
      const auto visits = sawtooth(4, 2);
      const std::vector<sq_schedule> schedules = {schedule(visits)};
      auto args = model.open_args(2, schedules);
      args.keep_host_master = master;
      StreamSession session(context, args);
      model.set_fault({2, 0, 2});
      session.begin_step(0);
      { Lease a(session, 0); }
      { Lease b(session, 1); }
      for (int attempt = 0; attempt < 2; ++attempt) {
        std::string message;
        EXPECT_EQ(code_of([&] { Lease c(session, 2); }, &message), Code::IO_SHORT_READ);
        EXPECT_NE(message.find("disk fell out at block 2"), std::string::npos) << message;
        EXPECT_EQ(watch.state(session.id(), 2), SQ_UNLOADED);
      }
      for (std::size_t i = 2; i < visits.size(); ++i) {
        Lease lease(session, visits[i].block);
        expect_bytes(lease, context, model, visits[i].block);
      }
      session.end_step();
      walk(session, context, model, visits);
    }
    EXPECT_EQ(watch.violations(), 0);
    EXPECT_EQ(watch.failures(), 2);
    EXPECT_TRUE(watch.all_unloaded());
    EXPECT_EQ(memory.live(), 0u);
  }
}

TEST(Stream, AnAbandonedPassLeavesTheSessionReady_SQ_STR_045) {
  TestModel model(6);
  model.set_delay(std::chrono::milliseconds(3));
  Watch watch;
  const Context context = watched_context(watch);
  const auto visits = sawtooth(6, 3);
  const std::vector<sq_schedule> schedules = {schedule(visits)};
  {
    StreamSession session(context, model.open_args(3, schedules));
    for (std::size_t stop = 0; stop < visits.size(); ++stop) {
      session.begin_step(0);
      for (std::size_t i = 0; i < stop; ++i) Lease lease(session, visits[i].block);
      Lease held(session, visits[stop].block);
      session.end_step(true);
      EXPECT_EQ(code_of([&] { held.release(); }), Code::CALL_STATE);
    }
    walk(session, context, model, visits);
  }
  EXPECT_EQ(watch.violations(), 0);
  EXPECT_TRUE(watch.all_unloaded());
}

TEST(Stream, WrongOrderIsRefused_SQ_STR_041_042_043_044) {
  TestModel model(3);
  const Context context = make_context();
  const std::vector<sq_visit> visits = {{0, 0}, {1, 0}, {2, 1}};
  const std::vector<sq_schedule> schedules = {schedule(visits)};
  StreamSession session(context, model.open_args(2, schedules));
  std::string message;
  EXPECT_EQ(code_of([&] { Lease l(session, 0); }), Code::CALL_STATE) << "outside a pass";
  EXPECT_EQ(code_of([&] { session.end_step(); }), Code::CALL_STATE);
  EXPECT_EQ(code_of([&] { session.begin_step(1); }), Code::CALL_VALUE);
  session.begin_step(0);
  EXPECT_EQ(code_of([&] { session.begin_step(0); }), Code::CALL_STATE);
  EXPECT_EQ(code_of([&] { Lease l(session, 2); }, &message), Code::CALL_STATE);
  EXPECT_NE(message.find("blocks.2"), std::string::npos) << message;
  EXPECT_NE(message.find("blocks.0"), std::string::npos) << message;
  EXPECT_EQ(code_of([&] { session.end_step(); }), Code::CALL_STATE) << "visits left";
  Lease first(session, 0);
  EXPECT_EQ(code_of([&] { Lease l(session, 1); }, &message), Code::CALL_STATE) << "slot 0 is leased";
  const sq_weight_ref ref = first.layer(0);
  first.release();
  sq_error e = make_error();
  auto weight = sized<sq_weight>();
  EXPECT_EQ(context.stream().lease_weight(context.get(), session.id(), ref.lease, 0, &weight, &e), SQ_CALL_STATE);
  EXPECT_EQ(context.stream().release(context.get(), session.id(), ref.lease, nullptr, &e), SQ_CALL_STATE);
  Buffer x(SQ_F32, {2, kIn}), y(SQ_F32, {2, kOut});
  auto args = sized<sq_linear_forward_args>();
  args.weight = &ref;
  args.x = x.tensor();
  args.y = y.tensor();
  EXPECT_EQ(code_of([&] { call(context.linear().linear_forward, context, args); }), Code::CALL_STATE);
  const Context other = make_context();
  EXPECT_EQ(code_of([&] { call(other.linear().linear_forward, other, args); }), Code::CALL_STATE) << "a session of another context";
  { Lease l(session, 1); }
  { Lease l(session, 2); }
  session.end_step();
}

TEST(Stream, BadTablesAreRefusedBeforeAnyAllocation_SQ_STR_005_027_037) {
  const std::vector<sq_visit> visits = {{0, 0}, {1, 1}};
  const auto refused = [&](const std::function<void(TestModel&, sq_stream_open_args&, std::vector<sq_visit>&)>& spoil) {
    TestModel model(3, {2});
    CountingAllocator memory;
    const Context context = make_context(memory.table());
    std::vector<sq_visit> own = visits;
    std::vector<sq_schedule> schedules = {schedule(own)};
    auto args = model.open_args(2, schedules);
    spoil(model, args, own);
    const Code code = code_of([&] { StreamSession session(context, args); });
    EXPECT_EQ(memory.calls(), 0) << "allocated before the refusal";
    EXPECT_EQ(model.reads(0) + model.reads(1) + model.reads(2), 0);
    return code;
  };
  EXPECT_EQ(refused([](TestModel& m, auto&, auto&) { m.part(1).offset += 4; }), Code::CALL_ALIGN);
  EXPECT_EQ(refused([](TestModel& m, auto&, auto&) { m.part(1).offset += 256; }), Code::CALL_SHAPE);
  EXPECT_EQ(refused([](TestModel& m, auto&, auto&) { m.desc(0).extent_bytes += 1; }), Code::CALL_ALIGN);
  EXPECT_EQ(refused([](TestModel&, auto& a, auto&) { a.slot_bytes -= 256; }), Code::CALL_VALUE);
  EXPECT_EQ(refused([](TestModel&, auto&, auto& v) { v[0].block = 3; }), Code::CALL_VALUE);
  EXPECT_EQ(refused([](TestModel&, auto&, auto& v) { v[1].slot = 2; }), Code::CALL_VALUE);
  EXPECT_EQ(refused([](TestModel&, auto&, auto& v) { v[1].block = 2; }), Code::CALL_VALUE);
  EXPECT_EQ(refused([](TestModel&, auto& a, auto&) { a.read = nullptr; }), Code::CALL_NULL);
  EXPECT_EQ(refused([](TestModel& m, auto& a, auto&) { a.budget_bytes = 3 * m.extent() - 1; }), Code::GPU_OOM);
}

TEST(Stream, FailedAllocationsGiveEverythingBack_SQ_STR_038_053) {
  for (std::int64_t k = 0; k < 2; ++k) {
    TestModel model(3, {2});
    CountingAllocator memory;
    Watch watch;
    {
      const Context context = watched_context(watch, memory.table());
      const std::vector<sq_visit> visits = {{0, 0}, {1, 1}};
      const std::vector<sq_schedule> schedules = {schedule(visits)};
      auto args = model.open_args(2, schedules);
      args.keep_host_master = 1;
      args.budget_bytes = 3 * model.extent();
      memory.fail_at(k);
      EXPECT_EQ(code_of([&] { StreamSession session(context, args); }), k == 0 ? Code::GPU_OOM : Code::HOST_OOM);
      EXPECT_EQ(memory.live(), 0u);
      memory.fail_at(-1);
      StreamSession session(context, args);
      const std::int64_t opened = memory.calls();
      EXPECT_EQ(memory.now(SQ_MEM_DEVICE), 3 * model.extent());
      walk(session, context, model, visits);
      walk(session, context, model, visits);
      EXPECT_EQ(memory.calls(), opened) << "allocated after open";
    }
    EXPECT_EQ(memory.live(), 0u);
  }
}

TEST(Stream, AResidentThatCannotBeReadFailsTheOpening) {
  TestModel model(2, {1});
  CountingAllocator memory;
  Watch watch;
  const Context context = watched_context(watch, memory.table());
  const std::vector<sq_visit> visits = {{0, 0}};
  const std::vector<sq_schedule> schedules = {schedule(visits)};
  model.set_fault({1, 0, 1});
  EXPECT_EQ(code_of([&] { StreamSession session(context, model.open_args(1, schedules)); }), Code::IO_SHORT_READ);
  EXPECT_EQ(memory.live(), 0u);
  EXPECT_EQ(watch.failures(), 1);
  EXPECT_EQ(watch.violations(), 0);
}

TEST(Stream, LeasedWeightsGiveTheSameBits_SQ_STR_046) {
  TestModel model(4);
  const Context context = make_context();
  Buffer x(SQ_F32, {5, kIn}), streamed(SQ_F32, {5, kOut}), direct(SQ_F32, {5, kOut});
  for (std::int64_t i = 0; i < x.size(); ++i) x.set(i, std::sin(static_cast<double>(i)));
  for (std::uint32_t slots = 1; slots <= 4; ++slots) {
    const auto visits = sawtooth(4, slots);
    const std::vector<sq_schedule> schedules = {schedule(visits)};
    auto open = model.open_args(slots, schedules);
    open.poison_slots = 1;
    StreamSession session(context, open);
    session.begin_step(0);
    for (const sq_visit v : visits) {
      Lease lease(session, v.block);
      auto args = sized<sq_linear_forward_args>();
      const sq_weight_ref leased = lease.layer(0);
      args.weight = &leased;
      args.x = x.tensor();
      args.y = streamed.tensor();
      call(context.linear().linear_forward, context, args);
      const std::vector<sq_part> parts = {{"qweight", make_tensor(model.bytes(v.block).data(), SQ_I8, {kOut, kIn})},
                                          {"scale", make_tensor(model.bytes(v.block).data() + model.extent() - 256, SQ_F32, {kOut})}};
      sq_weight weight{sizeof(sq_weight), 2, "bp8_v2", "direct", kOut, kIn, parts.data()};
      auto ref = sized<sq_weight_ref>();
      ref.weight = &weight;
      args.weight = &ref;
      args.y = direct.tensor();
      call(context.linear().linear_forward, context, args);
      EXPECT_EQ(streamed.bytes(), direct.bytes());
    }
    session.end_step();
    auto m = sized<sq_step_metrics>();
    sq_error e = make_error();
    check(context.telemetry().last_step(context.get(), session.id(), &m, &e), e);
    EXPECT_EQ(m.launches, static_cast<std::int64_t>(visits.size()));
  }
}

RC_GTEST_PROP(Stream, RandomSchedulesFaultsAndDelays_SQ_STR_013_040, ()) {
  const auto blocks = *rc::gen::inRange<std::uint32_t>(1, 7);
  const auto slots = *rc::gen::inRange<std::uint32_t>(1, 5);
  std::vector<std::vector<sq_visit>> lists(2);
  for (auto& list : lists) {
    const auto count = *rc::gen::inRange(0, 14);
    for (int i = 0; i < count; ++i) list.push_back({*rc::gen::inRange<std::uint32_t>(0, blocks), *rc::gen::inRange<std::uint32_t>(0, slots)});
  }
  TestModel model(blocks);
  model.set_delay(std::chrono::microseconds(*rc::gen::element(0, 0, 200)));
  model.set_fault({*rc::gen::inRange<std::uint32_t>(0, blocks), *rc::gen::inRange<std::int64_t>(0, 3), *rc::gen::inRange<std::int64_t>(0, 3)});
  Watch watch;
  CountingAllocator memory;
  {
    const Context context = watched_context(watch, memory.table());
    const auto lookahead = *rc::gen::element<std::uint32_t>(0, 1, 3, 0xFFFFFFFFu);
    const std::vector<sq_schedule> schedules = {schedule(lists[0], lookahead), schedule(lists[1], lookahead)};
    auto args = model.open_args(slots, schedules);
    args.poison_slots = 1;
    args.keep_host_master = *rc::gen::element(0u, 1u);
    StreamSession session(context, args);
    for (int pass = 0; pass < 4; ++pass) {
      const auto& visits = lists[static_cast<std::size_t>(pass % 2)];
      const auto stop = *rc::gen::inRange<std::size_t>(0, visits.size() + 1);
      session.begin_step(static_cast<std::uint32_t>(pass % 2));
      std::size_t done = 0;
      for (; done < stop; ++done) {
        for (;;) {
          try {
            Lease lease(session, visits[done].block);
            expect_bytes(lease, context, model, visits[done].block);
            break;
          } catch (const Error& e) {
            RC_ASSERT(e.code() == Code::IO_SHORT_READ);
          }
        }
      }
      session.end_step(done < visits.size());
    }
  }
  RC_ASSERT(watch.violations() == 0);
  RC_ASSERT(watch.all_unloaded());
  RC_ASSERT(memory.live() == 0u);
}

}  // namespace
}  // namespace squareq::test
