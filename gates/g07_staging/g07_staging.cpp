// Gate 7: bytes on their way from the source into a slot. Nothing is read twice, nothing is filled in, nothing stale is served.
#include <chrono>
#include <set>
#include <thread>

#include "gates/harness/linear_cases.hpp"
#include "gates/harness/registry.hpp"
#include "gates/harness/stream.hpp"
#include "gates/harness/transitions.hpp"

namespace squareq::gates {
namespace {

/// One block is twenty times as large as another.
const BlockShapes mixed = {{{8, 64}}, {{200, 130}, {64, 200}}, {{33, 70}, {1, 33}}, {{120, 64}}, {{40, 100}, {100, 40}}};

/// Every byte of an extent is asked for exactly once per load, in whatever pieces.
void run_reads_once(Trial& trial) {
  Streamed streamed(trial, mixed, {.slots = 2}, {2});
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), streamed.args());
  for (int pass = 0; pass < 2; ++pass) {
    pass_over(session, streamed.visits, [](const Lease&, std::uint32_t) {});
  }
  std::vector<std::vector<std::uint64_t>> asked(streamed.blocks.count());  // per block: how often each 256-byte piece was delivered
  for (std::uint32_t b = 0; b < streamed.blocks.count(); ++b) asked[b].assign(streamed.blocks.descriptions()[b].extent_bytes, 0);
  for (const Read& r : streamed.blocks.reads()) {
    require(r.offset + r.bytes <= asked[r.block].size(), "a read of " + std::to_string(r.bytes) + " bytes at " + std::to_string(r.offset) + " leaves the extent of " + std::to_string(asked[r.block].size()));
    for (std::uint64_t i = 0; i < r.bytes; ++i) ++asked[r.block][r.offset + i];
  }
  std::uint64_t loads = 0;
  for (std::uint32_t b = 0; b < streamed.blocks.count(); ++b) {
    const std::set<std::uint64_t> counts(asked[b].begin(), asked[b].end());
    require(counts.size() == 1, "block " + std::to_string(b) + ": some bytes were asked for more often than others");
    require(b != 2 || *counts.begin() == 1, "the resident block was read " + std::to_string(*counts.begin()) + " times");
    if (b != 2) loads += *counts.begin();
  }
  require(loads == session.stats().loads, std::to_string(loads) + " whole extents were read, " + std::to_string(session.stats().loads) + " loads are reported");
}

/// Staged bytes give the reference dequantization bit for bit, padding dropped, in every output dtype.
void run_dequantized(Trial& trial, std::int32_t dtype) {
  Streamed streamed(trial, mixed, {.slots = 2});
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), streamed.args());
  pass_over(session, streamed.visits, [&](const Lease& lease, std::uint32_t block) {
    for (std::uint32_t i = 0; i < streamed.blocks.layers(block); ++i) {
      const Layer& layer = streamed.blocks.layer(block, i);
      same_bits(layer.name, dequantize(instance, lease.layer(i), layer.n, layer.k, dtype), dequantized(layer, dtype));
    }
  });
}

