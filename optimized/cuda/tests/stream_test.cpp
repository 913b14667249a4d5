// The stream engine on a device (SQ-STR-047 above all): bytes at every budget, hazards between streams, faults, refusals, memory, telemetry (spec/60-streaming.md).
//
// A slot is read by the test through a copy queued on the stream of the lease: it sees what a kernel queued there would see. Streams are held up
// by host functions, so that an ordering that is missing is a difference and not a chance.
#include <cstdlib>
#include <memory>
#include <set>

#include "optimized/cuda/tests/stream_model.hpp"

namespace squareq::cuda_tests {
namespace {

class Stream : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto description = nlohmann::json::parse(cuda_backend().describe());
    if (!description.at("usable").get<bool>()) GTEST_SKIP() << "not run: " << description.at("reason").get<std::string>();
    unsetenv("SQUAREQ_CUDA_FAULT");
    unsetenv("SQUAREQ_CUDA_COPY_DELAY_MS");
  }

  Context open(const char* backend = "cuda", const sq_allocator* allocator = nullptr) {
    auto host = sized<sq_host>();
    host.device = {SQ_CUDA, 0};
    host.allocator = allocator;
    host.user = &watch_;
    host.on_transition = Watch::on_transition;
    return Context(Implementation::load(find_backend(backend)), host);
  }

  /// One pass; every block is looked at on `stream` while it is leased. Returns the visits that saw other bytes than the source's.
  std::set<std::size_t> walk(StreamSession& session, Model& model, const std::vector<sq_visit>& visits, TestStream& stream, int hold_up_ms = 0) {
    std::vector<std::unique_ptr<Seen>> seen;
    session.begin_step(0);
    for (const sq_visit& v : visits) {
      Lease lease(session, v.block, stream.stream);
      if (hold_up_ms) stream.delay(hold_up_ms);
      seen.push_back(std::make_unique<Seen>(lease, session.context(), model.extent(), stream.stream));
    }
    session.end_step();
    REQUIRE_CUDA(cudaStreamSynchronize(stream.stream));
    std::set<std::size_t> wrong;
    for (std::size_t i = 0; i < visits.size(); ++i)
      if (!seen[i]->equals(model.bytes(visits[i].block))) wrong.insert(i);
    return wrong;
  }

  sq_step_metrics metrics(const StreamSession& session) {
    auto m = sized<sq_step_metrics>();
    sq_error e = make_error();
    check(session.context().telemetry().last_step(session.context().get(), session.id(), &m, &e), e);
    return m;
  }

  Watch watch_;
};

TEST_F(Stream, BytesAndLoadsAtEveryBudget_SQ_STR_022_026_033_040) {
  TestStream stream;
  for (const std::uint32_t n : {1u, 5u, 8u})
    for (std::uint32_t c = 1; c <= n; ++c)
      for (const std::uint32_t master : {0u, 1u}) {
        Model model(n);
        StreamAllocator memory;
        const Context context = open("cuda", memory.table());
        const auto visits = ring(n, c);
        const std::vector<sq_schedule> schedules = {schedule(visits)};
        auto args = model.open_args(c, schedules);
        args.keep_host_master = master;
        args.budget_bytes = c * model.extent();
        {
          StreamSession session(context, args);
          EXPECT_TRUE(walk(session, model, visits, stream).empty());
          const auto first = session.stats();
          for (int pass = 0; pass < 3; ++pass) EXPECT_TRUE(walk(session, model, visits, stream).empty()) << n << " blocks, " << c << " slots, master " << master;
          const auto s = session.stats();
          const std::uint64_t loads = c >= n ? 0 : 2 * n - 2 * c;
          EXPECT_EQ(s.loads - first.loads, 3 * loads);
          EXPECT_EQ(s.hits + s.misses, 4u * visits.size());
          EXPECT_EQ(s.device_bytes, c * model.extent());
          EXPECT_EQ(memory.live[SQ_MEM_DEVICE], static_cast<std::int64_t>(c * model.extent()));
          EXPECT_EQ(memory.live[SQ_MEM_HOST_PINNED], static_cast<std::int64_t>((master ? n : 2) * model.extent())) << "the master, or two windows";
          EXPECT_EQ(s.host_bytes, static_cast<std::uint64_t>(memory.live[SQ_MEM_HOST_PINNED]));
          if (master) {
            EXPECT_EQ(model.reads, static_cast<std::int64_t>(n)) << "read once into the master";
          }
          const auto m = metrics(session);
          EXPECT_EQ(m.step, 3);
          EXPECT_EQ(m.h2d_bytes, static_cast<std::int64_t>(loads * model.extent()));
          EXPECT_EQ(m.prefetch_hits + m.prefetch_misses, static_cast<std::int64_t>(visits.size()));
          EXPECT_EQ(m.disk_read_bytes, master ? 0 : m.h2d_bytes);
          EXPECT_EQ(m.pinned_bytes, memory.live[SQ_MEM_HOST_PINNED]);
          EXPECT_EQ(m.copy_time_ms > 0, loads > 0);
        }
        EXPECT_EQ(memory.live_bytes(), 0);
      }
  EXPECT_EQ(watch_.violations(), 0);
  EXPECT_EQ(watch_.failures(), 0);
  EXPECT_TRUE(watch_.all_unloaded());
}

