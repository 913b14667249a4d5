// Refusals and borders of the operations beside the plain linear calls: int8 activations given and made, quantize, dequantize, explain.
// Each border is tried from both sides: the last thing that must be taken and the first that must not.
#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "gates/g05_forward/g05_forward.hpp"

namespace squareq::gates::g05 {
namespace {

/// Tensors that one case hands over; all are checked after every call.
class Tensors {
 public:
  const sq_tensor* make(const char* name, std::int32_t dtype, std::vector<std::int64_t> shape, double value, Role role = Role::in) {
    Guarded& t = *all_.emplace_back(std::make_unique<Guarded>(name, role, dtype, std::move(shape)));
    if (role == Role::in) t.fill(value);
    return t.tensor();
  }
  void arm() {
    for (auto& t : all_) t->arm();
  }
  void untouched(const std::string& what) const {
    for (const auto& t : all_)
      if (const std::string damage = t->damage_after_refusal(); !damage.empty()) fail(what + ": " + damage);
  }

 private:
  std::vector<std::unique_ptr<Guarded>> all_;
};

struct MakeCall {
  Tensors t;
  sq_quantize_activation_args args = sized<sq_quantize_activation_args>();
  std::vector<sq_part> parts;

  explicit MakeCall(std::int64_t rows = 6, std::int64_t groups = 2) {
    args.producer = SQ_PRODUCER_LAYERNORM_MODULATE;
    args.x = t.make("x", SQ_F32, {rows, 8}, 1.5);
    args.shift = t.make("shift", SQ_F32, {groups, 8}, 0.25);
    args.scale = t.make("modulation scale", SQ_F32, {groups, 8}, 0.5);
    args.epsilon = 1e-6f;
    args.format = "per_token_int8";
    parts = {{"q", *t.make("q", SQ_I8, {rows, 8}, 0, Role::out)}, {"scale", *t.make("scale", SQ_F32, {rows}, 0, Role::out)}};
    finish();
  }
  void finish() {
    args.out = parts.data();
    args.out_count = static_cast<std::uint32_t>(parts.size());
  }
  void plain() {
    args.producer = SQ_PRODUCER_NONE;
    args.shift = args.scale = nullptr;
  }
};

using Codes = std::initializer_list<Code>;

void run_quantize_activation(Trial& trial) {
  Instance& instance = trial.instance();
  const auto refused = [&](const char* what, Codes codes, const std::function<void(MakeCall&)>& damage) {
    MakeCall c;
    damage(c);
    c.t.arm();
    call_refused(std::string("quantize_activation with ") + what, codes, {}, [&](sq_error* e) { return instance.linear().quantize_activation(instance.get(), &c.args, e); });
    c.t.untouched(what);
  };
  const auto accepted = [&](const char* what, MakeCall& c) {
    c.t.arm();
    call_ok(std::string("quantize_activation with ") + what, {}, [&](sq_error* e) { return instance.linear().quantize_activation(instance.get(), &c.args, e); });
  };
  refused("no format", {Code::CALL_NULL}, [](MakeCall& c) { c.args.format = nullptr; });
  refused("an unknown format", {Code::CALL_UNSUPPORTED}, [](MakeCall& c) { c.args.format = "per_tensor_int8"; });
  refused("producer -1", {Code::CALL_VALUE}, [](MakeCall& c) { c.plain(), c.args.producer = -1; });
  refused("producer 3", {Code::CALL_VALUE}, [](MakeCall& c) { c.plain(), c.args.producer = 3; });
  refused("no x", {Code::CALL_NULL}, [](MakeCall& c) { c.args.x = nullptr; });
  refused("x of F64", {Code::CALL_DTYPE}, [](MakeCall& c) { c.args.x = c.t.make("x", SQ_F64, {6, 8}, 1); });
  refused("x of rank 1", {Code::CALL_SHAPE}, [](MakeCall& c) { c.args.x = c.t.make("x", SQ_F32, {8}, 1); });
  refused("rows without elements", {Code::CALL_SHAPE}, [](MakeCall& c) { c.plain(), c.args.x = c.t.make("x", SQ_F32, {6, 0}, 1), c.parts[0].tensor = *c.t.make("q", SQ_I8, {6, 0}, 0, Role::out); });
  refused("no part q", {Code::CALL_PART}, [](MakeCall& c) { c.parts.erase(c.parts.begin()), c.finish(); });
  refused("no part scale", {Code::CALL_PART}, [](MakeCall& c) { c.parts.pop_back(), c.finish(); });
  refused("an unknown part", {Code::CALL_VALUE}, [](MakeCall& c) { c.parts.push_back({"zero_point", c.parts[1].tensor}), c.finish(); });
  refused("q one column wider", {Code::CALL_SHAPE}, [](MakeCall& c) { c.parts[0].tensor = *c.t.make("q", SQ_I8, {6, 9}, 0, Role::out); });
  refused("q of U8", {Code::CALL_DTYPE}, [](MakeCall& c) { c.parts[0].tensor.dtype = SQ_U8; });
  refused("one scale fewer", {Code::CALL_SHAPE}, [](MakeCall& c) { c.parts[1].tensor.shape[0] = 5; });
  refused("no shift", {Code::CALL_NULL}, [](MakeCall& c) { c.args.shift = nullptr; });
  refused("no modulation scale", {Code::CALL_NULL}, [](MakeCall& c) { c.args.scale = nullptr; });
  refused("a wider shift", {Code::CALL_SHAPE}, [](MakeCall& c) { c.args.shift = c.t.make("shift", SQ_F32, {2, 9}, 0); });
  refused("4 groups of 6 rows", {Code::CALL_SHAPE}, [](MakeCall& c) { c.args.shift = c.t.make("shift", SQ_F32, {4, 8}, 0), c.args.scale = c.t.make("scale", SQ_F32, {4, 8}, 0); });
  refused("no groups", {Code::CALL_SHAPE}, [](MakeCall& c) { c.args.shift = c.t.make("shift", SQ_F32, {0, 8}, 0), c.args.scale = c.t.make("scale", SQ_F32, {0, 8}, 0); });
  refused("shift and scale of different groups", {Code::CALL_SHAPE}, [](MakeCall& c) { c.args.scale = c.t.make("scale", SQ_F32, {3, 8}, 0); });
  refused("shift and scale of different dtypes", {Code::CALL_DTYPE}, [](MakeCall& c) { c.args.scale = c.t.make("scale", SQ_BF16, {2, 8}, 0); });
  for (const float epsilon : {0.0f, -1e-6f, std::nanf(""), HUGE_VALF}) refused("an epsilon that is not positive and finite", {Code::CALL_VALUE}, [epsilon](MakeCall& c) { c.args.epsilon = epsilon; });
  for (const std::int32_t producer : {SQ_PRODUCER_NONE, SQ_PRODUCER_GELU_TANH}) {
    refused("a shift that its producer does not use", {Code::CALL_VALUE}, [producer](MakeCall& c) { c.args.producer = producer, c.args.scale = nullptr; });
    refused("a scale that its producer does not use", {Code::CALL_VALUE}, [producer](MakeCall& c) { c.args.producer = producer, c.args.shift = nullptr; });
  }
  for (const std::int64_t groups : {1, 3, 6}) {
    MakeCall c(6, groups);
    accepted("groups that divide the rows", c);
  }
  MakeCall none(0, 2);
  accepted("no rows, modulated", none);
  none.plain();
  accepted("no rows", none);
}

/// Statistics in the spec's words for every row, with as many groups as divide the rows, in each dtype, rows apart.
void run_modulated(Trial& trial, std::int32_t dtype) {
  Random random = trial.random("data");
  Instance& instance = trial.instance();
  struct Sizes {
    std::int64_t rows, columns, groups;
    float epsilon;
  };
  for (const Sizes s : {Sizes{1, 1, 1, 0.5f}, Sizes{5, 3, 5, 1e-6f}, Sizes{6, 65, 2, 1e-5f}, Sizes{12, 128, 3, 0.25f}, Sizes{4, 31, 1, 1e-6f}}) {
    Guarded x("x", Role::in, dtype, {s.rows, s.columns}, s.columns + 3), shift("shift", Role::in, dtype, {s.groups, s.columns}, s.columns + 1), scale("scale", Role::in, dtype, {s.groups, s.columns});
    x.fill([&] { return 0.5 + 2 * random.normal(); });
    shift.fill([&] { return 0.5 * random.normal(); });
    scale.fill([&] { return 0.5 * random.normal(); });
    Guarded q("q", Role::out, SQ_I8, {s.rows, s.columns}, s.columns + 2), row_scale("row scale", Role::out, SQ_F32, {s.rows});
    const std::vector<sq_part> parts = {{"q", *q.tensor()}, {"scale", *row_scale.tensor()}};
    auto args = sized<sq_quantize_activation_args>();
    args.producer = SQ_PRODUCER_LAYERNORM_MODULATE;
    args.x = x.tensor();
    args.shift = shift.tensor();
    args.scale = scale.tensor();
    args.epsilon = s.epsilon;
    args.format = "per_token_int8";
    args.out = parts.data();
    args.out_count = 2;
    call_ok("quantize_activation behind LAYERNORM_MODULATE", {&x, &shift, &scale, &q, &row_scale}, [&](sq_error* e) { return instance.linear().quantize_activation(instance.get(), &args, e); });
    for (std::int64_t m = 0; m < s.rows; ++m) {
      double mean = 0, variance = 0, amax = 0;
      for (std::int64_t k = 0; k < s.columns; ++k) mean += x.at(m, k) / static_cast<double>(s.columns);
      for (std::int64_t k = 0; k < s.columns; ++k) variance += (x.at(m, k) - mean) * (x.at(m, k) - mean) / static_cast<double>(s.columns);
      std::vector<double> values;
      for (std::int64_t k = 0; k < s.columns; ++k) {
        const std::int64_t group = m * s.groups / s.rows;
        values.push_back((x.at(m, k) - mean) / std::sqrt(variance + static_cast<double>(s.epsilon)) * (1 + scale.at(group, k)) + shift.at(group, k));
        amax = std::max(amax, std::fabs(values.back()));
      }
      const double expected = amax / 127;
      trial.margin(std::fabs(row_scale.at(m) - expected) / (64 * 0x1p-24 * expected));  // the table's bound, SQ-NUM-022
      for (std::int64_t k = 0; k < s.columns; ++k) {
        const double code = values[static_cast<std::size_t>(k)] / expected, off = std::fabs(q.at(m, k) - code);
        // Half a step, and 64 u of the value and of the scale: 127 * 128 u < 2^-10 of a step.
        require(off <= 0.5 + 0x1p-10, "code [" + std::to_string(m) + ", " + std::to_string(k) + "] is " + std::to_string(q.at(m, k)) + ", the quotient " + std::to_string(code));
      }
    }
  }
}

struct GivenCall {
  Tensors t;
  Problem p;
  DirectWeight direct;
  std::vector<sq_part> parts;
  sq_quantized_activation xq = sized<sq_quantized_activation>();
  sq_lora lora = sized<sq_lora>();
  sq_linear_forward_args args = sized<sq_linear_forward_args>();