/// While a lease is held the loader fills the other slots, each poisoned first: the leased bytes stay what they are.
void run_leased_bytes_stay(Trial& trial) {
  Streamed streamed(trial, mixed, {.slots = 2, .lookahead = 4});
  streamed.blocks.delay_us = 3000;
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), streamed.args());
  for (int pass = 0; pass < 2; ++pass) {
    pass_over(session, streamed.visits, [&](const Lease& lease, std::uint32_t block) {
      for (int look = 0; look < 3; ++look) {
        check_leased(instance, lease, streamed.blocks, block);
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
  }
}

/// A failed read reaches acquire with its own code and message, leases nothing, ends in `unloaded`, and the block can be tried again.
void run_failed_read(Trial& trial, sq_status code) {
  Streamed streamed(trial, mixed, {.slots = 2});
  Transitions transitions;
  Instance& instance = trial.instance("stream", transitions.host());
  {
    StreamSession session(instance.context(), streamed.args());
    const sq_stream_group& stream = instance.stream();
    streamed.blocks.fail_code = code;
    streamed.blocks.failing_block = 3;
    session.begin_step(0);
    for (const std::uint32_t b : {0u, 1u, 2u}) Lease lease(session, b);
    for (int attempt = 0; attempt < 2; ++attempt) {
      sq_lease lease = 0xABCD;
      const sq_error e = call_refused("acquire of a block whose read fails", {static_cast<Code>(code)}, {}, [&](sq_error* error) { return stream.acquire(instance.get(), session.id(), 3, nullptr, &lease, error); });
      must_name("acquire of a block whose read fails", e, {"the suite made the read of block 3 fail", "blocks.3"});
      require(lease == 0xABCD || lease == 0, "a failed acquire gave a lease");
      require(transitions.state(session.id(), 3) == SQ_UNLOADED, "a block whose load failed is " + residency_name(transitions.state(session.id(), 3)));
    }
    streamed.blocks.failing_block = -1;
    for (std::size_t v = 3; v < streamed.visits.size(); ++v) {
      const Lease lease(session, streamed.visits[v].block);
      check_leased(instance, lease, streamed.blocks, streamed.visits[v].block);
    }
    session.end_step();
    const sq_stream_stats stats = session.stats();
    require(stats.loads == loads_of(streamed.visits, 2, 1), "failed loads are counted as loads: " + std::to_string(stats.loads) + " instead of " + std::to_string(loads_of(streamed.visits, 2, 1)));
  }
  transitions.check(true);
}

/// Whichever read of a pass fails, the pass goes on after a second try and every byte is right.
void run_every_failing_read(Trial& trial) {
  Streamed streamed(trial, mixed, {.slots = 2, .lookahead = 2});
  Instance& instance = trial.instance("stream");
  int failed = 0;
  for (std::int64_t k = 0; k < 40; ++k) {
    StreamSession session(instance.context(), streamed.args());
    streamed.blocks.failing_read = k;
    session.begin_step(0);
    bool seen = false;
    for (const sq_visit& v : streamed.visits) {
      std::optional<Lease> lease;
      try {
        lease.emplace(session, v.block);
      } catch (const Error& e) {
        require(!seen && e.code() == Code::IO_ERROR, "read " + std::to_string(k) + " failing: " + std::string(code_name(e.code())) + ": " + e.what());
        seen = true;
        lease.emplace(session, v.block);
      }
      check_leased(instance, *lease, streamed.blocks, v.block);
    }
    session.end_step();
    const bool done = streamed.blocks.failing_read >= 0;  // the pass has fewer reads
    streamed.blocks.failing_read = -1;
    require(seen != done, "read " + std::to_string(k) + " failed and nobody was told");
    failed += seen;
    if (done) break;
  }
  require(failed >= 8, "a pass with " + std::to_string(loads_of(streamed.visits, 2, 1)) + " loads made " + std::to_string(failed) + " reads");
}

/// A resident that cannot be read fails open with the callback's code; nothing is held.
void run_resident_unreadable(Trial& trial) {
  Streamed streamed(trial, mixed, {.slots = 2}, {4});
  streamed.blocks.failing_block = 4;
  Transitions transitions;
  Instance& instance = trial.instance("stream", transitions.host());
  const std::uint64_t held = instance.meter().held();
  const sq_stream_open_args args = streamed.args();
  std::uint64_t id = 0;
  const sq_error e = call_refused("open with an unreadable resident", {Code::IO_ERROR}, {}, [&](sq_error* error) { return instance.stream().open(instance.get(), &args, &id, error); });
  must_name("open with an unreadable resident", e, {"blocks.4"});
  require(instance.meter().held() == held, "memory is held after a refused open");
  transitions.check(true);
  streamed.blocks.failing_block = -1;
  StreamSession session(instance.context(), args);
  const Lease lease(session, 4);
  check_leased(instance, lease, streamed.blocks, 4);
}

/// The adapter is the caller's: after it changed, and after the block was staged again, the branch is that of the new values.
void run_adapter_update(Trial& trial) {
  Random random = trial.random("data");
  Blocks blocks(random_blocks(random, {{{40, 70}}, {{70, 40}}, {{40, 70}}, {{70, 40}}}));
  const std::vector<sq_visit> visits = ring(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2}));
  std::vector<std::unique_ptr<Problem>> problems;
  for (std::uint32_t b = 0; b < blocks.count(); ++b) {
    const Layer& layer = blocks.layer(b, 0);
    Problem& p = *problems.emplace_back(std::make_unique<Problem>(3, Layer(layer.name, layer.n, layer.k, 64, false), SQ_F32));
    fill(p, random, {.rank = 4});
    p.layer.qweight.set_bytes(layer.qweight.bytes());
    p.layer.scale.set_bytes(layer.scale.bytes());
  }
  for (int step = 0; step < 3; ++step) {
    pass_over(session, visits, [&](const Lease& lease, std::uint32_t block) {
      const sq_weight_ref ref = lease.layer(0);
      Problem& p = *problems[block];
      const ForwardOutputs leased = forward(instance, p, {}, &ref);
      compare(trial, leased.y, oracle_forward(p).y);
      // The optimizer steps in place: the same memory, other values.
      p.adapter->a_t.fill([&] { return random.normal(); });
      p.adapter->b_t.fill([&] { return random.normal(); });
    });
  }
}