/// The two ways in which a slot can be seen wrong, made certain: copies that come late, and readers that come late.
std::size_t hazards(Context context, int copy_delay_ms, int reader_delay_ms) {
  Model model(5);
  TestStream stream;
  const auto visits = ring(5, 2);
  const std::vector<sq_schedule> schedules = {schedule(visits, 3)};
  auto args = model.open_args(2, schedules);
  args.keep_host_master = 1;
  StreamSession session(context, args);
  std::size_t wrong = 0;
  for (int pass = 0; pass < 2; ++pass) {
    if (copy_delay_ms) setenv("SQUAREQ_CUDA_COPY_DELAY_MS", std::to_string(copy_delay_ms).c_str(), 1);
    std::vector<std::unique_ptr<Seen>> seen;
    session.begin_step(0);
    for (const sq_visit& v : visits) {
      Lease lease(session, v.block, stream.stream);
      if (reader_delay_ms) stream.delay(reader_delay_ms);
      seen.push_back(std::make_unique<Seen>(lease, context, model.extent(), stream.stream));
    }
    session.end_step();
    if (cudaStreamSynchronize(stream.stream) != cudaSuccess) throw std::runtime_error("the stream failed");
    for (std::size_t i = 0; i < visits.size(); ++i) wrong += seen[i]->equals(model.bytes(visits[i].block)) ? 0 : 1;
    unsetenv("SQUAREQ_CUDA_COPY_DELAY_MS");
  }
  return wrong;
}

TEST_F(Stream, LateCopiesAndLateReadersSeeTheRightBytes_SQ_STR_040_047) {
  EXPECT_EQ(hazards(open("cuda"), 0, 4), 0u);
  EXPECT_EQ(hazards(open("cuda_faulty"), 4, 0), 0u);
  EXPECT_EQ(hazards(open("cuda_faulty"), 0, 4), 0u);
  EXPECT_EQ(hazards(open("cuda_faulty"), 3, 3), 0u);
  EXPECT_EQ(watch_.violations(), 0);
}

TEST_F(Stream, EveryMutantOfTheOrderingIsKilled) {
  const struct {
    const char* name;
    int copy_delay_ms, reader_delay_ms;
  } mutants[] = {{"no_ready_wait", 6, 0}, {"wrong_ready_stream", 6, 0}, {"no_free_wait", 0, 6}, {"wrong_free_stream", 0, 6}, {"slot_off_by_one", 0, 0}};
  for (const auto& mutant : mutants) {
    setenv("SQUAREQ_CUDA_FAULT", mutant.name, 1);
    EXPECT_GT(hazards(open("cuda_faulty"), mutant.copy_delay_ms, mutant.reader_delay_ms), 0u) << mutant.name << " survived";
    unsetenv("SQUAREQ_CUDA_FAULT");
  }
}

