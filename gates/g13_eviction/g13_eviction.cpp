// Gate 13: a hundred cycles and more. Counters and memory come back to where they were, and no bit drifts.
#include <dirent.h>

#include <chrono>
#include <thread>

#include "gates/g09_end_to_end/training.hpp"
#include "gates/harness/registry.hpp"
#include "gates/harness/stream.hpp"

namespace squareq::gates {
namespace {

using namespace g09;

/// Entries of a folder of /proc about this process: threads, open files.
std::size_t count_of(const char* folder) {
  std::size_t count = 0;
  if (DIR* d = opendir(folder)) {
    while (readdir(d)) ++count;
    closedir(d);
  }
  return count;
}

std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> six_blocks() { return {{{24, 70}}, {{9, 64}, {5, 9}}, {{40, 33}}, {{24, 70}}, {{24, 128}}, {{3, 3}}}; }

/// 120 passes: loads as planned in each, nothing allocated, memory constant, every leased byte right, counters that add up.
void run_cycles(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(random_blocks(random, six_blocks()));
  const std::vector<sq_visit> visits = ring(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2}));
  std::vector<std::vector<std::byte>> first;
  const std::uint64_t device = instance.meter().held(SQ_MEM_DEVICE);
  std::uint64_t settled = 0, before = 0;
  std::size_t threads = 0, files = 0;
  constexpr int passes = 120;
  for (int pass = 0; pass < passes; ++pass) {
    session.begin_step(0);
    for (std::size_t v = 0; v < visits.size(); ++v) {
      const Lease lease(session, visits[v].block);
      const Layer& layer = blocks.layer(visits[v].block, 0);
      const Guarded out = dequantize(instance, lease.layer(0), layer.n, layer.k, SQ_F32);
      if (pass == 0) first.push_back(out.bytes());
      else same_bytes("visit " + std::to_string(v) + " of pass " + std::to_string(pass), out.bytes(), first[v]);
    }
    session.end_step();
    const sq_stream_stats stats = session.stats();
    require(instance.meter().held(SQ_MEM_DEVICE) == device && stats.device_bytes == device, "pass " + std::to_string(pass) + " changed the device memory held");
    const std::uint64_t loads = stats.loads - before;
    before = stats.loads;
    require(pass == 0 || loads == 2 * (6 - 2), "pass " + std::to_string(pass) + " makes " + std::to_string(loads) + " loads instead of 8");
    if (pass == 2) {
      settled = instance.meter().held();
      threads = count_of("/proc/self/task");
      files = count_of("/proc/self/fd");
    }
    if (pass > 2) require(instance.meter().held() == settled, "memory grew by pass " + std::to_string(pass));
  }
  require(count_of("/proc/self/task") == threads, "the number of threads changed over the passes");
  require(count_of("/proc/self/fd") == files, "the number of open files changed over the passes");
  const sq_stream_stats stats = session.stats();
  require(stats.steps == passes, "counts " + std::to_string(stats.steps) + " steps of 120");
  require(stats.hits + stats.misses == passes * visits.size(), "hits and misses are not the visits");
  require(stats.loads - stats.evictions == 2, std::to_string(stats.loads) + " loads and " + std::to_string(stats.evictions) + " evictions leave another number than the 2 blocks in the slots");
}