/// After its session closed, no block is anywhere.
void all_unloaded(const Transitions& transitions, std::uint64_t session, const Blocks& blocks) {
  for (std::uint32_t b = 0; b < blocks.count(); ++b)
    require(transitions.state(session, b) == SQ_UNLOADED, "after close block " + std::to_string(b) + " is " + residency_name(transitions.state(session, b)));
}

/// A life without failures takes only the eight edges of normal work, each from where the last ended; a leased block is gpu_ready; closing
/// leaves everything unloaded.
void run_transitions(Trial& trial, bool host_master) {
  Streamed streamed(trial, mixed, {.slots = 2, .lookahead = 2, .host_master = host_master}, {1});
  streamed.blocks.delay_us = 300;
  Transitions transitions;
  Instance& instance = trial.instance("stream", transitions.host());
  std::uint64_t id = 0;
  {
    StreamSession session(instance.context(), streamed.args());
    id = session.id();
    const auto ready = [&](std::uint32_t block) {
      require(transitions.state(id, block) == SQ_GPU_READY, "leased block " + std::to_string(block) + " is " + residency_name(transitions.state(id, block)));
    };
    for (int pass = 0; pass < 3; ++pass) {
      pass_over(session, streamed.visits, [&](const Lease&, std::uint32_t block) {
        const Lease resident(session, 1);
        ready(block);
        std::this_thread::sleep_for(std::chrono::microseconds(400));
        ready(block);
        ready(1);
      });
    }
    const std::uint64_t loads = session.stats().loads;
    std::uint64_t arrived = 0;
    for (const Transitions::Entry& e : transitions.entries()) arrived += e.session == id && e.block != 1 && e.to == SQ_GPU_READY;
    require(arrived == loads, std::to_string(arrived) + " blocks became gpu_ready, " + std::to_string(loads) + " loads are reported");
  }
  all_unloaded(transitions, id, streamed.blocks);
  // A block that is staged when its session closes never leaves the device: that is a cancellation (host_staged -> unloaded).
  transitions.check(host_master);
  require(instance.meter().held(SQ_MEM_DEVICE) == 0 && instance.meter().held(SQ_MEM_HOST) == 0, "memory is held after close");
}