TEST_F(Stream, AReusedSlotIsPoisonedUntilItsCopyArrives) {
  Model model(2);
  TestStream stream, side;
  const std::vector<sq_visit> visits = {{0, 0}, {1, 0}};
  const std::vector<sq_schedule> schedules = {schedule(visits, 0)};
  const auto in_between = [&](const char* fault) {  // what the slot holds while the second block's copy is held up
    if (fault) setenv("SQUAREQ_CUDA_FAULT", fault, 1);
    const Context context = open("cuda_faulty");
    auto args = model.open_args(1, schedules);
    args.keep_host_master = 1;
    StreamSession session(context, args);
    session.begin_step(0);
    void* place = nullptr;
    {
      Lease lease(session, 0, stream.stream);
      place = Seen(lease, context, model.extent(), stream.stream).place();
      REQUIRE_CUDA(cudaStreamSynchronize(stream.stream));
    }
    setenv("SQUAREQ_CUDA_COPY_DELAY_MS", "60", 1);
    Lease lease(session, 1, stream.stream);
    unsetenv("SQUAREQ_CUDA_COPY_DELAY_MS");
    std::this_thread::sleep_for(std::chrono::milliseconds(15));  // the poison is there, the copy waits
    std::vector<unsigned char> now(model.extent());
    REQUIRE_CUDA(cudaMemcpyAsync(now.data(), place, now.size(), cudaMemcpyDeviceToHost, side.stream));
    REQUIRE_CUDA(cudaStreamSynchronize(side.stream));
    lease.release();
    session.end_step();
    unsetenv("SQUAREQ_CUDA_FAULT");
    return now;
  };
  EXPECT_EQ(in_between(nullptr), std::vector<unsigned char>(model.extent(), 0xA5));
  EXPECT_EQ(in_between("no_poison"), model.bytes(0)) << "the mutant without poison must be told apart";
}

TEST_F(Stream, CopiesRunWhileTheVisitBeforeComputes_SQ_STR_024) {
  Model model(4);
  TestStream stream;
  const Context context = open();
  const auto visits = ring(4, 2);
  const std::vector<sq_schedule> schedules = {schedule(visits)};
  auto args = model.open_args(2, schedules);
  args.keep_host_master = 1;
  StreamSession session(context, args);
  for (int pass = 0; pass < 2; ++pass) {
    session.begin_step(0);
    for (const sq_visit& v : visits) {
      Lease lease(session, v.block, stream.stream);
      std::this_thread::sleep_for(std::chrono::milliseconds(15));
    }
    session.end_step();
  }
  EXPECT_LE(session.stats().misses, 1u) << "only the first block of a cold pass is waited for";
  const auto m = metrics(session);
  EXPECT_EQ(m.stall_count, 0);
  EXPECT_GE(m.wall_ms, 8 * 15.0);
}

TEST_F(Stream, StallsAndSlotWaitsAreMeasuredOnTheDevice_SQ_TEL) {
  Model model(4);
  TestStream stream;
  const Context context = open("cuda_faulty");
  const auto visits = ring(4, 1);
  const std::vector<sq_schedule> schedules = {schedule(visits, 3)};
  auto args = model.open_args(1, schedules);
  args.keep_host_master = 1;
  StreamSession session(context, args);
  EXPECT_TRUE(walk(session, model, visits, stream).empty());
  setenv("SQUAREQ_CUDA_COPY_DELAY_MS", "5", 1);
  EXPECT_TRUE(walk(session, model, visits, stream).empty());  // the first and the last block of a pass with one slot meet: 6 loads
  unsetenv("SQUAREQ_CUDA_COPY_DELAY_MS");
  const auto m = metrics(session);
  EXPECT_EQ(m.h2d_bytes, static_cast<std::int64_t>(6 * model.extent()));
  EXPECT_GE(m.stall_time_ms, 6 * 4.5);
  EXPECT_LE(m.stall_time_ms, m.wall_ms + 1);
  EXPECT_GE(m.stall_count, 6);
  EXPECT_GT(m.copy_time_ms, 0);
  EXPECT_LT(m.copy_time_ms, 10) << "the time of the copies is not the time they were held up";
  EXPECT_GE(m.prefetch_misses, 6);
  EXPECT_LE(m.prefetch_misses, 7) << "the block of the turnaround may still be on its way when it is asked for again, and is not waited for twice";
}

