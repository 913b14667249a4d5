// Refusals and borders of numeric_guard.
#include <cmath>
#include <functional>

#include "gates/g05_forward/refused.hpp"

namespace squareq::gates::g05 {
namespace {

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

}  // namespace

void add_guard_borders(Cases& cases) {
  cases.push_back({15, "guard.rank_borders", Kind::vector, {"SQ-LIN-030", "SQ-LIN-046"}, {"linear", "operation:numeric_guard"}, "a rank past the struct's end read as a shape; strides ignored", run_guard_borders});
}

}  // namespace squareq::gates::g05
