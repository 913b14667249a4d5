// Small calls whose exact answer can be written down, each on a border that larger random cases do not meet.
#include <cmath>

#include "gates/g05_forward/g05_forward.hpp"
#include "gates/harness/quantize_call.hpp"

namespace squareq::gates::g05 {
namespace {

/// Every pack_k from 0 to 5 pads to its own multiple, and the largest rows whose 127 * scale is finite are taken.
void run_quantize(Trial& trial) {
  Instance& instance = trial.instance();
  for (const std::int64_t pack : {0, 1, 2, 3, 4, 5}) {
    Guarded w("w", Role::in, SQ_F32, {2, 7});
    w.fill([k = 0]() mutable { return static_cast<double>(++k); });
    const Quantized q = quantize(instance, w, pack);
    for (std::int64_t row = 0; row < 2; ++row)
      for (std::int64_t k = 7; k < q.qweight.columns(); ++k) require(q.qweight.at(row, k) == 0, "pack_k " + std::to_string(pack) + ": padding is not 0");
  }
  Guarded large("w", Role::in, SQ_F32, {3, 2});
  const float amax[3] = {3.4e38f, 3.39e38f, 3.38e38f};  // above 127 / 128 of the largest float
  for (std::int64_t row = 0; row < 3; ++row) large.set(row, 0, amax[row]), large.set(row, 1, -amax[row]);
  const Quantized q = quantize(instance, large, 1);
  for (std::int64_t row = 0; row < 3; ++row) {
    require(q.scale.at(row) == static_cast<double>(amax[row] / 127.0f), "scale of row " + std::to_string(row) + " is " + std::to_string(q.scale.at(row)));
    require(q.qweight.at(row, 0) == 127 && q.qweight.at(row, 1) == -127, "codes of row " + std::to_string(row) + " are not 127 and -127");
  }
}

/// A layer of ones: codes 1, scales 1, no bias.
Layer ones(std::int64_t n, std::int64_t k) {
  Layer layer("ones", n, k, 1, false);
  layer.qweight.fill(1.0);
  layer.scale.fill(1.0);
  return layer;
}

double forward_of(Instance& instance, Layer& layer, Guarded& x, std::int32_t compute) {
  const DirectWeight direct(layer);
  Guarded y("y", Role::out, SQ_F32, {1, 1});
  auto args = sized<sq_linear_forward_args>();
  args.weight = direct.ref();
  args.compute = compute;
  args.x = x.tensor();
  args.y = y.tensor();
  call_ok("linear_forward with compute " + std::to_string(compute), {&x, &y}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); });
  return y.at(0);
}

double backward_of(Instance& instance, Layer& layer, Guarded& dy, std::int32_t compute) {
  const DirectWeight direct(layer);
  Guarded dx("dx", Role::out, SQ_F32, {1, 1});
  auto args = sized<sq_linear_backward_args>();
  args.weight = direct.ref();
  args.compute = compute;
  args.dy = dy.tensor();
  args.dx = dx.tensor();
  call_ok("linear_backward with compute " + std::to_string(compute), {&dy, &dx}, [&](sq_error* e) { return instance.linear().linear_backward(instance.get(), &args, e); });
  return dx.at(0);
}

/// 127 and 0.25 in one row: class R4 has the codes 127 and 0, exact weights the sum 127.25.
void run_compute(Trial& trial, bool int8) {
  Instance& instance = trial.instance();
  Layer wide = ones(1, 2), tall = ones(2, 1);
  Guarded x("x", Role::in, SQ_F32, {1, 2}), dy("dy", Role::in, SQ_F32, {1, 2});
  for (Guarded* g : {&x, &dy}) g->set(0, 127.0), g->set(1, 0.25);
  const auto expect = [&](std::int32_t compute, double value) {
    const double y = forward_of(instance, wide, x, compute), dx = backward_of(instance, tall, dy, compute);
    require(y == value, "compute " + std::to_string(compute) + ": y is " + std::to_string(y) + ", must be " + std::to_string(value));
    require(dx == value, "compute " + std::to_string(compute) + ": dx is " + std::to_string(dx) + ", must be " + std::to_string(value));
  };
  if (int8) return expect(SQ_COMPUTE_W8A8, 127.0);
  expect(SQ_COMPUTE_DEFAULT, 127.25);
  expect(SQ_COMPUTE_EXACT_W, 127.25);
}

