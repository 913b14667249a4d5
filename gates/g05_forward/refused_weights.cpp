// Refusals and borders of quantize and dequantize, and of the weight itself.
#include <algorithm>
#include <functional>

#include "gates/g05_forward/refused.hpp"

namespace squareq::gates::g05 {
namespace {

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
  Problem p = small_problem(trial);
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
    Problem p = small_problem(trial);
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

}  // namespace

void add_refused_weights(Cases& cases) {
  cases.push_back({5, "quantize.refused.calls", Kind::vector, refusal_ids(), {"linear", "operation:quantize"}, "outputs of wrong shape written past their end", run_quantize_refused});
  cases.push_back({5, "dequantize.borders", Kind::vector, {"SQ-QNT-014", "SQ-LIN-046"}, {"linear", "operation:dequantize"}, "the last row refused, or the one after it read", run_dequantize_borders});
  cases.push_back({5, "weight.borders", Kind::vector, {"SQ-LIN-044", "SQ-LIN-048", "SQ-LIN-041", "SQ-LIN-043", "SQ-QNT-015"}, {"linear", "operation:dequantize"}, "a zero_point looked for in some rows only", run_weight_borders});
}

}  // namespace squareq::gates::g05
