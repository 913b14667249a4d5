// Generic data against the float64 oracle within derived bounds, and against the reference backend.
#include <cmath>

#include "gates/g05_forward/g05_forward.hpp"
#include "gates/harness/property.hpp"
#include "squareq/tensor.hpp"

namespace squareq::gates::g05 {
namespace {

void compare_forward(Trial& trial, Problem& p) {
  const bool activated = p.activation != SQ_ACT_NONE;
  const ForwardOutputs out = forward(trial.instance(), p, {.preactivation = activated});
  const ForwardOracle oracle = oracle_forward(p);
  compare(trial, out.y, oracle.y);
  if (activated) compare(trial, *out.preactivation, oracle.preactivation);
}

void run_activation(Trial& trial, sq_activation activation, std::int32_t dtype) {
  Random random = trial.random("data");
  Problem p(9, Layer("mlp", 67, 129, 64, true), dtype);
  p.y_dtype = dtype;
  p.activation = activation;
  fill(p, random, {});
  // Spread the pre-activations over the whole curve: negative as far as fp32 resolves it, around zero, far positive.
  p.layer.bias.fill([&] { return random.uniform(-5.5, 12); });
  compare_forward(trial, p);
}

void run_activation_backward(Trial& trial, sq_activation activation, std::int32_t dtype) {
  Random random = trial.random("data");
  Problem p(9, Layer("mlp", 67, 129, 64, true), dtype);
  p.activation = activation;
  fill(p, random, {});
  Guarded z("preactivation", Role::in, SQ_F32, {p.m, p.layer.n});
  z.fill([&] { return random.uniform(-8, 8); });
  Guarded dy("dy", Role::in, dtype, {p.m, p.layer.n});
  dy.fill([&] { return random.normal(); });
  BackwardOutputs out = backward(trial.instance(), p, dy, &z, nullptr);
  compare(trial, *out.dx, oracle_backward(p, dy, &z).dx);
}

/// Any shape and magnitude: forward and dX within their bounds.
void run_property(Trial& trial, std::int32_t dtype) {
  Instance& instance = trial.instance();
  check_property(trial, 24, [&](Draws& draws) {
    const std::int64_t m = draws.integer("m", 1, 19), k = draws.integer("k", 1, 300), n = draws.integer("n", 1, 90), pack = draws.choose("pack", {1, 64, 2, 3, 8, 31});
    const bool bias = draws.coin("bias");
    const double x_size = std::ldexp(1.0, static_cast<int>(draws.integer("x_exponent", -4, 4)));
    Random random = draws.random("data");
    Problem p(m, Layer("property", n, k, pack, bias), dtype);
    p.y_dtype = dtype;
    fill(p, random, {});
    for (std::int64_t i = 0; i < p.x.count(); ++i) p.x.set(i, p.x.at(i) * x_size);
    const ForwardOutputs out = forward(instance, p);
    compare(trial, out.y, oracle_forward(p).y);
    Guarded dy("dy", Role::in, dtype, {m, n});
    dy.fill([&] { return random.normal(); });
    BackwardOutputs back = backward(instance, p, dy, nullptr, nullptr);
    compare(trial, *back.dx, oracle_backward(p, dy, nullptr).dx);
  });
}

/// Backend against reference: each is within its bound of the exact value, so they are within twice the bound of each other.
void run_differential(Trial& trial, std::int32_t dtype) {
  Random random = trial.random("data");
  Problem p(37, Layer("differential", 192, 320, 64, true), dtype);
  p.y_dtype = dtype;
  p.activation = SQ_ACT_GELU_TANH;
  fill(p, random, {.rank = 0});
  const ForwardOutputs mine = forward(trial.instance(), p, {.preactivation = true});
  const ForwardOutputs other = forward(trial.reference(), p, {.preactivation = true});
  const ForwardOracle oracle = oracle_forward(p);
  Expected y{other.y.values(), oracle.y.bound}, z{other.preactivation->values(), oracle.preactivation.bound};
  for (double& b : y.bound) b *= 2;
  for (double& b : z.bound) b *= 2;
  compare(trial, mine.y, y);
  compare(trial, *mine.preactivation, z);
}

/// One row of huge, one of tiny scales, one of zeros: no overflow inside, exact bias where the row is zero.
void run_extreme_scales(Trial& trial) {
  Random random = trial.random("data");
  Problem p(5, Layer("extreme", 4, 70, 64, true), SQ_F32);
  fill(p, random, {});
  p.layer.scale.set(0, 1e30);
  p.layer.scale.set(1, 1e-8);
  for (std::int64_t k = 0; k < p.layer.k; ++k) p.layer.qweight.set(2, k, 0);
  const ForwardOutputs out = forward(trial.instance(), p);
  const ForwardOracle oracle = oracle_forward(p);
  compare(trial, out.y, oracle.y);
  for (std::int64_t m = 0; m < p.m; ++m)
    require(out.y.at(m, 2) == p.layer.bias.at(2), "a row of zero codes must give the bias itself, got " + std::to_string(out.y.at(m, 2)));
}

/// NaN and infinity in one row of x stay in that row of y and are not swallowed.
void run_nonfinite(Trial& trial) {
  Random random = trial.random("data");
  for (const double poison : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    Problem p(4, Layer("nonfinite", 21, 64, 64, true), SQ_F32);
    fill(p, random, {});
    p.x.set(2, 17, poison);
    const ForwardOutputs out = forward(trial.instance(), p);
    compare(trial, out.y, oracle_forward(p).y);
  }
}

/// The published gate compares with float weights by mean(|err|/|ref|), which a correct module fails on 7 of 200 seeds; this one is
/// sharp: relative Frobenius error and cosine of an 8-bit layer (a 7-bit layer misses both).
void run_against_float(Trial& trial) {
  Random random = trial.random("data");
  constexpr std::int64_t n = 256, k = 128, m = 64;
  Guarded w("w", Role::in, SQ_F32, {n, k});
  w.fill([&] { return 0.02 * random.normal(); });
  Problem p(m, Layer("float", n, k, 64, false), SQ_F32);
  for (std::int64_t i = 0; i < p.x.count(); ++i) p.x.set(i, random.normal());
  Guarded q("qweight", Role::out, SQ_I8, {n, k}), scale("scale", Role::out, SQ_F32, {n}), zero("zero_point", Role::out, SQ_F32, {n});
  const sq_part parts[] = {{"qweight", *q.tensor()}, {"scale", *scale.tensor()}, {"zero_point", *zero.tensor()}};
  auto args = sized<sq_quantize_args>();
  args.pack_k = 64;
  args.format = "bp8_v2";
  args.name = "float";
  args.w = w.tensor();
  args.out = parts;
  args.out_count = 3;
  Instance& instance = trial.instance();
  call_ok("quantize", {&w, &q, &scale, &zero}, [&](sq_error* e) { return instance.linear().quantize(instance.get(), &args, e); });
  p.layer.qweight.set_bytes(q.bytes());
  p.layer.scale.set_bytes(scale.bytes());
  const ForwardOutputs out = forward(instance, p);
  double error = 0, size = 0, product = 0, own = 0;
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      double ref = 0;
      for (std::int64_t c = 0; c < k; ++c) ref += p.x.at(i, c) * w.at(j, c);
      const double y = out.y.at(i, j);
      error += (y - ref) * (y - ref);
      size += ref * ref;
      own += y * y;
      product += ref * y;
    }
  const double relative = std::sqrt(error / size), cosine = product / std::sqrt(size * own);
  trial.margin(relative / 0.009);
  trial.margin((1 - cosine) / 1e-4);
}

}  // namespace