/// Y has X's dtype or F32, without a branch too.
void run_y_dtype(Trial& trial) {
  Instance& instance = trial.instance();
  Layer layer = ones(3, 2);
  const DirectWeight direct(layer);
  for (const auto& [x_dtype, x_name] : activation_dtypes)
    for (const auto& [y_dtype, y_name] : activation_dtypes) {
      Guarded x("x", Role::in, x_dtype, {2, 2}), y("y", Role::out, y_dtype, {2, 3});
      x.fill(0.5);
      auto args = sized<sq_linear_forward_args>();
      args.weight = direct.ref();
      args.x = x.tensor();
      args.y = y.tensor();
      const std::string what = std::string("linear_forward from ") + x_name + " to " + y_name;
      const auto operation = [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); };
      if (y_dtype == x_dtype || y_dtype == SQ_F32) call_ok(what, {&x, &y}, operation);
      else call_refused(what, {Code::CALL_DTYPE}, {&x, &y}, operation);
    }
}

/// A scaling that is not finite, and a rank of 0 that every tensor agrees on.
void run_lora(Trial& trial) {
  Instance& instance = trial.instance();
  Layer layer = ones(3, 2);
  const DirectWeight direct(layer);
  const auto refused = [&](const std::string& what, Code code, std::int64_t rank, float scaling) {
    Guarded x("x", Role::in, SQ_F32, {2, 2}), y("y", Role::out, SQ_F32, {2, 3}), dy("dy", Role::in, SQ_F32, {2, 3}), dx("dx", Role::out, SQ_F32, {2, 2});
    for (Guarded* g : {&x, &dy}) g->fill(0.5);
    Guarded a_t("a_t", Role::in, SQ_F32, {rank, 2}), b_t("b_t", Role::in, SQ_F32, {3, rank});
    for (Guarded* g : {&a_t, &b_t}) g->fill(0.0);
    auto lora = sized<sq_lora>();
    lora.scaling = scaling;
    lora.a_t = a_t.tensor();
    lora.b_t = b_t.tensor();
    auto forward_args = sized<sq_linear_forward_args>();
    forward_args.weight = direct.ref();
    forward_args.x = x.tensor();
    forward_args.y = y.tensor();
    forward_args.lora = &lora;
    auto backward_args = sized<sq_linear_backward_args>();
    backward_args.weight = direct.ref();
    backward_args.dy = dy.tensor();
    backward_args.x = x.tensor();
    backward_args.dx = dx.tensor();
    backward_args.lora = &lora;
    call_refused("linear_forward with " + what, {code}, {&x, &y}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &forward_args, e); });
    call_refused("linear_backward with " + what, {code}, {&dy, &x, &dx}, [&](sq_error* e) { return instance.linear().linear_backward(instance.get(), &backward_args, e); });
  };
  for (const float scaling : {HUGE_VALF, -HUGE_VALF, std::nanf("")}) refused("scaling " + std::to_string(scaling), Code::CALL_VALUE, 1, scaling);
  refused("a rank of 0", Code::CALL_SHAPE, 0, 1);
}

