// Gate 8: which weight, which layer, which session, which kernel a call reaches. No route is taken in silence.
#include <nlohmann/json.hpp>

#include "gates/harness/linear_cases.hpp"
#include "gates/harness/registry.hpp"
#include "gates/harness/stream.hpp"
#include "squareq/text.hpp"

namespace squareq::gates {
namespace {

using nlohmann::json;

/// A problem with the layer's own data and its own x, so that direct and leased calls differ in the weight's place only.
Problem problem_of(const Layer& layer, std::int64_t m, std::int32_t dtype, Random& random, std::int64_t rank) {
  Problem p(m, Layer(layer.name, layer.n, layer.k, 64, layer.has_bias), dtype);
  p.y_dtype = dtype;
  fill(p, random, {.rank = rank});
  p.layer.qweight.set_bytes(layer.qweight.bytes());
  p.layer.scale.set_bytes(layer.scale.bytes());
  if (layer.has_bias) p.layer.bias.set_bytes(layer.bias.bytes());
  return p;
}

/// Every layer of a leased block is the layer of its index: forward and backward equal those of the direct weight bit for bit.
void run_leased_is_direct(Trial& trial, std::int32_t dtype) {
  Random random = trial.random("data");
  // Layers of one shape: a wrong index changes numbers, not shapes.
  Blocks blocks(random_blocks(random, {{{40, 40}, {40, 40}, {40, 40}, {40, 40}}, {{40, 40}, {40, 40}}, {{40, 40}}}));
  const std::vector<sq_visit> visits = forward_only(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2}));
  session.begin_step(0);
  for (const sq_visit& v : visits) {
    const Lease lease(session, v.block);
    for (std::uint32_t i = 0; i < blocks.layers(v.block); ++i) {
      Problem p = problem_of(blocks.layer(v.block, i), 5, dtype, random, 3);
      Guarded dy("dy", Role::in, dtype, {5, p.layer.n});
      dy.fill([&] { return random.normal(); });
      const sq_weight_ref ref = lease.layer(i);
      same_bits(p.layer.name + ": y", forward(instance, p, {}, &ref).y, forward(instance, p).y);
      const BackwardOutputs leased = backward(instance, p, dy, nullptr, nullptr, {}, &ref), direct = backward(instance, p, dy, nullptr, nullptr);
      same_bits(p.layer.name + ": dX", *leased.dx, *direct.dx);
      same_bits(p.layer.name + ": dA", *leased.da_t, *direct.da_t);
      same_bits(p.layer.name + ": dB", *leased.db_t, *direct.db_t);
    }
  }
  session.end_step();
}

/// Both a weight and a lease, neither, a layer that the block does not have, a lease of another session or context, a closed session.
void run_wrong_references(Trial& trial) {
  Random random = trial.random("data");
  Blocks blocks(random_blocks(random, {{{16, 64}}, {{16, 64}}}));
  blocks.set_resident(0, true);
  blocks.set_resident(1, true);
  const sq_schedule schedule = schedule_of({}, 0);
  Instance& instance = trial.instance("stream");
  Instance& other_instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 0}));
  StreamSession second(instance.context(), open_args(blocks, schedule, {.slots = 0}));
  std::uint64_t closed = 0;
  {
    StreamSession gone(instance.context(), open_args(blocks, schedule, {.slots = 0}));
    closed = gone.id();
  }
  const Lease lease(session, 1);
  Problem p = problem_of(blocks.layer(1, 0), 2, SQ_F32, random, 0);
  const DirectWeight direct(p.layer);
  Guarded y("y", Role::out, SQ_F32, {2, 16});
  const auto refuse = [&](Instance& at, const std::string& what, std::initializer_list<Code> codes, const sq_weight_ref& ref) {
    auto args = sized<sq_linear_forward_args>();
    args.weight = &ref;
    args.x = p.x.tensor();
    args.y = y.tensor();
    call_refused("linear_forward with " + what, codes, {&p.x, &y}, [&](sq_error* e) { return at.linear().linear_forward(at.get(), &args, e); });
  };
  sq_weight_ref ref = lease.layer(0);
  ref.weight = &const_cast<DirectWeight&>(direct).weight();
  refuse(instance, "a weight and a lease", {Code::CALL_VALUE}, ref);
  refuse(instance, "neither weight nor lease", {Code::CALL_NULL, Code::CALL_VALUE, Code::CALL_STATE}, sized<sq_weight_ref>());
  refuse(instance, "layer 1 of a block with one", {Code::CALL_VALUE}, lease.layer(1));
  ref = lease.layer(0);
  ref.session = second.id();
  refuse(instance, "a lease of another session", {Code::CALL_STATE}, ref);
  ref.session = closed;
  refuse(instance, "a closed session", {Code::CALL_STATE}, ref);
  refuse(other_instance, "a lease of another context", {Code::CALL_STATE}, lease.layer(0));
  // The lease itself is still good.
  const sq_weight_ref good = lease.layer(0);
  same_bits("y after the refusals", forward(instance, p, {}, &good).y, forward(instance, p).y);
}