  explicit GivenCall(Trial& trial) : p(make(trial)), direct(p.layer) {
    parts = {{"q", *t.make("xq q", SQ_I8, {3, 10}, 5)}, {"scale", *t.make("xq scale", SQ_F32, {3}, 0.5)}};
    xq.format = "per_token_int8";
    finish();
    lora.scaling = 1;
    lora.a_t = t.make("a_t", SQ_F32, {2, 10}, 1);
    lora.b_t = t.make("b_t", SQ_F32, {4, 2}, 1);
    lora.x = t.make("lora x", SQ_BF16, {3, 10}, 1);
    args.weight = direct.ref();
    args.xq = &xq;
    args.y = t.make("y", SQ_F32, {3, 4}, 0, Role::out);
  }
  void finish() {
    xq.parts = parts.data();
    xq.part_count = static_cast<std::uint32_t>(parts.size());
  }
  static Problem make(Trial& trial) {
    Random random = trial.random("data");
    Problem p(3, Layer("given", 4, 10, 4, true), SQ_F32);
    fill(p, random, {});
    return p;
  }
};

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

struct BackCall {
  Tensors t;
  Problem p;
  DirectWeight direct;
  sq_lora lora = sized<sq_lora>();
  sq_linear_backward_args args = sized<sq_linear_backward_args>();

