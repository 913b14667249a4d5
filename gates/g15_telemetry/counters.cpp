// Counters of a pass against events that the suite made happen.
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

#include "gates/g15_telemetry/g15_telemetry.hpp"
#include "gates/harness/stream.hpp"

namespace squareq::gates::g15 {
namespace {

const BlockShapes five = {{{24, 70}}, {{9, 64}, {5, 9}}, {{40, 33}}, {{24, 70}}, {{24, 128}}};

void same_count(const std::string& what, std::int64_t got, std::int64_t expected) {
  require(got == expected, what + " is " + std::to_string(got) + ", the events make it " + std::to_string(expected));
}

/// Loads, bytes, evictions, hits and misses of every pass, from the schedule alone.
void run_counts(Trial& trial, std::uint32_t slots, bool host_master) {
  Streamed streamed(trial, five, {.slots = slots, .host_master = host_master});
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), streamed.args());
  std::vector<std::int64_t> held(slots, -1);
  std::vector<bool> in_master(streamed.blocks.count(), false);
  sq_step_metrics sum{};
  for (int pass = 0; pass < 4; ++pass) {
    std::int64_t bytes = 0, evictions = 0, read = 0;
    for (const sq_visit& v : streamed.visits) {
      if (held[v.slot] == v.block) continue;
      const auto extent = static_cast<std::int64_t>(streamed.blocks.descriptions()[v.block].extent_bytes);
      bytes += extent;
      evictions += held[v.slot] >= 0;
      if (!host_master || !in_master[v.block]) read += extent;
      in_master[v.block] = true;
      held[v.slot] = v.block;
    }
    const std::uint64_t source = streamed.blocks.bytes_read;
    pass_over(session, streamed.visits, [](const Lease&, std::uint32_t) {});
    const sq_step_metrics m = last_step(instance, session.id());
    const std::string where = "pass " + std::to_string(pass) + ": ";
    same_count(where + "step", m.step, pass);
    same_count(where + "h2d_bytes", m.h2d_bytes, bytes);
    same_count(where + "evictions", m.evictions, evictions);
    same_count(where + "prefetch_hits + prefetch_misses", m.prefetch_hits + m.prefetch_misses, static_cast<std::int64_t>(streamed.visits.size()));
    same_count(where + "disk_read_bytes", m.disk_read_bytes, read);
    same_count(where + "bytes that the source delivered", static_cast<std::int64_t>(streamed.blocks.bytes_read - source), read);
    same_count(where + "d2h_bytes", m.d2h_bytes, 0);
    same_count(where + "dtype_promotions", m.dtype_promotions, 0);
    same_count(where + "nan_count", m.nan_count, 0);
    same_count(where + "inf_count", m.inf_count, 0);
    same_count(where + "host_pool_free + host_pool_in_use", m.host_pool_free + m.host_pool_in_use, slots);
    same_count(where + "host_pool_in_use", m.host_pool_in_use, std::min<std::int64_t>(slots, streamed.blocks.count()));
    require(m.vram_used_mb == static_cast<double>(slots * streamed.blocks.largest_extent()) / (1024.0 * 1024.0), where + "vram_used_mb is " + std::to_string(m.vram_used_mb));
    require(m.vram_reserved_mb >= m.vram_used_mb, where + "less memory is reserved than used");
    same_count(where + "vram_peak_bytes", m.vram_peak_bytes, static_cast<std::int64_t>(slots * streamed.blocks.largest_extent()));
    sum.h2d_bytes += m.h2d_bytes;
    sum.evictions += m.evictions;
    sum.prefetch_hits += m.prefetch_hits;
    sum.prefetch_misses += m.prefetch_misses;
  }
  const sq_stream_stats stats = session.stats();
  same_count("loaded_bytes of the session", static_cast<std::int64_t>(stats.loaded_bytes), sum.h2d_bytes);
  same_count("evictions of the session", static_cast<std::int64_t>(stats.evictions), sum.evictions);
  same_count("hits of the session", static_cast<std::int64_t>(stats.hits), sum.prefetch_hits);
  same_count("misses of the session", static_cast<std::int64_t>(stats.misses), sum.prefetch_misses);
}