/// Two models whose layers have the same names: each session serves its own bytes.
void run_two_models(Trial& trial) {
  Random one = trial.random("model 1"), two = trial.random("model 2");
  Blocks a(random_blocks(one, {{{24, 70}}, {{24, 70}}, {{24, 70}}})), b(random_blocks(two, {{{24, 70}}, {{24, 70}}, {{24, 70}}}));
  const std::vector<sq_visit> visits = ring(a, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession first(instance.context(), open_args(a, schedule, {.slots = 2})), second(instance.context(), open_args(b, schedule, {.slots = 2}));
  first.begin_step(0);
  second.begin_step(0);
  for (const sq_visit& v : visits) {
    const Lease mine(first, v.block), yours(second, v.block);
    check_leased(instance, mine, a, v.block);
    check_leased(instance, yours, b, v.block);
  }
  first.end_step();
  second.end_step();
}

/// Several schedules of one session: the slots' contents carry over from a pass over one to a pass over the other.
void run_schedules(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(random_blocks(random, {{{24, 70}}, {{9, 64}}, {{40, 33}}, {{24, 70}}, {{24, 128}}}));
  const std::vector<sq_visit> train = ring(blocks, 3), sample = forward_ring(blocks, 3);
  const sq_schedule schedules[] = {schedule_of(train, 1), schedule_of(sample, 2)};
  sq_stream_open_args args = open_args(blocks, schedules[0], {.slots = 3});
  args.schedules = schedules;
  args.schedule_count = 2;
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), args);
  std::vector<std::int64_t> held(3, -1);
  std::uint64_t loads = 0;
  for (const std::uint32_t which : {0u, 1u, 1u, 0u, 1u, 0u, 0u}) {
    session.begin_step(which);
    for (const sq_visit& v : which ? sample : train) {
      const Lease lease(session, v.block);
      check_leased(instance, lease, blocks, v.block);
      if (held[v.slot] != v.block) {
        ++loads;
        for (std::int64_t& block : held)
          if (block == v.block) block = -1;  // a block lies in one slot at a time
        held[v.slot] = v.block;
      }
    }
    session.end_step();
  }
  require(session.stats().loads == loads, "made " + std::to_string(session.stats().loads) + " loads, the slots' contents ask for " + std::to_string(loads));
  call_refused("begin_step of schedule 2 of 2", {Code::CALL_VALUE}, {}, [&](sq_error* e) { return instance.stream().begin_step(instance.get(), session.id(), 2, e); });
}

std::string explain(Instance& instance, std::int32_t op, const void* args) {
  std::string text;
  require(instance.linear().explain != nullptr, "explain is absent");
  call_ok("explain", {}, [&](sq_error* e) { return instance.linear().explain(instance.get(), op, args, append_text, &text, e); });
  return text;
}

/// explain answers one object with op, kernel and rejected, computes nothing, and refuses what the operation would refuse.
void run_explain(Trial& trial) {
  Random random = trial.random("data");
  Problem p(4, Layer("explained", 24, 70, 64, true), SQ_F32);
  fill(p, random, {});
  Instance& instance = trial.instance();
  const DirectWeight direct(p.layer);
  Guarded y("y", Role::out, SQ_F32, {4, 24}), dx("dx", Role::out, SQ_F32, {4, 70}), dy("dy", Role::in, SQ_F32, {4, 24}), narrow("y", Role::out, SQ_F32, {4, 23});
  dy.fill(1.0);
  for (Guarded* t : {&p.x, &y, &dx, &dy, &narrow}) t->arm();
  auto forward_args = sized<sq_linear_forward_args>();
  forward_args.weight = direct.ref();
  forward_args.x = p.x.tensor();
  forward_args.y = y.tensor();
  auto backward_args = sized<sq_linear_backward_args>();
  backward_args.weight = direct.ref();
  backward_args.dy = dy.tensor();
  backward_args.dx = dx.tensor();
  for (const auto& [op, args] : {std::pair<std::int32_t, const void*>{SQ_OP_LINEAR_FORWARD, &forward_args}, {SQ_OP_LINEAR_BACKWARD, &backward_args}}) {
    const std::string text = explain(instance, op, args);
    const json object = json::parse(text, nullptr, false);
    require(object.is_object(), "explain answers no JSON object: '" + printable(text, 80) + "'");
    require(object.contains("op") && object["op"].is_string() && object.contains("kernel") && object["kernel"].is_string() && !object["kernel"].get<std::string>().empty() &&
                object.contains("rejected") && object["rejected"].is_array(),
            "explain lacks op, kernel or rejected: " + printable(text, 200));
    require(object["op"] == (op == SQ_OP_LINEAR_FORWARD ? "linear_forward" : "linear_backward"), "explain names the operation " + object["op"].dump());
    for (const json& r : object["rejected"]) require(r.contains("kernel") && r.contains("reason"), "a rejected kernel lacks its name or reason");
  }
  for (Guarded* t : {&p.x, &y, &dx, &dy})
    if (const std::string damage = t->damage_after_refusal(); !damage.empty()) fail("explain computed something: " + damage);
  forward_args.y = narrow.tensor();
  std::string text;
  const auto op_refused = call_refused("linear_forward with y one column short", {Code::CALL_SHAPE}, {&narrow}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &forward_args, e); });
  const auto refused = call_refused("explain of the same", {Code::CALL_SHAPE}, {&narrow}, [&](sq_error* e) { return instance.linear().explain(instance.get(), SQ_OP_LINEAR_FORWARD, &forward_args, append_text, &text, e); });
  require(op_refused.code == refused.code, "explain refuses with another code than the operation");
  call_refused("explain of operation 99", {Code::CALL_VALUE, Code::CALL_UNSUPPORTED}, {}, [&](sq_error* e) { return instance.linear().explain(instance.get(), 99, &forward_args, append_text, &text, e); });
}