TEST_F(Stream, AFailedReadIsToldAndRetried_SQ_STR_012_050_051_052) {
  for (const std::uint32_t master : {0u, 1u}) {
    Model model(4);
    TestStream stream;
    const Context context = open();
    const auto visits = ring(4, 2);
    const std::vector<sq_schedule> schedules = {schedule(visits)};
    auto args = model.open_args(2, schedules);
    args.keep_host_master = master;
    StreamSession session(context, args);
    const int failures = watch_.failures();
    model.failing_block = 2;
    model.failures_left = 2;
    session.begin_step(0);
    { Lease a(session, 0, stream.stream); }
    { Lease b(session, 1, stream.stream); }
    for (int attempt = 0; attempt < 2; ++attempt) {
      const Error e = error_of([&] { Lease c(session, 2, stream.stream); });
      EXPECT_EQ(e.code(), Code::IO_SHORT_READ);
      EXPECT_NE(std::string(e.what()).find("disk fell out at block 2"), std::string::npos) << e.what();
    }
    Lease(session, 2, stream.stream).release();
    session.end_step(true);
    EXPECT_TRUE(walk(session, model, visits, stream).empty());
    EXPECT_EQ(watch_.failures() - failures, 2);
  }
  EXPECT_EQ(watch_.violations(), 0);
  EXPECT_TRUE(watch_.all_unloaded());
}

TEST_F(Stream, AnAbandonedPassLeavesTheSessionReady_SQ_STR_045) {
  Model model(6);
  TestStream stream;
  model.delay_ms = 1;
  const auto visits = ring(6, 3);
  const std::vector<sq_schedule> schedules = {schedule(visits, 2)};
  {
    const Context context = open();
    StreamSession session(context, model.open_args(3, schedules));
    for (std::size_t stop = 0; stop < visits.size(); ++stop) {
      session.begin_step(0);
      for (std::size_t i = 0; i < stop; ++i) Lease lease(session, visits[i].block, stream.stream);
      Lease held(session, visits[stop].block, stream.stream);
      stream.delay(3);  // still reading when the pass is given up
      const Seen seen(held, context, model.extent(), stream.stream);
      session.end_step(true);
      EXPECT_EQ(error_of([&] { held.release(); }).code(), Code::CALL_STATE);
      REQUIRE_CUDA(cudaStreamSynchronize(stream.stream));
      EXPECT_TRUE(seen.equals(model.bytes(visits[stop].block)));
    }
    EXPECT_TRUE(walk(session, model, visits, stream).empty());
  }
  EXPECT_EQ(watch_.violations(), 0);
  EXPECT_TRUE(watch_.all_unloaded());
}

