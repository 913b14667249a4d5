// explain: says what a call would do, computes nothing, and refuses what the call refuses.
#include <cmath>
#include <nlohmann/json.hpp>

#include "gates/g05_forward/refused.hpp"

namespace squareq::gates::g05 {
namespace {

void run_explain(Trial& trial) {
  Instance& instance = trial.instance();
  if (!instance.linear().explain) not_supported("explain is not offered");
  const auto explain = [&](std::int32_t op, const void* args, Codes codes, const std::string& name) {
    std::string text;
    const auto operation = [&](sq_error* e) { return instance.linear().explain(instance.get(), op, args, append_text, &text, e); };
    if (codes.size() != 0) {
      call_refused("explain of " + name, codes, {}, operation);
      return std::string();
    }
    call_ok("explain of " + name, {}, operation);
    const auto answer = nlohmann::json::parse(text, nullptr, false);
    require(answer.is_object() && answer.value("op", "") == name && answer.contains("kernel") && answer["kernel"].is_string() && answer.contains("rejected") && answer["rejected"].is_array(),
            "explain of " + name + " answered " + text);
    return answer["kernel"].get<std::string>();
  };
  MakeCall make;
  GivenCall given(trial);
  BackCall back(trial);
  for (Tensors* t : {&make.t, &given.t, &back.t}) t->arm();
  explain(SQ_OP_QUANTIZE_ACTIVATION, &make.args, {}, "quantize_activation");
  const std::string given_codes = explain(SQ_OP_LINEAR_FORWARD, &given.args, {}, "linear_forward");
  const std::string exact_backward = explain(SQ_OP_LINEAR_BACKWARD, &back.args, {}, "linear_backward");
  given.args.xq = nullptr;
  given.args.x = given.p.x.tensor();
  const std::string exact = explain(SQ_OP_LINEAR_FORWARD, &given.args, {}, "linear_forward");
  given.args.compute = back.args.compute = SQ_COMPUTE_W8A8;
  require(exact != given_codes && exact != explain(SQ_OP_LINEAR_FORWARD, &given.args, {}, "linear_forward") && exact_backward != explain(SQ_OP_LINEAR_BACKWARD, &back.args, {}, "linear_backward"),
          "explain names one kernel for exact weights and for int8 activations: " + exact + ", " + exact_backward);
  Guarded w("w", Role::in, SQ_F32, {2, 4}), q("qweight", Role::out, SQ_I8, {2, 4}), s("scale", Role::out, SQ_F32, {2}), z("zero_point", Role::out, SQ_F32, {2}), out("out", Role::out, SQ_F32, {4, 10}), x("x", Role::in, SQ_F32, {3});
  Guarded counts("counts", Role::inout, SQ_I64, {2});
  x.fill(NAN);
  for (Guarded* g : {&w, &q, &s, &z, &out, &x, &counts}) g->arm();
  const sq_part parts[] = {{"qweight", *q.tensor()}, {"scale", *s.tensor()}, {"zero_point", *z.tensor()}};
  auto quantize = sized<sq_quantize_args>();
  quantize.format = "bp8_v2";
  quantize.name = "layer";
  quantize.w = w.tensor();
  quantize.out = parts;
  quantize.out_count = 3;
  std::uint64_t floored = 77;
  quantize.floored_rows = &floored;
  explain(SQ_OP_QUANTIZE, &quantize, {}, "quantize");
  require(floored == 77, "explain of quantize wrote floored_rows");
  auto dequantize = sized<sq_dequantize_args>();
  dequantize.weight = given.direct.ref();
  dequantize.out = out.tensor();
  explain(SQ_OP_DEQUANTIZE, &dequantize, {}, "dequantize");
  auto guard = sized<sq_numeric_guard_args>();
  guard.x = x.tensor();
  guard.counts = counts.tensor();
  explain(SQ_OP_NUMERIC_GUARD, &guard, {}, "numeric_guard");
  // Nothing was computed.
  for (const Guarded* g : {&q, &s, &z, &out, &counts})
    if (const std::string damage = g->damage_after_refusal(); !damage.empty()) fail("explain: " + damage);
  for (const Tensors* t : {&make.t, &given.t, &back.t}) t->untouched("explain");
  // What the operation refuses, explain refuses.
  given.args.activation = 9;
  back.args.activation = -1;
  explain(SQ_OP_LINEAR_FORWARD, &given.args, {Code::CALL_VALUE}, "linear_forward with activation 9");
  explain(SQ_OP_LINEAR_BACKWARD, &back.args, {Code::CALL_VALUE}, "linear_backward with activation -1");
  explain(SQ_OP_RMS_NORM_ROPE_BACKWARD + 1, &guard, {Code::CALL_VALUE}, "an operation that does not exist");
  explain(-1, &guard, {Code::CALL_VALUE}, "operation -1");
  explain(SQ_OP_QUANTIZE, nullptr, {Code::CALL_NULL}, "quantize without arguments");
  std::string text;
  call_refused("explain without a sink", {Code::CALL_NULL}, {}, [&](sq_error* e) { return instance.linear().explain(instance.get(), SQ_OP_QUANTIZE, &quantize, nullptr, nullptr, e); });
  call_refused("explain without a context", {Code::CALL_NULL}, {}, [&](sq_error* e) { return instance.linear().explain(nullptr, SQ_OP_QUANTIZE, &quantize, append_text, &text, e); });
  call_refused("quantize without a context", {Code::CALL_NULL}, {}, [&](sq_error* e) { return instance.linear().quantize(nullptr, &quantize, e); });
}

}  // namespace

void add_explain(Cases& cases) {
  cases.push_back({5, "linear.explain", Kind::vector, {"SQ-LIN-031", "SQ-LIN-032", "SQ-ERR-008"}, {"linear", "lora", "operation:quantize", "operation:dequantize", "operation:linear_forward", "operation:linear_backward", "operation:quantize_activation", "operation:numeric_guard", "dtype:bf16"},
                   "an explanation that computes, or accepts what the operation refuses", run_explain});
}

}  // namespace squareq::gates::g05
