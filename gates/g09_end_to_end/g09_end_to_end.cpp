// Gate 9: quantize, stream, forward, backward, update, resume.
#include <algorithm>
#include <cmath>

#include "gates/g09_end_to_end/training.hpp"
#include "gates/harness/registry.hpp"

namespace squareq::gates {
namespace {

using namespace g09;

constexpr std::uint32_t block_count = 5;
constexpr int steps = 4;

bool all_zero(const std::vector<std::byte>& bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0} || b == std::byte{0x80}; });
}

/// Codes, scales and biases of all layers, as bytes.
std::vector<std::byte> frozen_bytes(Model& model) {
  std::vector<std::byte> all;
  for (std::uint32_t b = 0; b < model.blocks.count(); ++b)
    for (std::uint32_t i = 0; i < layers_per_block; ++i) {
      const Layer& layer = model.blocks.layer(b, i);
      for (const Guarded* t : {&layer.qweight, &layer.scale, &layer.zero_point, &layer.bias}) {
        const auto bytes = t->bytes();
        all.insert(all.end(), bytes.begin(), bytes.end());
      }
    }
  return all;
}

void run_step_semantics(Trial& trial) {
  Model model(trial, block_count);
  const std::vector<std::byte> before = frozen_bytes(model);
  TrainState state = model.start;
  const auto traces = train(trial.instance(), model, direct_source(model), state, 12);
  for (std::size_t i = 0; i < state.adapters.size(); ++i) {
    const std::string name = "linear " + std::to_string(i);
    require(all_zero(traces[0].da[i]), name + ": dA of step 1 is not 0 although B is");
    require(!all_zero(traces[0].db[i]), name + ": dB of step 1 is 0");
    require(!all_zero(traces[1].da[i]), name + ": dA of step 2 is still 0");
    require(state.adapters[i].a_t.value != model.start.adapters[i].a_t.value, name + ": A did not change");
    require(state.adapters[i].b_t.value != model.start.adapters[i].b_t.value, name + ": B did not change");
  }
  require(traces.back().loss < 0.9 * traces.front().loss, "12 steps do not lower the loss: " + std::to_string(traces.front().loss) + " -> " + std::to_string(traces.back().loss));
  same_bytes("codes, scales and biases after training", frozen_bytes(model), before);
}

/// Streamed through few slots, early or late, equals resident in every bit: outputs, gradients, adapters.
void run_streamed(Trial& trial, std::uint32_t slots, std::uint32_t lookahead, bool delays, bool residents) {
  Model model(trial, block_count);
  Instance& instance = trial.instance("stream");
  TrainState resident = model.start, streamed = model.start;
  const auto expected = train(instance, model, direct_source(model), resident, steps);
  if (residents) {
    model.blocks.set_resident(0, true);
    model.blocks.set_resident(3, true);
  }
  const std::vector<sq_visit> all_visits = sawtooth(model.blocks, slots);
  const sq_schedule schedule = schedule_of(all_visits, lookahead);
  model.blocks.delay_us = delays ? 2000 : 0;
  StreamSession session(instance.context(), open_args(model.blocks, schedule, {.slots = slots, .lookahead = lookahead}));
  const auto actual = train(instance, model, leased_source(session), streamed, steps);
  same_traces("streamed against resident", actual, expected);
  same_state("streamed against resident", streamed, resident);
  const sq_stream_stats stats = session.stats();
  const std::uint64_t loads = loads_of(all_visits, slots, steps);
  require(stats.loads == loads, "made " + std::to_string(stats.loads) + " loads, the schedule needs " + std::to_string(loads));
  require(stats.steps == steps, "counts " + std::to_string(stats.steps) + " steps of " + std::to_string(steps));
  require(stats.hits + stats.misses == steps * all_visits.size(), "hits and misses do not add up to the visits: " + std::to_string(stats.hits) + " + " + std::to_string(stats.misses));
}