/// A block that was prefetched and is ready is a hit; one that is waited for is a miss and a stall; none is both.
void run_hits(Trial& trial) {
  Streamed streamed(trial, five, {.slots = 2}, {}, forward_only);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), streamed.args());
  // Every block is there before it is asked for.
  session.begin_step(0);
  for (std::size_t v = 0; v < streamed.visits.size(); ++v) {
    const auto late = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (session.stats().loads <= v) {
      require(std::chrono::steady_clock::now() < late, "visit " + std::to_string(v) + " is within the lookahead, its slot is free, and nothing is loaded");
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const Lease lease(session, streamed.visits[v].block);
  }
  session.end_step();
  const sq_step_metrics early = last_step(instance, session.id());
  same_count("prefetch_hits of blocks that had time to arrive", early.prefetch_hits, static_cast<std::int64_t>(streamed.visits.size()));
  same_count("prefetch_misses of blocks that had time to arrive", early.prefetch_misses, 0);
  same_count("stall_count of blocks that had time to arrive", early.stall_count, 0);
  require(early.stall_time_ms < 0.05 * static_cast<double>(streamed.visits.size()), "stall_time_ms is " + std::to_string(early.stall_time_ms) + " although nothing was waited for");
  require(early.wall_ms >= 5.0 * static_cast<double>(streamed.visits.size()), "wall_ms is " + std::to_string(early.wall_ms) + " for a pass of at least " + std::to_string(5 * streamed.visits.size()) + " ms");
}

/// Reads that take their time: the waits are counted and measured, and they are no compute.
void run_stalls(Trial& trial) {
  Streamed streamed(trial, five, {.slots = 1}, {}, forward_only);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), streamed.args());
  // A read goes on for 10 ms from the moment at which its block is asked for.
  streamed.blocks.read_takes_us = 10000;
  streamed.blocks.permits = 0;
  session.begin_step(0);
  for (const sq_visit& v : streamed.visits) {
    ++streamed.blocks.permits;
    const Lease lease(session, v.block);
  }
  session.end_step();
  streamed.blocks.permits = -1;
  const sq_step_metrics m = last_step(instance, session.id());
  const auto loads = static_cast<std::int64_t>(streamed.visits.size());
  same_count("prefetch_misses of late blocks", m.prefetch_misses, loads);
  same_count("stall_count of late blocks", m.stall_count, loads);
  const double least = 10.0 * static_cast<double>(loads);
  require(m.stall_time_ms >= 0.9 * least && m.stall_time_ms <= m.wall_ms, "stall_time_ms is " + std::to_string(m.stall_time_ms) + ", the reads took " + std::to_string(least) + " ms of " + std::to_string(m.wall_ms));
  require(m.disk_read_ms >= 0.9 * least, "disk_read_ms is " + std::to_string(m.disk_read_ms) + ", the reads took " + std::to_string(least) + " ms");
  require(m.copy_time_ms >= 0 && m.slot_wait_ms >= 0 && m.compute_time_ms >= 0, "a time is negative");
  require(std::fabs(m.compute_time_ms + m.stall_time_ms - m.wall_ms) <= 1e-6 * m.wall_ms, "compute_time_ms + stall_time_ms is not wall_ms");
}

/// Every field of the record is written, in every pass, and nothing behind the caller's version of it.
void run_every_field(Trial& trial) {
  Streamed streamed(trial, five, {.slots = 2});
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), streamed.args());
  pass_over(session, streamed.visits, [](const Lease&, std::uint32_t) {});
  // 17 keys of StageHand's, then ours; each is 8 bytes. 0x7F..7F is a NaN no clock gives, and a count no pass reaches.
  struct Record {
    sq_step_metrics metrics;
    unsigned char behind[64];
  } record;
  std::memset(&record, 0x7F, sizeof record);
  record.metrics.size = sizeof(sq_step_metrics);
  call_ok("last_step", {}, [&](sq_error* e) { return instance.telemetry().last_step(instance.get(), session.id(), &record.metrics, e); });
  for (std::size_t at = offsetof(sq_step_metrics, step); at < sizeof(sq_step_metrics); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, reinterpret_cast<const char*>(&record.metrics) + at, 8);
    require(word != 0x7F7F7F7F7F7F7F7Full, "field " + std::to_string((at - offsetof(sq_step_metrics, step)) / 8) + " of the step record was not written");
  }
  for (const unsigned char b : record.behind) require(b == 0x7F, "bytes behind the step record were written");
  // A host of an older contract: its record ends after inf_count.
  std::memset(&record, 0x7F, sizeof record);
  record.metrics.size = offsetof(sq_step_metrics, wall_ms);
  call_ok("last_step of an older record", {}, [&](sq_error* e) { return instance.telemetry().last_step(instance.get(), session.id(), &record.metrics, e); });
  const auto* bytes = reinterpret_cast<const unsigned char*>(&record);
  for (std::size_t at = offsetof(sq_step_metrics, wall_ms); at < sizeof record; ++at) require(bytes[at] == 0x7F, "byte " + std::to_string(at) + " behind an older record was written");
  same_count("h2d_bytes of the older record", record.metrics.h2d_bytes, last_step(instance, session.id()).h2d_bytes);
}