/// 100 sessions opened, used and closed: everything back each time.
void run_sessions(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(random_blocks(random, six_blocks()));
  blocks.set_resident(2, true);
  const std::vector<sq_visit> visits = ring(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  std::uint64_t held = 0;
  std::size_t threads = 0;
  for (int cycle = 0; cycle < 100; ++cycle) {
    {
      StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2, .host_master = cycle % 2 == 1}));
      session.begin_step(0);
      const std::size_t used = cycle % 3 == 0 ? visits.size() : static_cast<std::size_t>(cycle) % visits.size();
      for (std::size_t v = 0; v < used; ++v) {
        const Lease lease(session, visits[v].block);
        if (cycle % 10 == 0) check_leased(instance, lease, blocks, visits[v].block);
      }
      // Closed after a whole pass, after an abandoned one, and in the middle of one.
      if (used == visits.size()) session.end_step();
      else if (cycle % 2) session.end_step(true);
    }
    require(instance.meter().held(SQ_MEM_DEVICE) == 0 && instance.meter().held(SQ_MEM_HOST_PINNED) == 0, "cycle " + std::to_string(cycle) + " left weights behind");
    if (cycle == 20) {
      held = instance.meter().held();
      threads = count_of("/proc/self/task");
    }
    if (cycle > 20) require(instance.meter().held() == held, "memory grew by cycle " + std::to_string(cycle));
  }
  require(count_of("/proc/self/task") == threads, "threads of closed sessions are left");
}

/// The adapters belong to the caller: 100 passes of forwards and backwards without an optimizer step leave every bit, and give the same gradients.
void run_adapters_untouched(Trial& trial) {
  Model model(trial, std::vector<std::int64_t>{20, 64, 33});
  Instance& instance = trial.instance("stream");
  const std::vector<sq_visit> visits = ring(model.blocks, 1);
  const sq_schedule schedule = schedule_of(visits, 1);
  StreamSession session(instance.context(), open_args(model.blocks, schedule, {.slots = 1}));
  std::vector<StepTrace> first;
  for (int i = 0; i < 100; ++i) {
    TrainState state = model.start;  // the same adapters in every pass
    auto trace = train(instance, model, leased_source(session), state, 1);
    if (first.empty()) first = std::move(trace);
    else same_traces("pass " + std::to_string(i + 1) + " against the first", trace, first);
  }
}

/// Blocks leave and come back between the backwards that accumulate into one gradient: exactly the resident sum.
void run_accumulated(Trial& trial) {
  Random random = trial.random("data");
  Blocks blocks(random_blocks(random, {{{40, 70}}, {{70, 40}}, {{40, 70}}}));
  const std::vector<sq_visit> visits = ring(blocks, 1);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 1}));
  std::vector<std::unique_ptr<Problem>> problems;
  std::vector<BackwardOutputs> streamed(3), resident(3);
  for (std::uint32_t b = 0; b < 3; ++b) {
    const Layer& layer = blocks.layer(b, 0);
    Problem& p = *problems.emplace_back(std::make_unique<Problem>(4, Layer(layer.name, layer.n, layer.k, 64, false), SQ_F32));
    fill(p, random, {.rank = 3});
    p.layer.qweight.set_bytes(layer.qweight.bytes());
    p.layer.scale.set_bytes(layer.scale.bytes());
    for (BackwardOutputs* out : {&streamed[b], &resident[b]}) {
      out->da_t.emplace("da_t", Role::inout, SQ_F32, std::vector<std::int64_t>{3, layer.k});
      out->db_t.emplace("db_t", Role::inout, SQ_F32, std::vector<std::int64_t>{layer.n, 3});
    }
  }
  for (int batch = 0; batch < 4; ++batch) {
    session.begin_step(0);
    for (const sq_visit& v : visits) {
      const Lease lease(session, v.block);
      const sq_weight_ref ref = lease.layer(0);
      Problem& p = *problems[v.block];
      Guarded dy("dy", Role::in, SQ_F32, {4, p.layer.n});
      dy.fill([&] { return random.normal(); });
      const BackwardOutputs a = backward(instance, p, dy, nullptr, nullptr, {.accumulate = true}, &ref, &streamed[v.block]);
      const BackwardOutputs b = backward(instance, p, dy, nullptr, nullptr, {.accumulate = true}, nullptr, &resident[v.block]);
      same_bits(p.layer.name + ": dX", *a.dx, *b.dx);
    }
    session.end_step();
    for (std::uint32_t b = 0; b < 3; ++b) {
      same_bits("accumulated dA of block " + std::to_string(b), *streamed[b].da_t, *resident[b].da_t);
      same_bits("accumulated dB of block " + std::to_string(b), *streamed[b].db_t, *resident[b].db_t);
    }
  }
}