void add_generic(Cases& cases) {
  for (const auto& [dtype, name] : activation_dtypes) {
    const std::vector<std::string> needs = {"linear", "operation:linear_forward", "operation:linear_backward", std::string("dtype:") + name};
    cases.push_back({5, std::string("linear.property.") + name, Kind::property, {"SQ-NUM-020", "SQ-NUM-021", "SQ-LIN-001", "SQ-LIN-010"}, needs, "any shape or size where the error leaves its bound",
                     [dtype = dtype](Trial& t) { run_property(t, dtype); }});
    cases.push_back({5, std::string("forward.differential.") + name, Kind::differential, {"SQ-NUM-020"}, needs, "backend and reference apart by more than both bounds",
                     [dtype = dtype](Trial& t) { run_differential(t, dtype); }});
    for (const auto& [activation, activation_name] : activations) {
      cases.push_back({5, std::string("forward.") + activation_name + "." + name, Kind::vector, {"SQ-LIN-020", "SQ-LIN-004", "SQ-NUM-020"}, needs,
                       "tanh and erf forms confused, activation of the rounded sum, saved pre-activation after instead of before",
                       [activation = activation, dtype = dtype](Trial& t) { run_activation(t, activation, dtype); }});
      cases.push_back({5, std::string("backward.") + activation_name + "." + name, Kind::vector, {"SQ-LIN-021", "SQ-NUM-021"}, needs, "activation derivative missing or of the other form",
                       [activation = activation, dtype = dtype](Trial& t) { run_activation_backward(t, activation, dtype); }});
    }
  }
  const std::vector<std::string> needs = {"linear", "operation:linear_forward"};
  cases.push_back({5, "forward.extreme_scales", Kind::vector, {"SQ-LIN-001", "SQ-NUM-020"}, needs, "overflow in a scaled intermediate; scale rounded to 16 bits", run_extreme_scales});
  cases.push_back({5, "forward.nonfinite_stays", Kind::vector, {"SQ-NUM-001", "SQ-LIN-001"}, needs, "NaN or infinity swallowed, or spread to other rows", run_nonfinite});
  cases.push_back({5, "forward.against_float_weights", Kind::property, {"SQ-QNT-002", "SQ-QNT-004"}, {"linear", "operation:linear_forward", "operation:quantize"},
                   "fewer than 8 bits, floor instead of rounding", run_against_float});
}

}  // namespace squareq::gates::g05
