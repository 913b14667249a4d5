// Refusals and borders of linear_forward with int8 activations that the caller made.
#include <functional>

#include "gates/g05_forward/refused.hpp"

namespace squareq::gates::g05 {
namespace {

void run_given_refused(Trial& trial) {
  Instance& instance = trial.instance();
  const auto refused = [&](const char* what, Codes codes, const std::function<void(GivenCall&)>& damage) {
    GivenCall c(trial);
    damage(c);
    c.t.arm();
    call_refused(std::string("linear_forward with ") + what, codes, {}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &c.args, e); });
    c.t.untouched(what);
  };
  const auto accepted = [&](const char* what, const std::function<void(GivenCall&)>& change) {
    GivenCall c(trial);
    change(c);
    c.t.arm();
    call_ok(std::string("linear_forward with ") + what, {}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &c.args, e); });
  };
  refused("x and xq", {Code::CALL_VALUE}, [](GivenCall& c) { c.args.x = c.p.x.tensor(); });
  refused("xq and exact weights", {Code::CALL_VALUE}, [](GivenCall& c) { c.args.compute = SQ_COMPUTE_EXACT_W; });
  refused("xq of no format", {Code::CALL_NULL}, [](GivenCall& c) { c.xq.format = nullptr; });
  refused("xq of an unknown format", {Code::CALL_UNSUPPORTED}, [](GivenCall& c) { c.xq.format = "per_tensor_int8"; });
  refused("xq without q", {Code::CALL_PART}, [](GivenCall& c) { c.parts.erase(c.parts.begin()), c.finish(); });
  refused("xq without scale", {Code::CALL_PART}, [](GivenCall& c) { c.parts.pop_back(), c.finish(); });
  refused("xq of other width", {Code::CALL_SHAPE}, [](GivenCall& c) { c.parts[0].tensor = *c.t.make("xq q", SQ_I8, {3, 12}, 1); });
  refused("a floating q", {Code::CALL_DTYPE}, [](GivenCall& c) { c.parts[0].tensor = *c.t.make("xq q", SQ_F32, {3, 10}, 1); });
  refused("one scale for all rows", {Code::CALL_SHAPE}, [](GivenCall& c) { c.parts[1].tensor.shape[0] = 1; });
  refused("y of other rows", {Code::CALL_SHAPE}, [](GivenCall& c) { c.args.y = c.t.make("y", SQ_F32, {2, 4}, 0, Role::out); });
  refused("y of I32", {Code::CALL_DTYPE}, [](GivenCall& c) { c.args.y = c.t.make("y", SQ_I32, {3, 4}, 0, Role::out); });
  refused("a branch without input", {Code::CALL_NULL}, [](GivenCall& c) { c.lora.x = nullptr, c.args.lora = &c.lora; });
  refused("y of neither the branch's dtype nor F32", {Code::CALL_DTYPE}, [](GivenCall& c) { c.args.lora = &c.lora, c.args.y = c.t.make("y", SQ_F16, {3, 4}, 0, Role::out); });
  refused("a preactivation of neither y's dtype nor F32", {Code::CALL_DTYPE}, [](GivenCall& c) { c.args.preactivation = c.t.make("preactivation", SQ_BF16, {3, 4}, 0, Role::out); });
  for (const std::int32_t wrong : {-1, 4}) refused("an activation outside 0 to 3", {Code::CALL_VALUE}, [wrong](GivenCall& c) { c.args.activation = wrong; });
  for (const std::int32_t wrong : {-1, 3}) refused("a compute outside 0 to 2", {Code::CALL_VALUE}, [wrong](GivenCall& c) { c.args.compute = wrong; });
  accepted("xq and W8A8", [](GivenCall& c) { c.args.compute = SQ_COMPUTE_W8A8; });
  accepted("xq and a branch of BF16", [](GivenCall& c) { c.args.lora = &c.lora; });
  accepted("xq, a branch of BF16 and Y of BF16", [](GivenCall& c) { c.args.lora = &c.lora, c.args.y = c.t.make("y", SQ_BF16, {3, 4}, 0, Role::out); });
  accepted("xq and Y of F16", [](GivenCall& c) { c.args.y = c.t.make("y", SQ_F16, {3, 4}, 0, Role::out); });
  accepted("no rows of xq", [](GivenCall& c) {
    c.parts = {{"q", *c.t.make("xq q", SQ_I8, {0, 10}, 0)}, {"scale", *c.t.make("xq scale", SQ_F32, {0}, 0)}};
    c.finish();
    c.args.y = c.t.make("y", SQ_F32, {0, 4}, 0, Role::out);
  });
}

}  // namespace

void add_refused_given(Cases& cases) {
  cases.push_back({5, "int8.refused", Kind::vector, refusal_ids(), {"linear", "lora", "operation:linear_forward", "operation:quantize_activation", "dtype:bf16", "dtype:f16"}, "int8 activations of wrong shape read past their end; two inputs taken, one used", run_given_refused});
}

}  // namespace squareq::gates::g05