TEST_F(Stream, WrongOrderIsRefused_SQ_STR_041_042_043_044) {
  Model model(3);
  TestStream stream;
  const Context context = open();
  const std::vector<sq_visit> visits = {{0, 0}, {1, 0}, {2, 1}};
  const std::vector<sq_schedule> schedules = {schedule(visits, 8)};
  StreamSession session(context, model.open_args(2, schedules));
  const auto code = [](const auto& call) { return error_of(call).code(); };
  EXPECT_EQ(code([&] { metrics(session); }), Code::CALL_STATE) << "no pass has ended";
  EXPECT_EQ(code([&] { Lease l(session, 0, stream.stream); }), Code::CALL_STATE) << "outside a pass";
  EXPECT_EQ(code([&] { session.end_step(); }), Code::CALL_STATE);
  EXPECT_EQ(code([&] { session.begin_step(1); }), Code::CALL_VALUE);
  session.begin_step(0);
  EXPECT_EQ(code([&] { session.begin_step(0); }), Code::CALL_STATE);
  const Error order = error_of([&] { Lease l(session, 2, stream.stream); });
  EXPECT_EQ(order.code(), Code::CALL_STATE);
  EXPECT_NE(std::string(order.what()).find("blocks.2"), std::string::npos) << order.what();
  EXPECT_NE(std::string(order.what()).find("blocks.0"), std::string::npos) << order.what();
  Lease first(session, 0, stream.stream);
  EXPECT_EQ(code([&] { Lease l(session, 1, stream.stream); }), Code::CALL_STATE) << "slot 0 is leased";
  const sq_weight_ref ref = first.layer(0);
  first.release();
  sq_error e = make_error();
  auto weight = sized<sq_weight>();
  EXPECT_EQ(context.stream().lease_weight(context.get(), session.id(), ref.lease, 0, &weight, &e), SQ_CALL_STATE);
  EXPECT_EQ(context.stream().release(context.get(), session.id(), ref.lease, stream.stream, &e), SQ_CALL_STATE);
  DeviceBytes out(kOut * kIn * 4);
  const sq_tensor target = device_tensor(out, SQ_F32, {kOut, kIn});
  auto args = sized<sq_dequantize_args>();
  args.weight = &ref;
  args.out = &target;
  EXPECT_EQ(code([&] { call(context.linear().dequantize, context, args); }), Code::CALL_STATE);
  const Context other = open();
  EXPECT_EQ(code([&] { call(other.linear().dequantize, other, args); }), Code::CALL_STATE) << "a session of another context";
  EXPECT_EQ(code([&] { session.end_step(); }), Code::CALL_STATE) << "visits left";
  session.end_step(true);
}

TEST_F(Stream, AllocationsThatFailGiveEverythingBack_SQ_STR_037_038_053) {
  TestStream stream;
  for (std::int64_t k = 0; k < 3; ++k) {
    Model model(4, {2});
    StreamAllocator memory;
    const Context context = open("cuda", memory.table());
    const std::vector<sq_visit> visits = {{0, 0}, {1, 1}, {3, 0}};
    const std::vector<sq_schedule> schedules = {schedule(visits)};
    auto args = model.open_args(2, schedules);
    args.keep_host_master = 1;
    args.budget_bytes = 3 * model.extent() - 1;
    EXPECT_EQ(error_of([&] { StreamSession session(context, args); }).code(), Code::GPU_OOM);
    EXPECT_EQ(memory.calls, 0) << "allocated before the refusal";
    args.budget_bytes = 3 * model.extent();
    memory.fail_at = k;
    EXPECT_EQ(error_of([&] { StreamSession session(context, args); }).code(), k == 0 ? Code::GPU_OOM : Code::HOST_OOM) << "allocation " << k;
    EXPECT_EQ(memory.live_bytes(), 0);
    EXPECT_EQ(model.reads, 0) << "read before everything was there";
    memory.fail_at = -1;
    {
      StreamSession session(context, args);
      const std::int64_t opened = memory.calls;
      EXPECT_EQ(memory.live[SQ_MEM_DEVICE], static_cast<std::int64_t>(3 * model.extent()));
      EXPECT_EQ(memory.live[SQ_MEM_HOST_PINNED], static_cast<std::int64_t>(3 * model.extent())) << "the windows went with the residents' loading";
      EXPECT_TRUE(walk(session, model, visits, stream).empty());
      Lease resident(session, 2, stream.stream);
      const Seen seen(resident, context, model.extent(), stream.stream);
      REQUIRE_CUDA(cudaStreamSynchronize(stream.stream));
      EXPECT_TRUE(seen.equals(model.bytes(2)));
      EXPECT_TRUE(walk(session, model, visits, stream).empty());
      EXPECT_EQ(memory.calls, opened) << "allocated after open";
    }
    EXPECT_EQ(memory.live_bytes(), 0);
  }
}

