// quantize_activation: its refusals and borders, and the numbers behind LAYERNORM_MODULATE.
#include <algorithm>
#include <cmath>
#include <functional>

#include "gates/g05_forward/refused.hpp"

namespace squareq::gates::g05 {
namespace {

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

}  // namespace

void add_quantize_activation(Cases& cases) {
  cases.push_back({5, "quantize_activation.refused", Kind::vector, refusal_ids({"SQ-LIN-050"}), {"linear", "operation:quantize_activation"}, "groups that do not divide the rows, unused arguments ignored", run_quantize_activation});
  for (const auto& [dtype, name] : activation_dtypes)
    cases.push_back({5, std::string("quantize_activation.modulated.") + name, Kind::property, {"SQ-QNT-023", "SQ-NUM-022", "SQ-QNT-022"}, {"linear", "operation:quantize_activation", std::string("dtype:") + name},
                     "sample variance, epsilon outside the root, a wrong group of rows", [dtype = dtype](Trial& t) { run_modulated(t, dtype); }});
}

}  // namespace squareq::gates::g05