  explicit BackCall(Trial& trial) : p(GivenCall::make(trial)), direct(p.layer) {
    lora.scaling = 1;
    lora.a_t = t.make("a_t", SQ_F32, {2, 10}, 1);
    lora.b_t = t.make("b_t", SQ_F32, {4, 2}, 1);
    args.weight = direct.ref();
    args.dy = t.make("dy", SQ_F32, {3, 4}, 1);
    args.x = t.make("x", SQ_BF16, {3, 10}, 1);
    args.lora = &lora;
    args.dx = t.make("dx", SQ_F32, {3, 10}, 0, Role::out);
    args.da_t = t.make("da_t", SQ_F32, {2, 10}, 0, Role::out);
    args.db_t = t.make("db_t", SQ_F32, {4, 2}, 0, Role::out);
  }
};

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

void run_quantize_refused(Trial& trial) {
  Instance& instance = trial.instance();
  struct Call {
    Tensors t;
    std::vector<sq_part> parts;
    sq_quantize_args args = sized<sq_quantize_args>();
    Call() {
      args.pack_k = 4;
      args.format = "bp8_v2";
      args.name = "layer";
      args.w = t.make("w", SQ_F32, {3, 6}, 0.5);
      parts = {{"qweight", *t.make("qweight", SQ_I8, {3, 8}, 0, Role::out)}, {"scale", *t.make("scale", SQ_F32, {3}, 0, Role::out)}, {"zero_point", *t.make("zero_point", SQ_F32, {3}, 0, Role::out)}};
      finish();
    }
    void finish() {
      args.out = parts.data();
      args.out_count = static_cast<std::uint32_t>(parts.size());
    }
  };
  const auto refused = [&](const char* what, Codes codes, const std::function<void(Call&)>& damage) {
    Call c;
    damage(c);
    c.t.arm();
    call_refused(std::string("quantize with ") + what, codes, {}, [&](sq_error* e) { return instance.linear().quantize(instance.get(), &c.args, e); });
    c.t.untouched(what);
  };
  refused("no format", {Code::CALL_NULL}, [](Call& c) { c.args.format = nullptr; });
  refused("no name", {Code::CALL_NULL}, [](Call& c) { c.args.name = nullptr; });
  refused("an unknown format", {Code::CALL_UNSUPPORTED}, [](Call& c) { c.args.format = "bp4_v9"; });
  refused("no w", {Code::CALL_NULL}, [](Call& c) { c.args.w = nullptr; });
  refused("w of rank 1", {Code::CALL_SHAPE}, [](Call& c) { c.args.w = c.t.make("w", SQ_F32, {6}, 1); });
  refused("w of I8", {Code::CALL_DTYPE}, [](Call& c) { c.args.w = c.t.make("w", SQ_I8, {3, 6}, 1); });
  refused("no rows", {Code::CALL_SHAPE}, [](Call& c) {
    c.args.w = c.t.make("w", SQ_F32, {0, 6}, 1);
    c.parts[0].tensor.shape[0] = c.parts[1].tensor.shape[0] = c.parts[2].tensor.shape[0] = 0;
  });
  refused("no columns", {Code::CALL_SHAPE}, [](Call& c) { c.args.w = c.t.make("w", SQ_F32, {3, 0}, 1), c.parts[0].tensor.shape[1] = 0; });
  refused("no zero_point", {Code::CALL_PART}, [](Call& c) { c.parts.pop_back(), c.finish(); });
  refused("no qweight", {Code::CALL_PART}, [](Call& c) { c.parts.erase(c.parts.begin()), c.finish(); });
  refused("a part given twice", {Code::CALL_VALUE}, [](Call& c) { c.parts.push_back(c.parts[1]), c.finish(); });
  refused("unpadded rows", {Code::CALL_SHAPE}, [](Call& c) { c.parts[0].tensor = *c.t.make("qweight", SQ_I8, {3, 6}, 0, Role::out); });
  refused("rows padded without need", {Code::CALL_SHAPE}, [](Call& c) { c.args.pack_k = 1; });
  refused("qweight of other rows", {Code::CALL_SHAPE}, [](Call& c) { c.parts[0].tensor = *c.t.make("qweight", SQ_I8, {4, 8}, 0, Role::out); });
  refused("a scale of F64", {Code::CALL_DTYPE}, [](Call& c) { c.parts[1].tensor = *c.t.make("scale", SQ_F64, {3}, 0, Role::out); });
  refused("two zero points", {Code::CALL_SHAPE}, [](Call& c) { c.parts[2].tensor.shape[0] = 2; });
}

void run_dequantize_borders(Trial& trial) {
  Instance& instance = trial.instance();
  Problem p = GivenCall::make(trial);
  const DirectWeight direct(p.layer);
  for (std::int64_t first = -1; first <= 5; ++first)
    for (std::int64_t rows = 0; rows <= 5; ++rows) {
      Guarded out("out", Role::out, SQ_F32, {rows, 10});
      auto args = sized<sq_dequantize_args>();
      args.weight = direct.ref();
      args.first_row = first;
      args.out = out.tensor();
      const std::string what = "dequantize of " + std::to_string(rows) + " rows from row " + std::to_string(first) + " of 4";
      const auto operation = [&](sq_error* e) { return instance.linear().dequantize(instance.get(), &args, e); };
      if (first >= 0 && first + rows <= 4) call_ok(what, {&out}, operation);
      else call_refused(what, {Code::CALL_SHAPE}, {&out}, operation);
    }
}

/// Weights at the border of what a weight may be, through the operation that reads least of them.
void run_weight_borders(Trial& trial) {
  Instance& instance = trial.instance();
  const auto call = [&](const char* what, Codes codes, const std::function<void(Problem&, DirectWeight&)>& damage) {
    Problem p = GivenCall::make(trial);
    DirectWeight direct(p.layer);
    damage(p, direct);
    // As wide as the weight says it is, and no row where it says that it has none: only the weight itself can be wrong.
    Guarded out("out", Role::out, SQ_F32, {std::min<std::int64_t>(1, direct.weight().out_features), direct.weight().in_features});
    auto args = sized<sq_dequantize_args>();
    args.weight = direct.ref();
    args.out = out.tensor();
    const auto operation = [&](sq_error* e) { return instance.linear().dequantize(instance.get(), &args, e); };
    if (codes.size() == 0) call_ok(what, {&out}, operation);
    else call_refused(what, codes, {&out}, operation);
  };
  call("a weight without a format", {Code::CALL_NULL}, [](Problem&, DirectWeight& w) { w.weight().format = nullptr; });
  call("a weight without a name", {Code::CALL_NULL}, [](Problem&, DirectWeight& w) { w.weight().name = nullptr; });
  call("a weight of 0 rows", {Code::CALL_SHAPE}, [](Problem&, DirectWeight& w) {
    w.weight().out_features = 0;
    for (sq_part& part : w.parts()) part.tensor.shape[0] = 0;
  });
  call("a weight of 0 columns", {Code::CALL_SHAPE}, [](Problem&, DirectWeight& w) { w.weight().in_features = 0; });
  call("codes of rank 1", {Code::CALL_SHAPE}, [](Problem&, DirectWeight& w) { w.parts()[0].tensor.rank = 1; });
  for (const std::int64_t row : {0, 3}) call("a zero_point of 0.5 at either end", {Code::DT_ZP_NONZERO}, [row](Problem& p, DirectWeight&) { p.layer.zero_point.set(row, 0.5); });
  call("a zero_point of -0", {}, [](Problem& p, DirectWeight&) { p.layer.zero_point.set(3, -0.0); });
  call("a weight without zero_point", {}, [](Problem&, DirectWeight& w) { w.parts()[2] = w.parts()[3], w.weight().part_count = 3; });
  call("a weight without zero_point and bias", {}, [](Problem&, DirectWeight& w) { w.weight().part_count = 2; });
}

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
  explain(SQ_OP_NUMERIC_GUARD + 1, &guard, {Code::CALL_VALUE}, "an operation that does not exist");
  explain(-1, &guard, {Code::CALL_VALUE}, "operation -1");
  explain(SQ_OP_QUANTIZE, nullptr, {Code::CALL_NULL}, "quantize without arguments");
  std::string text;
  call_refused("explain without a sink", {Code::CALL_NULL}, {}, [&](sq_error* e) { return instance.linear().explain(instance.get(), SQ_OP_QUANTIZE, &quantize, nullptr, nullptr, e); });
  call_refused("explain without a context", {Code::CALL_NULL}, {}, [&](sq_error* e) { return instance.linear().explain(nullptr, SQ_OP_QUANTIZE, &quantize, append_text, &text, e); });
  call_refused("quantize without a context", {Code::CALL_NULL}, {}, [&](sq_error* e) { return instance.linear().quantize(nullptr, &quantize, e); });
}

/// Ranks 0 and 8 and any stride are taken, -1 and 9 are not.
void run_guard_borders(Trial& trial) {
  Instance& instance = trial.instance();
  Guarded x("x", Role::in, SQ_F32, {24});
  x.fill(1.0);
  x.set(0, NAN), x.set(5, -INFINITY), x.set(23, INFINITY);
  const auto count = [&](std::vector<std::int64_t> shape, std::vector<std::int64_t> strides, const std::function<void(sq_tensor&)>& change, Codes codes) {
    Guarded counts("counts", Role::inout, SQ_I64, {2});
    counts.set(0, 100), counts.set(1, 200);
    counts.arm();
    sq_tensor view = *x.tensor();
    view.rank = static_cast<std::int32_t>(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) view.shape[i] = shape[i], view.strides[i] = strides[i];
    change(view);
    auto args = sized<sq_numeric_guard_args>();
    args.x = &view;
    args.counts = counts.tensor();
    const auto operation = [&](sq_error* e) { return instance.linear().numeric_guard(instance.get(), &args, e); };
    if (codes.size() != 0) {
      call_refused("numeric_guard", codes, {}, operation);
      if (const std::string damage = counts.damage_after_refusal(); !damage.empty()) fail(damage);
      return std::pair(-1.0, -1.0);
    }
    call_ok("numeric_guard", {}, operation);
    return std::pair(counts.at(0) - 100, counts.at(1) - 200);
  };
  const auto as_is = [](sq_tensor&) {};
  const auto expect = [&](const char* what, std::pair<double, double> got, double nans, double infinite) {
    require(got.first == nans && got.second == infinite, std::string(what) + ": counted " + std::to_string(got.first) + " NaN and " + std::to_string(got.second) + " infinite");
  };
  expect("rank 0", count({}, {}, as_is, {}), 1, 0);
  expect("rank 8", count({1, 2, 1, 3, 1, 2, 1, 2}, {24, 12, 12, 4, 4, 2, 2, 1}, as_is, {}), 1, 2);
  expect("rank 3, transposed", count({4, 3, 2}, {1, 4, 12}, as_is, {}), 1, 2);
  expect("every fifth", count({4}, {5}, as_is, {}), 1, 1);
  expect("nothing, without data", count({3, 0}, {1, 1}, [](sq_tensor& t) { t.data = nullptr; }, {}), 0, 0);
  count({24}, {1}, [](sq_tensor& t) { t.rank = -1; }, {Code::CALL_SHAPE});
  count({24}, {1}, [](sq_tensor& t) { t.rank = SQ_MAX_RANK + 1; }, {Code::CALL_SHAPE});
  count({2, -1}, {1, 1}, as_is, {Code::CALL_SHAPE});
  count({24}, {1}, [](sq_tensor& t) { t.data = nullptr; }, {Code::CALL_NULL});
  count({24}, {1}, [](sq_tensor& t) { t.device.kind ^= 1; }, {Code::CALL_DEVICE});
  for (const std::int32_t dtype : {SQ_I8, SQ_U8, SQ_I32, SQ_I64}) count({2}, {1}, [dtype](sq_tensor& t) { t.dtype = dtype; }, {Code::CALL_DTYPE});
}

/// A host without an allocator: the implementation has its own, and its buffers are large enough.
void run_own_allocation(Trial& trial) {
  Random random = trial.random("data");
  Problem p(257, Layer("own", 63, 300, 64, true), SQ_F32);
  fill(p, random, {.rank = 3});
  const DirectWeight direct(p.layer);
  auto lora = sized<sq_lora>();
  lora.scaling = p.adapter->scaling;
  lora.a_t = p.adapter->a_t.tensor();
  lora.b_t = p.adapter->b_t.tensor();
  const Expected expected = oracle_forward(p).y;
  for (const std::uint32_t threads : {3u, 0u}) {  // 0: as many as there are
    sq_host host{};
    host.threads = threads;
    host.deterministic = 1;
    host.device.kind = trial.description().device == "cuda" ? SQ_CUDA : SQ_CPU;
    const Context context(trial.subject().of_group("linear"), host);
    Guarded y("y", Role::out, SQ_F32, {257, 63});
    auto args = sized<sq_linear_forward_args>();
    args.weight = direct.ref();
    args.x = p.x.tensor();
    args.lora = &lora;
    args.y = y.tensor();
    call_ok("linear_forward of a host without allocator", {&p.x, &y}, [&](sq_error* e) { return context.linear().linear_forward(context.get(), &args, e); });
    compare(trial, y, expected);
  }
}

/// What a host may say when it makes an instance.
void run_create(Trial& trial) {
  const sq_implementation& table = trial.subject().of_group("linear").table();
  const sq_device own = {trial.description().device == "cuda" ? SQ_CUDA : SQ_CPU, 0};
  Meter meter;
  const auto create = [&](const std::string& what, Codes codes, const std::function<void(sq_host&)>& change) {
    auto host = sized<sq_host>();
    host.abi_version = SQ_ABI_VERSION;
    host.device = own;
    host.threads = 2;
    host.allocator = meter.table();
    change(host);
    sq_context* context = nullptr;
    const auto operation = [&](sq_error* e) { return table.create(&host, &context, e); };
    if (codes.size() != 0) {
      call_refused(what, codes, {}, operation);
      require(context == nullptr, what + ": refused, but an instance was made");
      return;
    }
    call_ok(what, {}, operation);
    require(context != nullptr, what + ": no instance");
    table.destroy(context);
  };
  create("an instance", {}, [](sq_host&) {});
  create("an instance with as many threads as there are", {}, [](sq_host& h) { h.threads = 0; });
  for (const std::uint32_t version : {SQ_ABI_VERSION - 1, SQ_ABI_VERSION + 1})
    create("an instance for contract version " + std::to_string(version), {Code::CALL_VERSION}, [version](sq_host& h) { h.abi_version = version; });
  create("an instance on the other kind of device", {Code::CALL_DEVICE}, [](sq_host& h) { h.device.kind ^= 1; });
  create("an instance on device 99", {Code::CALL_DEVICE}, [](sq_host& h) { h.device.index = 99; });
  sq_allocator half = *meter.table();
  create("an allocator that cannot release", {Code::CALL_NULL}, [&](sq_host& h) { half.release = nullptr, h.allocator = &half; });
  half = *meter.table();
  create("an allocator that cannot allocate", {Code::CALL_NULL}, [&](sq_host& h) { half.allocate = nullptr, h.allocator = &half; });
  require(meter.held() == 0 && meter.misuse().empty(), "memory was kept or misused: " + meter.misuse());
}

}  // namespace