void run_resume(Trial& trial) {
  Model model(trial, block_count);
  const std::vector<sq_visit> visits = sawtooth(model.blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  const auto run = [&](TrainState& state, int count) {
    // Everything of the implementation is new: instance, session, slots.
    Instance& instance = trial.instance("stream");
    StreamSession session(instance.context(), open_args(model.blocks, schedule, {.slots = 2}));
    return train(instance, model, leased_source(session), state, count);
  };
  TrainState through = model.start, halves = model.start;
  const auto whole = run(through, 6);
  auto parts = run(halves, 3);
  const TrainState saved = halves;  // what a checkpoint holds
  halves = saved;
  const auto rest = run(halves, 3);
  parts.insert(parts.end(), rest.begin(), rest.end());
  same_traces("resumed against uninterrupted", parts, whole);
  same_state("resumed against uninterrupted", halves, through);
}

void run_differential(Trial& trial) {
  Model model(trial, block_count);
  TrainState mine = model.start, other = model.start;
  const auto a = train(trial.instance(), model, direct_source(model), mine, 1);
  const auto b = train(trial.reference(), model, direct_source(model), other, 1);
  // One step: no optimizer in between that would turn a last bit of a gradient into a sign.
  trial.margin(std::abs(a[0].loss - b[0].loss) / (1e-5 * b[0].loss));
}

/// A lease is refused after its release, wherever it is used.
void run_released_lease(Trial& trial) {
  Model model(trial, 3);
  const std::vector<sq_visit> visits = sawtooth(model.blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(model.blocks, schedule, {.slots = 2}));
  const sq_stream_group& stream = instance.stream();
  session.begin_step(0);
  sq_lease lease = 0;
  call_ok("acquire", {}, [&](sq_error* e) { return stream.acquire(instance.get(), session.id(), 0, nullptr, &lease, e); });
  require(lease != 0, "acquire gave the lease 0, which is never valid");
  call_ok("release", {}, [&](sq_error* e) { return stream.release(instance.get(), session.id(), lease, nullptr, e); });

  {
    auto ref = sized<sq_weight_ref>();
    ref.session = session.id();
    ref.lease = lease;
    const Layer& layer = model.blocks.layer(0, 0);
    Guarded x("x", Role::in, SQ_F32, {2, layer.k}), y("y", Role::out, SQ_F32, {2, layer.n});
    auto args = sized<sq_linear_forward_args>();
    args.weight = &ref;
    args.x = x.tensor();
    args.y = y.tensor();
    call_refused("linear_forward with a released lease", {Code::CALL_STATE}, {&x, &y}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); });
    auto weight = sized<sq_weight>();
    call_refused("lease_weight of a released lease", {Code::CALL_STATE}, {}, [&](sq_error* e) { return stream.lease_weight(instance.get(), session.id(), lease, 0, &weight, e); });
    call_refused("release of a released lease", {Code::CALL_STATE}, {}, [&](sq_error* e) { return stream.release(instance.get(), session.id(), lease, nullptr, e); });
    ref.lease = 0;
    call_refused("linear_forward with lease 0", {Code::CALL_STATE, Code::CALL_NULL, Code::CALL_VALUE}, {&x, &y}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); });
  }
  // The order of visits is the schedule's: block 2 is not the next one.
  sq_lease other = 0;
  call_refused("acquire out of order", {Code::CALL_STATE}, {}, [&](sq_error* e) { return stream.acquire(instance.get(), session.id(), 2, nullptr, &other, e); });
  call_refused("begin_step inside a pass", {Code::CALL_STATE}, {}, [&](sq_error* e) { return stream.begin_step(instance.get(), session.id(), 0, e); });
  call_refused("end_step with visits left", {Code::CALL_STATE}, {}, [&](sq_error* e) { return stream.end_step(instance.get(), session.id(), 0, e); });
  // An abandoned pass gives its leases up and the session goes on.
  call_ok("acquire", {}, [&](sq_error* e) { return stream.acquire(instance.get(), session.id(), 1, nullptr, &other, e); });
  session.end_step(true);
  call_refused("release after an abandoned pass", {Code::CALL_STATE}, {}, [&](sq_error* e) { return stream.release(instance.get(), session.id(), other, nullptr, e); });
  TrainState state = model.start, plain = model.start;
  const auto after = train(instance, model, leased_source(session), state, 2);
  same_traces("after an abandoned pass", after, train(instance, model, direct_source(model), plain, 2));
}

/// A block that cannot be read is an error that names the cause, never a block of zeros; the session survives it.
void run_failed_read(Trial& trial) {
  Model model(trial, 4);
  const std::vector<sq_visit> visits = sawtooth(model.blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(model.blocks, schedule, {.slots = 2}));
  const sq_stream_group& stream = instance.stream();
  model.blocks.failing_block = 2;
  session.begin_step(0);
  for (const std::uint32_t b : {0u, 1u}) Lease lease(session, b);
  sq_lease lease = 0;
  call_refused("acquire of a block whose read fails", {Code::IO_ERROR}, {}, [&](sq_error* e) { return stream.acquire(instance.get(), session.id(), 2, nullptr, &lease, e); });
  model.blocks.failing_block = -1;
  call_ok("acquire of the same block, readable again", {}, [&](sq_error* e) { return stream.acquire(instance.get(), session.id(), 2, nullptr, &lease, e); });
  call_ok("release", {}, [&](sq_error* e) { return stream.release(instance.get(), session.id(), lease, nullptr, e); });
  session.end_step(true);
  TrainState state = model.start, plain = model.start;
  const auto after = train(instance, model, leased_source(session), state, 2);
  same_traces("after a failed read", after, train(instance, model, direct_source(model), plain, 2));
}

