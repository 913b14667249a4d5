// Structs across the contract: sizes, versions, the error record itself.
#include <cstddef>
#include <cstring>

#include "gates/g10_errors/g10_errors.hpp"
#include "gates/harness/linear.hpp"
#include "gates/harness/stream.hpp"

namespace squareq::gates::g10 {
namespace {

Problem small_problem(Trial& trial, std::int64_t rank) {
  Random random = trial.random("data");
  Problem p(3, Layer("sized", 16, 64, 64, true), SQ_F32);
  fill(p, random, {.rank = rank});
  return p;
}

/// A caller of an older contract: its struct ends early, and what lies behind it in memory is not the callee's.
void run_older_arguments(Trial& trial) {
  Problem p = small_problem(trial, 0);
  Instance& instance = trial.instance();
  const DirectWeight direct(p.layer);
  Guarded y("y", Role::out, SQ_F32, {3, 16}), dy("dy", Role::in, SQ_F32, {3, 16}), dx("dx", Role::out, SQ_F32, {3, 64});
  dy.fill(1.0);
  auto* const wild = reinterpret_cast<const sq_tensor*>(std::uintptr_t{64});  // whoever follows it dies
  auto args = sized<sq_linear_forward_args>();
  args.weight = direct.ref();
  args.x = p.x.tensor();
  args.y = y.tensor();
  args.preactivation = wild;
  args.h = wild;
  args.size = offsetof(sq_linear_forward_args, preactivation);
  call_ok("linear_forward with a struct that ends before preactivation", {&p.x, &y}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); });
  compare(trial, y, oracle_forward(p).y);
  auto back = sized<sq_linear_backward_args>();
  back.weight = direct.ref();
  back.dy = dy.tensor();
  back.dx = dx.tensor();
  back.dx_lora = back.da_t = back.db_t = wild;
  back.size = offsetof(sq_linear_backward_args, dx_lora);
  call_ok("linear_backward with a struct that ends before dx_lora", {&dy, &dx}, [&](sq_error* e) { return instance.linear().linear_backward(instance.get(), &back, e); });
  compare(trial, dx, oracle_backward(p, dy, nullptr).dx);
}

/// Records that the callee fills: nothing behind the size that the caller gave.
void run_older_records(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(random_blocks(random, {{{8, 64}}, {{8, 64}}}));
  const std::vector<sq_visit> visits = forward_only(blocks, 1);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 1}));
  struct Record {
    sq_stream_stats stats;
    unsigned char behind[64];
  } record;
  for (const std::size_t size : {offsetof(sq_stream_stats, loads), sizeof(sq_stream_stats)}) {
    std::memset(&record, 0x5A, sizeof record);
    record.stats.size = static_cast<std::uint32_t>(size);
    call_ok("stats", {}, [&](sq_error* e) { return instance.stream().stats(instance.get(), session.id(), &record.stats, e); });
    require(record.stats.device_bytes == blocks.largest_extent(), "stats reports " + std::to_string(record.stats.device_bytes) + " device bytes");
    const auto* bytes = reinterpret_cast<const unsigned char*>(&record);
    for (std::size_t at = size; at < sizeof record; ++at) require(bytes[at] == 0x5A, "stats wrote byte " + std::to_string(at) + " of a record of " + std::to_string(size));
  }
}

/// The error record of an older contract, a missing one, and one that is full.
void run_error_records(Trial& trial) {
  Problem p = small_problem(trial, 0);
  p.layer.name = std::string(600, 'n');  // longer than the record's field
  Instance& instance = trial.instance();
  const DirectWeight direct(p.layer);
  Guarded narrow("y", Role::out, SQ_F32, {3, 15});
  auto args = sized<sq_linear_forward_args>();
  args.weight = direct.ref();
  args.x = p.x.tensor();
  args.y = narrow.tensor();
  require(instance.linear().linear_forward(instance.get(), &args, nullptr) == SQ_CALL_SHAPE, "a wrong shape without an error record is not CALL_SHAPE");
  struct Record {
    sq_error error;
    char behind[64];
  };
  const auto full = std::make_unique<Record>();
  std::memset(full.get(), 0x5A, sizeof(Record));
  full->error.size = sizeof(sq_error);
  require(instance.linear().linear_forward(instance.get(), &args, &full->error) == SQ_CALL_SHAPE, "a wrong shape is not CALL_SHAPE");
  for (const auto& [text, bytes] : {std::pair<const char*, std::size_t>{full->error.message, sizeof full->error.message}, {full->error.layer, sizeof full->error.layer}, {full->error.tensor, sizeof full->error.tensor}})
    require(std::memchr(text, 0, bytes) != nullptr, "a text of the error record does not end inside its field");
  for (const char c : full->behind) require(c == 0x5A, "bytes behind the error record were written");
  std::memset(full.get(), 0x5A, sizeof(Record));
  full->error.size = offsetof(sq_error, layer);
  require(instance.linear().linear_forward(instance.get(), &args, &full->error) == SQ_CALL_SHAPE, "a wrong shape with an older error record is not CALL_SHAPE");
  const auto* bytes = reinterpret_cast<const char*>(full.get());
  for (std::size_t at = offsetof(sq_error, layer); at < sizeof(Record); ++at) require(bytes[at] == 0x5A, "byte " + std::to_string(at) + " behind an older error record was written");
}