void add_refused(Cases& cases) {
  const std::vector<std::string> refusal = {"SQ-LIN-046", "SQ-ERR-007", "SQ-LIN-040", "SQ-LIN-041", "SQ-LIN-043", "SQ-LIN-044", "SQ-LIN-045", "SQ-LIN-048", "SQ-LIN-049"};
  const auto also = [&](std::initializer_list<const char*> more) {
    std::vector<std::string> ids = refusal;
    ids.insert(ids.end(), more.begin(), more.end());
    return ids;
  };
  cases.push_back({5, "int8.refused", Kind::vector, refusal, {"linear", "lora", "operation:linear_forward", "operation:quantize_activation", "dtype:bf16", "dtype:f16"}, "int8 activations of wrong shape read past their end; two inputs taken, one used", run_given_refused});
  cases.push_back({5, "quantize_activation.refused", Kind::vector, also({"SQ-LIN-050"}), {"linear", "operation:quantize_activation"}, "groups that do not divide the rows, unused arguments ignored", run_quantize_activation});
  for (const auto& [dtype, name] : activation_dtypes)
    cases.push_back({5, std::string("quantize_activation.modulated.") + name, Kind::property, {"SQ-QNT-023", "SQ-NUM-022", "SQ-QNT-022"}, {"linear", "operation:quantize_activation", std::string("dtype:") + name},
                     "sample variance, epsilon outside the root, a wrong group of rows", [dtype = dtype](Trial& t) { run_modulated(t, dtype); }});
  const std::vector<std::string> lora = {"linear", "lora", "operation:linear_forward", "operation:linear_backward"};
  cases.push_back({5, "backward.refused", Kind::vector, also({"SQ-LIN-050", "SQ-LOR-015", "SQ-LOR-016"}), {"linear", "lora", "operation:linear_backward", "dtype:bf16"}, "a needed input guessed, a needless one demanded", run_backward_refused});
  for (const auto& [dtype, name] : activation_dtypes)
    for (const bool own : {false, true}) {
      std::vector<std::string> needs = lora;
      needs.push_back(std::string("dtype:") + name);
      cases.push_back({5, std::string("backward.subsets.") + name + (own ? ".own_input" : ""), Kind::property, {"SQ-LIN-013", "SQ-LOR-011"}, needs, "an output that depends on which others are asked for",
                       [dtype = dtype, own](Trial& t) { run_subsets(t, dtype, own); }});
    }
  cases.push_back({5, "quantize.refused.calls", Kind::vector, refusal, {"linear", "operation:quantize"}, "outputs of wrong shape written past their end", run_quantize_refused});
  cases.push_back({5, "dequantize.borders", Kind::vector, {"SQ-QNT-014", "SQ-LIN-046"}, {"linear", "operation:dequantize"}, "the last row refused, or the one after it read", run_dequantize_borders});
  cases.push_back({5, "weight.borders", Kind::vector, {"SQ-LIN-044", "SQ-LIN-048", "SQ-LIN-041", "SQ-LIN-043", "SQ-QNT-015"}, {"linear", "operation:dequantize"}, "a zero_point looked for in some rows only", run_weight_borders});
  cases.push_back({15, "guard.rank_borders", Kind::vector, {"SQ-LIN-030", "SQ-LIN-046"}, {"linear", "operation:numeric_guard"}, "a rank past the struct's end read as a shape; strides ignored", run_guard_borders});
  cases.push_back({5, "linear.create", Kind::vector, {"SQ-CNV-002", "SQ-CNV-007", "SQ-ERR-007", "SQ-ERR-009"}, {"linear", "in_process"}, "another contract version, a device that is not there, half an allocator accepted", run_create});
  cases.push_back({5, "linear.own_allocation", Kind::vector, {"SQ-CNV-007", "SQ-LIN-001"}, {"linear", "lora", "operation:linear_forward"}, "an implementation that works only with the host's allocator", run_own_allocation});
  cases.push_back({5, "linear.explain", Kind::vector, {"SQ-LIN-031", "SQ-LIN-032", "SQ-ERR-008"}, {"linear", "lora", "operation:quantize", "operation:dequantize", "operation:linear_forward", "operation:linear_backward", "operation:quantize_activation", "operation:numeric_guard", "dtype:bf16"},
                   "an explanation that computes, or accepts what the operation refuses", run_explain});
}

}  // namespace squareq::gates::g05