/// NaN and infinity that the guard finds during a pass are that pass's, exactly, and no other's.
void run_guarded_step(Trial& trial) {
  Streamed streamed(trial, five, {.slots = 2});
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), streamed.args());
  for (int pass = 0; pass < 3; ++pass) {
    std::int64_t nans = 0, infinite = 0;
    pass_over(session, streamed.visits, [&](const Lease&, std::uint32_t) {
      Guarded x("x", Role::in, SQ_F32, {3, 40});
      x.fill([&] { return streamed.random.normal(); });
      for (std::int64_t i = pass == 1 ? 40 : 0; i < 40; ++i) {
        const std::int64_t kind = streamed.random.integer(0, 3);
        if (kind == 0) x.set(i, NAN), ++nans;
        if (kind == 1) x.set(i, INFINITY), ++infinite;
      }
      guarded_counts(instance, *x.tensor(), {&x});
    });
    const sq_step_metrics m = last_step(instance, session.id());
    same_count("nan_count of pass " + std::to_string(pass), m.nan_count, nans);
    same_count("inf_count of pass " + std::to_string(pass), m.inf_count, infinite);
  }
}

void run_before_the_first_pass(Trial& trial) {
  Streamed streamed(trial, five, {.slots = 2});
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), streamed.args());
  const auto refuse = [&](const char* what, std::uint64_t id) {
    struct Record {
      sq_step_metrics metrics;
    } record;
    std::memset(&record, 0x7F, sizeof record);
    record.metrics.size = sizeof(sq_step_metrics);
    call_refused(what, {Code::CALL_STATE}, {}, [&](sq_error* e) { return instance.telemetry().last_step(instance.get(), id, &record.metrics, e); });
    require(record.metrics.step == 0x7F7F7F7F7F7F7F7Fll, std::string(what) + ": the record was written");
  };
  refuse("last_step before a pass", session.id());
  session.begin_step(0);
  refuse("last_step during the first pass", session.id());
  session.end_step(true);
  refuse("last_step of a session that is not open", session.id() + 1000);
}

}  // namespace

void add_counters(Cases& cases) {
  const std::vector<std::string> needs = {"stream", "telemetry"};
  for (const std::uint32_t slots : {1u, 2u, 5u})
    cases.push_back({15, "telemetry.counts.slots" + std::to_string(slots), Kind::property, {"SQ-TEL-020", "SQ-TEL-021", "SQ-TEL-022", "SQ-STR-060", "SQ-STR-033"}, needs,
                     "counters that are always 0, or count something else", [=](Trial& t) { run_counts(t, slots, false); }});
  cases.push_back({15, "telemetry.counts.host_master", Kind::property, {"SQ-TEL-020", "SQ-TEL-021", "SQ-STR-001"}, needs, "bytes from a master counted as reads", [](Trial& t) { run_counts(t, 2, true); }});
  cases.push_back({15, "telemetry.hits", Kind::property, {"SQ-TEL-021"}, needs, "a prefetched block counted as a miss, a wait of nothing as a stall", run_hits});
  cases.push_back({15, "telemetry.stalls", Kind::property, {"SQ-TEL-021"}, needs, "waiting counted as compute, or not at all", run_stalls});
  cases.push_back({15, "telemetry.every_field", Kind::vector, {"SQ-TEL-022", "SQ-CNV-001"}, needs, "a key that nobody fills; a record written past its end", run_every_field});
  cases.push_back({15, "telemetry.guarded_step", Kind::property, {"SQ-LIN-030", "SQ-TEL-021"}, {"stream", "telemetry", "linear", "operation:numeric_guard"}, "counts of another step, or of none", run_guarded_step});
  cases.push_back({15, "telemetry.before_the_first_pass", Kind::vector, {"SQ-TEL-023", "SQ-CNV-003"}, needs, "a step reported that never was", run_before_the_first_pass});
}

}  // namespace squareq::gates::g15