/// An abandoned pass cancels what is under way, reports it by the edges of cancellation, and frees the slots.
void run_cancelled(Trial& trial) {
  Streamed streamed(trial, mixed, {.slots = 3, .lookahead = 3});
  streamed.blocks.delay_us = 2000;
  Transitions transitions;
  Instance& instance = trial.instance("stream", transitions.host());
  std::uint64_t id = 0;
  {
    StreamSession session(instance.context(), streamed.args());
    id = session.id();
    for (std::size_t stop = 0; stop < streamed.visits.size(); ++stop) {
      session.begin_step(0);
      for (std::size_t v = 0; v < stop; ++v) Lease lease(session, streamed.visits[v].block);
      session.end_step(true);
      transitions.check(true);
    }
    pass_over(session, streamed.visits, [&](const Lease& lease, std::uint32_t block) { check_leased(instance, lease, streamed.blocks, block); });
  }
  transitions.check(true);
  all_unloaded(transitions, id, streamed.blocks);
}

}  // namespace

void add_g07_staging(Cases& cases) {
  const std::vector<std::string> needs = {"stream"}, computes = {"stream", "linear", "operation:dequantize", "operation:linear_forward"};
  cases.push_back({7, "staging.reads_once", Kind::property, {"SQ-STR-001"}, needs, "bytes read twice, or never", run_reads_once});
  for (const auto& [dtype, name] : activation_dtypes)
    cases.push_back({7, std::string("staging.dequantized.") + name, Kind::vector, {"SQ-STR-040", "SQ-QNT-011", "SQ-QNT-012", "SQ-QNT-013"}, computes,
                     "payload without its scales, padding columns kept, double rounding", [dtype = dtype](Trial& t) { run_dequantized(t, dtype); }});
  cases.push_back({7, "staging.leased_bytes_stay", Kind::property, {"SQ-STR-040"}, computes, "a slot filled while it is leased", run_leased_bytes_stay});
  cases.push_back({7, "staging.failed_read.io_error", Kind::vector, {"SQ-STR-050", "SQ-STR-051", "SQ-STR-052", "SQ-STR-012"}, computes, "zeros for what could not be read; a lost cause", [](Trial& t) { run_failed_read(t, SQ_IO_ERROR); }});
  cases.push_back({7, "staging.failed_read.checksum", Kind::vector, {"SQ-STR-050", "SQ-STR-051", "SQ-STR-052", "SQ-FMT-084"}, computes, "every failure called an I/O error", [](Trial& t) { run_failed_read(t, SQ_DT_CHECKSUM); }});
  cases.push_back({7, "staging.every_failing_read", Kind::property, {"SQ-STR-051", "SQ-STR-052"}, computes, "a failure during prefetch that is forgotten", run_every_failing_read});
  cases.push_back({7, "staging.resident_unreadable", Kind::vector, {"SQ-STR-052", "SQ-CNV-003"}, computes, "a resident of zeros", run_resident_unreadable});
  cases.push_back({7, "staging.adapter_update", Kind::property, {"SQ-LOR-001", "SQ-LOR-003"}, {"stream", "linear", "lora", "operation:linear_forward"}, "a branch restaged from a write-once cache", run_adapter_update});
  cases.push_back({7, "staging.transitions", Kind::property, {"SQ-STR-011", "SQ-STR-013", "SQ-STR-014", "SQ-STR-015"}, needs, "a block lent out before it is ready, evicted while in use, or forgotten", [](Trial& t) { run_transitions(t, false); }});
  cases.push_back({7, "staging.transitions_host_master", Kind::property, {"SQ-STR-011", "SQ-STR-013", "SQ-STR-014", "SQ-STR-015"}, needs, "states that only hold without masters", [](Trial& t) { run_transitions(t, true); }});
  cases.push_back({7, "staging.cancelled", Kind::property, {"SQ-STR-012", "SQ-STR-045"}, computes, "a cancelled load that keeps its slot or its state", run_cancelled});
}

}  // namespace squareq::gates
