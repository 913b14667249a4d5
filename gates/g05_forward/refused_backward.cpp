// Refusals and borders of linear_backward, and every subset of its outputs.
#include <functional>

#include "gates/g05_forward/refused.hpp"

namespace squareq::gates::g05 {
namespace {

void run_backward_refused(Trial& trial) {
  Instance& instance = trial.instance();
  const auto refused = [&](const char* what, Codes codes, const std::function<void(BackCall&)>& damage) {
    BackCall c(trial);
    damage(c);
    c.t.arm();
    call_refused(std::string("linear_backward with ") + what, codes, {}, [&](sq_error* e) { return instance.linear().linear_backward(instance.get(), &c.args, e); });
    c.t.untouched(what);
  };
  const auto accepted = [&](const char* what, const std::function<void(BackCall&)>& change) {
    BackCall c(trial);
    change(c);
    c.t.arm();
    call_ok(std::string("linear_backward with ") + what, {}, [&](sq_error* e) { return instance.linear().linear_backward(instance.get(), &c.args, e); });
  };
  for (const std::int32_t wrong : {-1, 4}) refused("an activation outside 0 to 3", {Code::CALL_VALUE}, [wrong](BackCall& c) { c.args.activation = wrong; });
  for (const std::int32_t wrong : {-1, 3}) refused("a compute outside 0 to 2", {Code::CALL_VALUE}, [wrong](BackCall& c) { c.args.compute = wrong; });
  refused("accumulate 2", {Code::CALL_VALUE}, [](BackCall& c) { c.args.accumulate = 2; });
  refused("dy of F16 beside x of BF16", {Code::CALL_DTYPE}, [](BackCall& c) { c.args.dy = c.t.make("dy", SQ_F16, {3, 4}, 1), c.args.dx = c.t.make("dx", SQ_F16, {3, 10}, 0, Role::out); });
  refused("x of F64", {Code::CALL_DTYPE}, [](BackCall& c) { c.args.x = c.t.make("x", SQ_F64, {3, 10}, 1); });
  refused("a branch input of other dtype than x", {Code::CALL_DTYPE}, [](BackCall& c) { c.lora.x = c.t.make("lora x", SQ_F32, {3, 10}, 1); });
  refused("a branch input of other width", {Code::CALL_SHAPE}, [](BackCall& c) { c.lora.x = c.t.make("lora x", SQ_BF16, {3, 11}, 1); });
  refused("dx_lora of other dtype than dy", {Code::CALL_DTYPE}, [](BackCall& c) { c.lora.x = c.t.make("lora x", SQ_BF16, {3, 10}, 1), c.args.dx_lora = c.t.make("dx_lora", SQ_BF16, {3, 10}, 0, Role::out); });
  refused("h without a branch", {Code::CALL_VALUE}, [](BackCall& c) { c.args.lora = nullptr, c.args.da_t = c.args.db_t = nullptr, c.args.h = c.t.make("h", SQ_F32, {3, 2}, 1); });
  refused("db_t without a branch", {Code::CALL_VALUE}, [](BackCall& c) { c.args.lora = nullptr, c.args.da_t = nullptr; });
  refused("h of BF16", {Code::CALL_DTYPE}, [](BackCall& c) { c.args.h = c.t.make("h", SQ_BF16, {3, 2}, 1); });
  refused("db_t but neither h nor x", {Code::CALL_NULL}, [](BackCall& c) { c.args.x = nullptr, c.args.da_t = nullptr; });
  refused("da_t but no x", {Code::CALL_NULL}, [](BackCall& c) { c.args.x = nullptr, c.args.h = c.t.make("h", SQ_F32, {3, 2}, 1); });
  accepted("dy of x's dtype", [](BackCall& c) { c.args.dy = c.t.make("dy", SQ_BF16, {3, 4}, 1), c.args.dx = c.t.make("dx", SQ_BF16, {3, 10}, 0, Role::out); });
  accepted("dy of F32 beside x of BF16", [](BackCall&) {});
  accepted("h instead of x", [](BackCall& c) { c.args.x = nullptr, c.args.da_t = nullptr, c.args.h = c.t.make("h", SQ_F32, {3, 2}, 1); });
  accepted("only the branch's own x", [](BackCall& c) { c.args.x = nullptr, c.lora.x = c.t.make("lora x", SQ_BF16, {3, 10}, 1); });
  accepted("no output at all", [](BackCall& c) { c.args.dx = c.args.da_t = c.args.db_t = nullptr; });
  accepted("dx alone, a branch, no x", [](BackCall& c) { c.args.x = nullptr, c.args.da_t = c.args.db_t = nullptr; });
  accepted("dx alone, no x, no branch", [](BackCall& c) { c.args.lora = nullptr, c.args.x = nullptr, c.args.da_t = c.args.db_t = nullptr; });
}

/// Any subset of the outputs, and each has the bits of the full call (SQ-LIN-013).
void run_subsets(Trial& trial, std::int32_t dtype, bool own) {
  Random random = trial.random("data");
  Instance& instance = trial.instance();
  Problem p(5, Layer("subset", 9, 14, 8, true), dtype);
  fill(p, random, {.rank = 3});
  if (own) p.adapter->x_own.emplace("lora x", Role::in, dtype, std::vector<std::int64_t>{5, 14}).fill([&] { return random.normal(); });
  Guarded dy("dy", Role::in, dtype, {5, 9});
  dy.fill([&] { return random.normal(); });
  BackwardOutputs full = backward(instance, p, dy, nullptr, nullptr);
  const DirectWeight direct(p.layer);
  for (unsigned subset = 0; subset < 16; ++subset) {
    Guarded dx("dx", Role::out, dtype, {5, 14}), dx_lora("dx_lora", Role::out, dtype, {5, 14}), da_t("da_t", Role::out, SQ_F32, {3, 14}), db_t("db_t", Role::out, SQ_F32, {9, 3});
    const bool wants_dx = subset & 1, wants_a = subset & 2, wants_b = subset & 4, wants_lora = (subset & 8) && own;
    auto lora = sized<sq_lora>();
    lora.scaling = p.adapter->scaling;
    lora.a_t = p.adapter->a_t.tensor();
    lora.b_t = p.adapter->b_t.tensor();
    lora.x = own ? p.adapter->x_own->tensor() : nullptr;
    auto args = sized<sq_linear_backward_args>();
    args.weight = direct.ref();
    args.dy = dy.tensor();
    args.x = p.x.tensor();
    args.lora = &lora;
    args.dx = wants_dx ? dx.tensor() : nullptr;
    args.dx_lora = wants_lora ? dx_lora.tensor() : nullptr;
    args.da_t = wants_a ? da_t.tensor() : nullptr;
    args.db_t = wants_b ? db_t.tensor() : nullptr;
    call_ok("linear_backward of subset " + std::to_string(subset), {&p.x, &dy, wants_dx ? &dx : nullptr, wants_lora ? &dx_lora : nullptr, wants_a ? &da_t : nullptr, wants_b ? &db_t : nullptr},
            [&](sq_error* e) { return instance.linear().linear_backward(instance.get(), &args, e); });
    if (wants_dx) same_bits("dx", dx, *full.dx);
    if (wants_lora) same_bits("dx_lora", dx_lora, *full.dx_lora);
    if (wants_a) same_bits("da_t", da_t, *full.da_t);
    if (wants_b) same_bits("db_t", db_t, *full.db_t);
  }
}

}  // namespace

void add_refused_backward(Cases& cases) {
  const std::vector<std::string> lora = {"linear", "lora", "operation:linear_forward", "operation:linear_backward"};
  cases.push_back({5, "backward.refused", Kind::vector, refusal_ids({"SQ-LIN-050", "SQ-LOR-015", "SQ-LOR-016"}), {"linear", "lora", "operation:linear_backward", "dtype:bf16"}, "a needed input guessed, a needless one demanded", run_backward_refused});
  for (const auto& [dtype, name] : activation_dtypes)
    for (const bool own : {false, true}) {
      std::vector<std::string> needs = lora;
      needs.push_back(std::string("dtype:") + name);
      cases.push_back({5, std::string("backward.subsets.") + name + (own ? ".own_input" : ""), Kind::property, {"SQ-LIN-013", "SQ-LOR-011"}, needs, "an output that depends on which others are asked for",
                       [dtype = dtype, own](Trial& t) { run_subsets(t, dtype, own); }});
    }
}

}  // namespace squareq::gates::g05