/// A host that was compiled with another contract is refused, both versions named, for every table that serves a group.
void run_version(Trial& trial) {
  for (const char* group : {"linear", "stream", "format", "module"}) {
    if (!trial.description().groups.contains(group)) continue;
    const Implementation& implementation = trial.subject().of_group(group);
    auto host = sized<sq_host>();
    for (const std::uint32_t version : {SQ_ABI_VERSION + 6u, 0u}) {
      host.abi_version = version;
      sq_context* context = nullptr;
      const std::string what = "create for contract version " + std::to_string(version);
      const sq_error e = call_refused(what, {Code::CALL_VERSION}, {}, [&](sq_error* error) { return implementation->create(&host, &context, error); });
      must_name(what, e, {std::to_string(version), std::to_string(SQ_ABI_VERSION)});
      require(context == nullptr, what + ": a context was made");
    }
  }
}

/// Nulls where an object belongs: a code, never a crash.
void run_nulls(Trial& trial) {
  Instance& instance = trial.instance();
  const sq_linear_group& linear = instance.linear();
  const auto refuse = [&](const char* what, const auto& call) { call_refused(what, {Code::CALL_NULL}, {}, call); };
  refuse("linear_forward without arguments", [&](sq_error* e) { return linear.linear_forward(instance.get(), nullptr, e); });
  refuse("linear_backward without arguments", [&](sq_error* e) { return linear.linear_backward(instance.get(), nullptr, e); });
  refuse("quantize without arguments", [&](sq_error* e) { return linear.quantize(instance.get(), nullptr, e); });
  refuse("dequantize without arguments", [&](sq_error* e) { return linear.dequantize(instance.get(), nullptr, e); });
  Problem p = small_problem(trial, 0);
  const DirectWeight direct(p.layer);
  Guarded y("y", Role::out, SQ_F32, {3, 16});
  auto args = sized<sq_linear_forward_args>();
  args.weight = direct.ref();
  args.x = p.x.tensor();
  args.y = y.tensor();
  refuse("linear_forward without a context", [&](sq_error* e) { return linear.linear_forward(nullptr, &args, e); });
}

void run_stream_nulls(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(random_blocks(random, {{{8, 64}}}));
  const std::vector<sq_visit> visits = forward_only(blocks, 1);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  const sq_stream_group& stream = instance.stream();
  const sq_stream_open_args args = open_args(blocks, schedule, {.slots = 1});
  std::uint64_t id = 0;
  call_refused("open without arguments", {Code::CALL_NULL}, {}, [&](sq_error* e) { return stream.open(instance.get(), nullptr, &id, e); });
  call_refused("open without a place for the session", {Code::CALL_NULL}, {}, [&](sq_error* e) { return stream.open(instance.get(), &args, nullptr, e); });
  StreamSession session(instance.context(), args);
  session.begin_step(0);
  call_refused("acquire without a place for the lease", {Code::CALL_NULL}, {}, [&](sq_error* e) { return stream.acquire(instance.get(), session.id(), 0, nullptr, nullptr, e); });
  call_refused("stats without a record", {Code::CALL_NULL}, {}, [&](sq_error* e) { return stream.stats(instance.get(), session.id(), nullptr, e); });
  {
    const Lease lease(session, 0);
    const sq_lease held = lease.layer(0).lease;
    call_refused("lease_weight without a record", {Code::CALL_NULL}, {}, [&](sq_error* e) { return stream.lease_weight(instance.get(), session.id(), held, 0, nullptr, e); });
    auto weight = sized<sq_weight>();
    call_refused("lease_weight of layer 1 of 1", {Code::CALL_VALUE}, {}, [&](sq_error* e) { return stream.lease_weight(instance.get(), session.id(), held, 1, &weight, e); });
    call_refused("end_step with a lease held", {Code::CALL_STATE}, {}, [&](sq_error* e) { return stream.end_step(instance.get(), session.id(), 0, e); });
  }
  session.end_step();
  call_refused("end_step outside a pass", {Code::CALL_STATE}, {}, [&](sq_error* e) { return stream.end_step(instance.get(), session.id(), 0, e); });
  for (const std::uint64_t wrong : {std::uint64_t{0}, session.id() + 999}) {
    call_refused("begin_step of no session", {Code::CALL_STATE}, {}, [&](sq_error* e) { return stream.begin_step(instance.get(), wrong, 0, e); });
    call_refused("close of no session", {Code::CALL_STATE}, {}, [&](sq_error* e) { return stream.close(instance.get(), wrong, e); });
  }
}

}  // namespace

void add_structs(Cases& cases) {
  const std::vector<std::string> both = {"linear", "operation:linear_forward", "operation:linear_backward"};
  cases.push_back({10, "errors.older_arguments", Kind::vector, {"SQ-CNV-001"}, both, "a field read past the end of the caller's struct", run_older_arguments});
  cases.push_back({10, "errors.older_records", Kind::vector, {"SQ-CNV-001", "SQ-CNV-005"}, {"stream"}, "a record written past its end", run_older_records});
  cases.push_back({10, "errors.error_records", Kind::vector, {"SQ-CNV-001", "SQ-ERR-007"}, {"linear", "operation:linear_forward", "in_process"}, "an error text that overflows its field", run_error_records});
  cases.push_back({10, "errors.contract_version", Kind::vector, {"SQ-CNV-002"}, {"linear", "in_process"}, "a host of another contract served by luck", run_version});
  cases.push_back({10, "errors.nulls", Kind::vector, {"SQ-LIN-043", "SQ-CNV-003"}, {"linear", "operation:linear_forward", "operation:linear_backward", "operation:quantize", "operation:dequantize", "in_process"}, "a null followed", run_nulls});
  cases.push_back({10, "errors.stream_nulls_and_states", Kind::vector, {"SQ-STR-044", "SQ-STR-043", "SQ-CNV-003"}, {"stream"}, "a null followed, a state not kept", run_stream_nulls});
}

}  // namespace squareq::gates::g10