TEST_F(Stream, MoreThanTheDeviceHasIsGpuOomAndTheContextStaysUsable) {
  Model model(2);
  TestStream stream;
  const Context context = open();
  const std::vector<sq_visit> visits = ring(2, 2);
  const std::vector<sq_schedule> schedules = {schedule(visits)};
  auto args = model.open_args(2, schedules);
  args.slot_bytes = std::uint64_t{1} << 42;
  EXPECT_EQ(error_of([&] { StreamSession session(context, args); }).code(), Code::GPU_OOM);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  args.slot_bytes = model.extent();
  StreamSession session(context, args);
  EXPECT_TRUE(walk(session, model, visits, stream).empty());
}

TEST_F(Stream, AHundredCyclesReturnToTheBaseline) {
  Model model(3, {1});
  TestStream stream;
  const Context context = open();
  const std::vector<sq_visit> visits = {{0, 0}, {2, 0}, {0, 0}};
  const std::vector<sq_schedule> schedules = {schedule(visits)};
  std::size_t baseline = 0, total = 0;
  for (int cycle = 0; cycle < 100; ++cycle) {
    {
      auto args = model.open_args(1, schedules);
      args.keep_host_master = cycle % 2;
      StreamSession session(context, args);
      ASSERT_TRUE(walk(session, model, visits, stream).empty()) << cycle;
    }
    std::size_t free = 0;
    REQUIRE_CUDA(cudaMemGetInfo(&free, &total));
    if (cycle == 4) baseline = free;
    if (cycle > 4) {
      ASSERT_EQ(free, baseline) << "cycle " << cycle;
    }
  }
  EXPECT_TRUE(watch_.all_unloaded());
}

TEST_F(Stream, TwoContextsOnTwoThreadsDoNotDisturbEachOther_SQ_CNV_004) {
  std::atomic<int> wrong{0};
  const auto train = [&](std::uint32_t slots) {
    Model model(6);
    TestStream stream;
    const Context context = open();
    const auto visits = ring(6, slots);
    const std::vector<sq_schedule> schedules = {schedule(visits, 2)};
    StreamSession session(context, model.open_args(slots, schedules));
    for (int pass = 0; pass < 20; ++pass) wrong += walk(session, model, visits, stream).empty() ? 0 : 1;
  };
  std::thread other([&] { train(3); });
  train(2);
  other.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(watch_.violations(), 0);
}

TEST_F(Stream, AnOperationReadsItsLeaseAndAZeroPointIsFoundWhileLoading_SQ_STR_046) {
  Model model(3);
  model.set_zero_point(2, 7, 0.5f);
  TestStream stream;
  const Context context = open();
  const std::vector<sq_visit> visits = {{0, 0}, {1, 0}, {2, 0}};
  const std::vector<sq_schedule> schedules = {schedule(visits)};
  StreamSession session(context, model.open_args(1, schedules));
  session.begin_step(0);
  for (const sq_visit& v : visits) {
    Lease lease(session, v.block, stream.stream);
    const sq_weight_ref ref = lease.layer(0);
    DeviceBytes out(kOut * kIn * 4);
    const sq_tensor target = device_tensor(out, SQ_F32, {kOut, kIn});
    auto args = sized<sq_dequantize_args>();
    args.stream = stream.stream;
    args.weight = &ref;
    args.out = &target;
    if (v.block == 2) {
      const Error e = error_of([&] { call(context.linear().dequantize, context, args); });
      EXPECT_EQ(e.code(), Code::DT_ZP_NONZERO);
      EXPECT_NE(std::string(e.what()).find("row 7"), std::string::npos) << e.what();
      continue;
    }
    call(context.linear().dequantize, context, args);
    REQUIRE_CUDA(cudaStreamSynchronize(stream.stream));
    const auto values = out.read<float>();
    for (std::int64_t i = 0; i < kOut * kIn; ++i) {
      const float scale = 0.01f * static_cast<float>(v.block * 100 + static_cast<std::uint32_t>(i / kIn) + 1);
      ASSERT_EQ(values[static_cast<std::size_t>(i)], static_cast<float>(model.bytes(v.block)[static_cast<std::size_t>(i)]) * scale);
    }
  }
  session.end_step();
  EXPECT_EQ(metrics(session).launches, 2);
}

}  // namespace
}  // namespace squareq::cuda_tests