/// A lease pins its slot: a later visit of that slot is refused at once, naming both, and never served over the leased bytes.
void run_pinned(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(random_blocks(random, six_blocks()));
  const std::vector<sq_visit> visits = ring(blocks, 2);  // blocks 0 and 2 share slot 0
  const sq_schedule schedule = schedule_of(visits, 4);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2, .lookahead = 4}));
  const sq_stream_group& stream = instance.stream();
  session.begin_step(0);
  std::optional<Lease> kept(std::in_place, session, 0);
  { const Lease lease(session, 1); }
  sq_lease lease = 0;
  const auto start = std::chrono::steady_clock::now();
  const sq_error e = call_refused("acquire of a block whose slot is leased", {Code::CALL_STATE}, {}, [&](sq_error* error) { return stream.acquire(instance.get(), session.id(), 2, nullptr, &lease, error); });
  require(std::chrono::steady_clock::now() - start < std::chrono::seconds(5), "the refusal waited for the lease");
  must_name("acquire of a block whose slot is leased", e, {"blocks.2", "blocks.0"});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  check_leased(instance, *kept, blocks, 0);
  kept.reset();
  for (std::size_t v = 2; v < visits.size(); ++v) {
    const Lease next(session, visits[v].block);
    check_leased(instance, next, blocks, visits[v].block);
  }
  session.end_step();
}

/// A pass abandoned at every point, with and without a lease in hand: the next pass is whole and right.
void run_abandoned(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(random_blocks(random, six_blocks()));
  blocks.delay_us = 300;
  const std::vector<sq_visit> visits = ring(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 2);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2, .lookahead = 2}));
  const sq_stream_group& stream = instance.stream();
  for (std::size_t stop = 0; stop <= visits.size(); ++stop)
    for (const bool holding : {false, true}) {
      session.begin_step(0);
      sq_lease last = 0;
      for (std::size_t v = 0; v < stop; ++v) {
        call_ok("acquire", {}, [&](sq_error* e) { return stream.acquire(instance.get(), session.id(), visits[v].block, nullptr, &last, e); });
        if (v + 1 < stop || !holding) call_ok("release", {}, [&](sq_error* e) { return stream.release(instance.get(), session.id(), last, nullptr, e); });
      }
      session.end_step(true);
      if (stop && holding) call_refused("release of a lease that the abandoned pass gave up", {Code::CALL_STATE}, {}, [&](sq_error* e) { return stream.release(instance.get(), session.id(), last, nullptr, e); });
      session.begin_step(0);
      for (const sq_visit& v : visits) {
        const Lease lease(session, v.block);
        check_leased(instance, lease, blocks, v.block);
      }
      session.end_step();
    }
}

/// The wrong visit: another block, beyond the end, outside a pass. Both blocks are named and the pass goes on.
void run_visit_order(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(random_blocks(random, six_blocks()));
  const std::vector<sq_visit> visits = ring(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2}));
  const auto refuse = [&](const std::string& what, std::uint32_t block, std::initializer_list<Code> codes, std::initializer_list<std::string_view> names) {
    sq_lease lease = 0;
    const sq_error e = call_refused(what, codes, {}, [&](sq_error* error) { return instance.stream().acquire(instance.get(), session.id(), block, nullptr, &lease, error); });
    must_name(what, e, names);
    require(lease == 0, what + ": a lease was written");
  };
  refuse("acquire outside a pass", 0, {Code::CALL_STATE}, {"blocks.0"});
  session.begin_step(0);
  for (const sq_visit& v : visits) {
    for (std::uint32_t other = 0; other < blocks.count(); ++other)
      if (other != v.block) refuse("acquire of a block that is not next", other, {Code::CALL_STATE}, {"blocks." + std::to_string(other), "blocks." + std::to_string(v.block)});
    refuse("acquire of block 6 of 6", 6, {Code::CALL_VALUE, Code::CALL_STATE}, {"6"});
    const Lease lease(session, v.block);
    check_leased(instance, lease, blocks, v.block);
  }
  refuse("acquire after the last visit", 0, {Code::CALL_STATE}, {"blocks.0"});
  session.end_step();
}