/// Two sessions of one context, and two contexts, do not disturb each other.
void run_two_sessions(Trial& trial) {
  Model model(trial, 4);
  Instance& instance = trial.instance("stream");
  TrainState plain = model.start, one = model.start, two = model.start;
  const auto expected = train(instance, model, direct_source(model), plain, 2);
  const std::vector<sq_visit> visits = sawtooth(model.blocks, 2), more = sawtooth(model.blocks, 3);
  const sq_schedule schedule = schedule_of(visits, 1), wider = schedule_of(more, 2);
  Instance& second = trial.instance("stream");
  StreamSession a(instance.context(), open_args(model.blocks, schedule, {.slots = 2}));
  StreamSession b(instance.context(), open_args(model.blocks, wider, {.slots = 3}));
  StreamSession c(second.context(), open_args(model.blocks, schedule, {.slots = 2}));
  std::vector<StepTrace> first, other, third;
  TrainState three = model.start;
  for (int s = 0; s < 2; ++s) {
    const auto append = [](std::vector<StepTrace>& to, std::vector<StepTrace> from) { to.push_back(std::move(from.front())); };
    append(first, train(instance, model, leased_source(a), one, 1));
    append(other, train(instance, model, leased_source(b), two, 1));
    append(third, train(second, model, leased_source(c), three, 1));
  }
  same_traces("session 1", first, expected);
  same_traces("session 2", other, expected);
  same_traces("another context", third, expected);
}

}  // namespace

void add_g09_end_to_end(Cases& cases) {
  const std::vector<std::string> trains = {"linear", "lora", "operation:quantize", "operation:linear_forward", "operation:linear_backward"};
  std::vector<std::string> streams = trains;
  streams.push_back("stream");
  cases.push_back({9, "training.step_semantics", Kind::property, {"SQ-LOR-013", "SQ-LIN-011", "SQ-CNV-006"}, trains, "a base that changes, an adapter that does not", run_step_semantics});
  cases.push_back({9, "training.differential", Kind::differential, {"SQ-NUM-020", "SQ-NUM-021"}, trains, "a step on the backend that is not the reference's", run_differential});
  const auto streamed = [&](std::uint32_t slots, std::uint32_t lookahead, bool delays, bool residents) {
    const std::string id = "training.streamed.slots" + std::to_string(slots) + ".lookahead" + std::to_string(lookahead) + (delays ? ".late_reads" : "") + (residents ? ".residents" : "");
    cases.push_back({9, id, Kind::property, {"SQ-STR-046", "SQ-STR-025", "SQ-STR-040"}, streams, "a slot overwritten while in use, a stale slot, a choice that depends on the budget",
                     [=](Trial& t) { run_streamed(t, slots, lookahead, delays, residents); }});
  };
  for (const std::uint32_t lookahead : {0u, 1u, 2u, 4u}) streamed(2, lookahead, false, false);
  for (const std::uint32_t lookahead : {1u, 3u}) streamed(2, lookahead, true, false);
  streamed(1, 1, false, false);
  streamed(3, 2, true, false);
  streamed(5, 2, false, false);
  streamed(2, 1, true, true);
  cases.push_back({9, "training.resume", Kind::property, {"SQ-NUM-004", "SQ-CNV-004"}, streams, "state that survives outside adapters and moments", run_resume});
  cases.push_back({9, "training.released_lease", Kind::vector, {"SQ-STR-043", "SQ-MOD-003", "SQ-STR-041", "SQ-STR-044", "SQ-STR-045"}, streams, "use after release, visits out of order", run_released_lease});
  cases.push_back({9, "training.failed_read", Kind::vector, {"SQ-STR-050", "SQ-STR-051", "SQ-STR-052"}, streams, "a block zero-filled after a failed read", run_failed_read});
  cases.push_back({9, "training.two_sessions", Kind::property, {"SQ-CNV-004", "SQ-STR-046"}, streams, "state shared between sessions or contexts", run_two_sessions});
}

}  // namespace squareq::gates