/// The class that was asked for is the class that computes: int8 activations are used exactly where they were wished for.
void run_compute_class(Trial& trial) {
  Random random = trial.random("data");
  Problem p(3, Layer("classes", 16, 64, 64, false), SQ_F32);
  fill(p, random, {});
  Instance& instance = trial.instance();
  const DirectWeight direct(p.layer);
  const auto run = [&](std::int32_t compute) {
    Guarded y("y", Role::out, SQ_F32, {3, 16});
    auto args = sized<sq_linear_forward_args>();
    args.compute = compute;
    args.weight = direct.ref();
    args.x = p.x.tensor();
    args.y = y.tensor();
    call_ok("linear_forward", {&p.x, &y}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); });
    return y;
  };
  const Guarded exact = run(SQ_COMPUTE_EXACT_W), plain = run(SQ_COMPUTE_DEFAULT), int8 = run(SQ_COMPUTE_W8A8);
  same_bits("EXACT_W and the default of floating activations", exact, plain);
  compare(trial, exact, oracle_forward(p).y);
  // R4 by its formula, integers exact: xs = max |x| / 127 per row, codes half to even.
  Expected expected;
  for (std::int64_t m = 0; m < 3; ++m) {
    float largest = 0;
    for (std::int64_t k = 0; k < 64; ++k) largest = std::max(largest, std::fabs(static_cast<float>(p.x.at(m, k))));
    const float xs = std::max(largest / 127.0f, 1e-30f);
    for (std::int64_t n = 0; n < 16; ++n) {
      std::int64_t sum = 0;
      for (std::int64_t k = 0; k < 64; ++k)
        sum += static_cast<std::int64_t>(std::clamp(std::nearbyint(static_cast<float>(p.x.at(m, k)) / xs), -127.0f, 127.0f)) * static_cast<std::int64_t>(p.layer.qweight.at(n, k));
      const float value = static_cast<float>(sum) * xs * static_cast<float>(p.layer.scale.at(n));
      // Two fp32 products of an exact integer, and codes that may differ by 1 within 2^-14 of a tie (none of these is).
      expected.add(value, 3 * 0x1p-24 * std::fabs(static_cast<double>(value)));
    }
  }
  compare(trial, int8, expected);
  bool apart = false;
  for (std::int64_t i = 0; i < int8.count(); ++i) apart = apart || int8.at(i) != exact.at(i);
  require(apart, "W8A8 gives the bits of EXACT_W: the class asked for was not used");
}

}  // namespace

void add_g08_dispatch(Cases& cases) {
  const std::vector<std::string> streams = {"stream", "linear", "operation:dequantize", "operation:linear_forward"};
  for (const auto& [dtype, name] : activation_dtypes)
    cases.push_back({8, std::string("dispatch.leased_is_direct.") + name, Kind::property, {"SQ-STR-046", "SQ-NUM-004"},
                     {"stream", "linear", "lora", "operation:linear_forward", "operation:linear_backward", std::string("dtype:") + name}, "another layer of the block, another kernel for leased weights",
                     [dtype = dtype](Trial& t) { run_leased_is_direct(t, dtype); }});
  cases.push_back({8, "dispatch.wrong_references", Kind::vector, {"SQ-STR-043", "SQ-CNV-003", "SQ-CNV-004"}, streams, "a lease honoured by another session, a weight that silently wins over a lease", run_wrong_references});
  cases.push_back({8, "dispatch.two_models", Kind::property, {"SQ-CNV-004", "SQ-STR-040"}, streams, "a cache keyed by layer names", run_two_models});
  cases.push_back({8, "dispatch.schedules", Kind::property, {"SQ-STR-026", "SQ-STR-025"}, streams, "slots emptied or trusted wrongly when the schedule changes", run_schedules});
  cases.push_back({8, "dispatch.explain", Kind::vector, {"SQ-LIN-031"}, {"linear", "operation:linear_forward", "operation:linear_backward"}, "an explanation that computes, or accepts what the operation refuses", run_explain});
  cases.push_back({8, "dispatch.compute_class", Kind::vector, {"SQ-NUM-005", "SQ-LIN-003"}, {"linear", "operation:linear_forward", "operation:quantize_activation"}, "int8 activations used, or not used, against the caller's word", run_compute_class});
}

}  // namespace squareq::gates