/// H and D are 2^m (1 + t), t below half a unit of the dtype: rounded they are 2^m in every row, and so is all that is made of them.
void run_rounding(Trial& trial, std::int32_t dtype) {
  Instance& instance = trial.instance();
  const double t = dtype == SQ_BF16 ? 0x1p-10 : 0x1p-13;
  constexpr std::int64_t rows = 4;
  Problem p(rows, Layer("rounded", 2, 2, 1, false), dtype);
  p.layer.qweight.fill(0.0);
  p.layer.scale.fill(1.0);
  Adapter& a = p.adapter.emplace(1, 2, 2, 1.0f);
  a.a_t.set(0, 1.0), a.a_t.set(1, t);
  a.b_t.set(0, 1.0), a.b_t.set(1, t);
  Guarded dy("dy", Role::in, SQ_F32, {rows, 2});
  for (std::int64_t m = 0; m < rows; ++m)
    for (std::int64_t k = 0; k < 2; ++k) p.x.set(m, k, std::ldexp(1.0, static_cast<int>(m))), dy.set(m, k, std::ldexp(1.0, static_cast<int>(m)));
  p.y_dtype = SQ_F32;
  const ForwardOutputs out = forward(instance, p, {.h = true});
  Expected h, y, dx;
  for (std::int64_t m = 0; m < rows; ++m) {
    const double power = std::ldexp(1.0, static_cast<int>(m));
    h.add(power, 0);
    for (const double factor : {1.0, t}) y.add(power * factor, 0), dx.add(power * factor, 0);
  }
  compare(trial, *out.h, h);
  compare(trial, out.y, y);
  const BackwardOutputs back = backward(instance, p, dy, nullptr, nullptr);
  compare(trial, *back.dx, dx);
  // sum_m D[m] X[m, k] and sum_m H[m] G[m, n]: 1 + 4 + 16 + 64.
  compare(trial, *back.da_t, Expected{{85, 85}, {0, 0}});
  compare(trial, *back.db_t, Expected{{85, 85}, {0, 0}});
}

}  // namespace

void add_borders(Cases& cases) {
  const std::vector<std::string> both = {"linear", "operation:linear_forward", "operation:linear_backward"};
  const auto with = [&](std::initializer_list<const char*> more) {
    std::vector<std::string> needs = both;
    needs.insert(needs.end(), more.begin(), more.end());
    return needs;
  };
  cases.push_back({5, "borders.quantize", Kind::vector, {"SQ-QNT-001", "SQ-QNT-002"}, {"linear", "operation:quantize"}, "rows padded to another multiple than asked for; large rows refused too early", run_quantize});
  cases.push_back({5, "borders.compute.exact", Kind::vector, {"SQ-NUM-005", "SQ-LIN-001", "SQ-LIN-010"}, both, "exact weights refused, or answered with int8 activations", [](Trial& t) { run_compute(t, false); }});
  cases.push_back({5, "borders.compute.int8", Kind::vector, {"SQ-NUM-005", "SQ-LIN-003", "SQ-LIN-012"}, with({"operation:quantize_activation"}), "W8A8 accepted and answered with exact weights", [](Trial& t) { run_compute(t, true); }});
  cases.push_back({5, "borders.y_dtype", Kind::vector, {"SQ-LIN-040"}, {"linear", "operation:linear_forward", "dtype:f32", "dtype:bf16", "dtype:f16"}, "an output dtype that nobody promised", run_y_dtype});
  cases.push_back({5, "borders.lora", Kind::vector, {"SQ-LIN-045", "SQ-LOR-014"}, with({"lora"}), "an infinite scaling, or a branch without rank, taken", run_lora});
  for (const auto& [dtype, name] : activation_dtypes)
    if (dtype != SQ_F32)
      cases.push_back({5, std::string("borders.rounding.") + name, Kind::vector, {"SQ-LOR-003", "SQ-LOR-004", "SQ-LOR-010"}, with({"lora", dtype == SQ_BF16 ? "dtype:bf16" : "dtype:f16"}), "H or D not rounded in some rows",
                       [dtype = dtype](Trial& t) { run_rounding(t, dtype); }});
}

}  // namespace squareq::gates::g05