/// A context destroyed with open sessions, passes and leases gives everything back (Trial::finish looks).
void run_destroyed_open(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(random_blocks(random, six_blocks()));
  blocks.delay_us = 2000;
  blocks.set_resident(5, true);
  const std::vector<sq_visit> visits = ring(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 2);
  for (int leases = 0; leases < 3; ++leases) {
    Instance& instance = trial.instance("stream");
    const sq_stream_open_args args = open_args(blocks, schedule, {.slots = 2, .lookahead = 2});
    std::uint64_t id = 0;
    sq_lease lease = 0;
    call_ok("open", {}, [&](sq_error* e) { return instance.stream().open(instance.get(), &args, &id, e); });
    call_ok("begin_step", {}, [&](sq_error* e) { return instance.stream().begin_step(instance.get(), id, 0, e); });
    if (leases > 0) call_ok("acquire", {}, [&](sq_error* e) { return instance.stream().acquire(instance.get(), id, 0, nullptr, &lease, e); });
    if (leases > 1) call_ok("acquire of the resident", {}, [&](sq_error* e) { return instance.stream().acquire(instance.get(), id, 5, nullptr, &lease, e); });
    instance.destroy();
    require(instance.meter().held() == 0, "destroying a context with an open pass leaves " + std::to_string(instance.meter().held()) + " bytes");
  }
}

}  // namespace

void add_g13_eviction(Cases& cases) {
  const std::vector<std::string> computes = {"stream", "linear", "operation:dequantize", "operation:linear_forward"};
  cases.push_back({13, "eviction.cycles", Kind::property, {"SQ-STR-038", "SQ-STR-022", "SQ-STR-040", "SQ-CNV-007"}, computes, "memory, threads or files that grow; counters that drift", run_cycles});
  cases.push_back({13, "eviction.sessions", Kind::property, {"SQ-STR-015", "SQ-CNV-007"}, computes, "slots or loaders left by a closed session", run_sessions});
  cases.push_back({13, "eviction.adapters_untouched", Kind::property, {"SQ-CNV-006", "SQ-STR-046", "SQ-NUM-004"}, {"stream", "linear", "lora", "operation:quantize", "operation:linear_forward", "operation:linear_backward"},
                   "adapters repacked with their block", run_adapters_untouched});
  cases.push_back({13, "eviction.accumulated_gradients", Kind::property, {"SQ-LOR-012", "SQ-STR-046"}, {"stream", "linear", "lora", "operation:linear_forward", "operation:linear_backward"}, "gradients lost when their block leaves", run_accumulated});
  cases.push_back({13, "eviction.leased_slot", Kind::vector, {"SQ-STR-042", "SQ-STR-040", "SQ-STR-025"}, computes, "a leased block evicted; a wait that never ends", run_pinned});
  cases.push_back({13, "eviction.abandoned", Kind::property, {"SQ-STR-045", "SQ-STR-043"}, computes, "a slot that an abandoned pass keeps", run_abandoned});
  cases.push_back({13, "eviction.visit_order", Kind::vector, {"SQ-STR-041", "SQ-ERR-007"}, computes, "a block served out of turn", run_visit_order});
  cases.push_back({13, "eviction.destroyed_open", Kind::property, {"SQ-CNV-007", "SQ-STR-015"}, {"stream"}, "memory or a thread that outlives its context", run_destroyed_open});
}

}  // namespace squareq::gates
