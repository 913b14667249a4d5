// The reference, computed through the contract, against libtorch's autograd in float64: the whole step of a linear layer with a low-rank
// branch, within the bounds of spec/35-numerics.md. The suite's oracle, from which other backends are judged, is held against the same.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "gates/harness/bounds.hpp"
#include "gates/harness/goldens.hpp"
#include "gates/harness/half.hpp"
#include "gates/harness/linear.hpp"
#include "gates/proof/autograd.hpp"
#include "squareq/tensor.hpp"

namespace squareq::gates::proof {
namespace {

struct Shape {
  std::int64_t m, k, n, pack, rank;
};

// Odd, prime, M = 0 and 1, K off, on and beside a multiple of pack_k, ranks above min(in, out).
constexpr Shape shapes[] = {{0, 5, 3, 8, 2},     {1, 1, 1, 1, 1},    {1, 2, 3, 64, 7},   {2, 3, 5, 4, 16},    {7, 13, 11, 1, 5}, {3, 31, 37, 64, 1},
                            {5, 64, 64, 64, 4},  {4, 65, 63, 64, 8}, {17, 100, 33, 64, 3}, {2, 127, 131, 64, 96}, {9, 257, 19, 64, 2}, {33, 48, 7, 16, 12},
                            {3, 512, 6, 64, 4},  {6, 1, 23, 8, 3},   {23, 29, 1, 1, 6},  {1, 61, 59, 16, 61}};
constexpr std::int32_t dtypes[] = {SQ_F32, SQ_BF16, SQ_F16};
constexpr sq_activation activations[] = {SQ_ACT_NONE, SQ_ACT_GELU_TANH, SQ_ACT_GELU_ERF, SQ_ACT_SILU};
enum class Branch { none, shared_x, own_x };

double rounded(double value, std::int32_t dtype) {
  if (dtype == SQ_BF16) return from_bf16(to_bf16(static_cast<float>(value)));
  return dtype == SQ_F16 ? from_f16(to_f16(value)) : value;
}

Numbers rounded(Numbers values, std::int32_t dtype) {
  for (double& v : values) v = rounded(v, dtype);
  return values;
}

/// One layer with random data, and the step that it is, in float64.
struct Sample {
  Problem problem;
  Guarded dy;
  Numbers initial_a, initial_b;
  bool accumulate = false;

  Sample(const Shape& s, std::int32_t dtype, sq_activation activation, Branch branch, Random& random)
      : problem(s.m, Layer("proof", s.n, s.k, s.pack, random.integer(0, 3) != 0), dtype), dy("dy", Role::in, random.integer(0, 1) ? dtype : SQ_F32, {s.m, s.n}) {
    fill(problem, random, {.rank = branch == Branch::none ? 0 : s.rank, .scaling = static_cast<float>(random.uniform(-2, 2))});
    problem.activation = activation;
    problem.y_dtype = random.integer(0, 1) ? dtype : SQ_F32;
    // Rows from nearly linear to saturated on both sides.
    const double size = std::ldexp(1.0, static_cast<int>(random.integer(-2, 5)));
    for (std::int64_t i = 0; i < problem.x.count(); ++i) problem.x.set(i, problem.x.at(i) * size);
    for (std::int64_t n = 0; n < problem.layer.n; ++n)  // padding is not part of the layer
      for (std::int64_t k = problem.layer.k; k < problem.layer.padded; ++k) problem.layer.qweight.set(n, k, 99);
    dy.fill([&] { return random.normal(); });
    if (branch == Branch::none) return;
    if (branch == Branch::own_x) {
      Guarded& own = problem.adapter->x_own.emplace("lora x", Role::in, dtype, std::vector<std::int64_t>{s.m, s.k});
      for (std::int64_t i = 0; i < own.count(); ++i) own.set(i, random.integer(0, 9) ? problem.x.at(i) / 0.9 : 0.0);  // dropout
    }
    accumulate = random.integer(0, 1) == 1;
    if (!accumulate) return;
    for (std::int64_t i = 0; i < s.rank * s.k; ++i) initial_a.push_back(rounded(static_cast<double>(static_cast<float>(random.normal())), SQ_F32));
    for (std::int64_t i = 0; i < s.n * s.rank; ++i) initial_b.push_back(rounded(static_cast<double>(static_cast<float>(random.normal())), SQ_F32));
  }

  Step step() const {
    const Layer& layer = problem.layer;
    Step s;
    s.m = problem.m, s.k = layer.k, s.n = layer.n;
    s.activation = problem.activation;
    s.x_dtype = problem.x.dtype(), s.y_dtype = problem.y_dtype, s.dy_dtype = dy.dtype();
    for (std::int64_t n = 0; n < s.n; ++n)
      for (std::int64_t k = 0; k < s.k; ++k) s.w.push_back(layer.weight(n, k));
    if (layer.has_bias) s.bias = layer.bias.values();
    s.x = problem.x.values();
    s.dy = dy.values();
    if (!problem.adapter) return s;
    const Adapter& a = *problem.adapter;
    s.rank = a.rank;
    s.scaling = static_cast<double>(a.scaling);
    if (a.x_own) s.lora_x = a.x_own->values();
    s.a_t = rounded(a.a_t.values(), s.x_dtype);
    s.b_t = rounded(a.b_t.values(), s.x_dtype);
    s.initial_a = initial_a, s.initial_b = initial_b;
    return s;
  }
};

/// What an implementation gives for the step: forward that saves, then backward from what was saved.
struct Computed {
  ForwardOutputs forward;
  BackwardOutputs backward;
};

Guarded as_input(const Guarded& output) {
  Guarded in(output.name(), Role::in, output.dtype(), {output.rows(), output.columns()});
  in.set_bytes(output.bytes());
  return in;
}

Computed compute(Instance& instance, Sample& t) {
  Problem& p = t.problem;
  const bool activated = p.activation != SQ_ACT_NONE;
  Computed out{forward(instance, p, {.preactivation = true, .h = p.adapter.has_value()}), {}};
  Guarded saved = as_input(*out.forward.preactivation);
  std::optional<Guarded> h;
  if (p.adapter) h = as_input(*out.forward.h);
  BackwardOutputs accumulators;
  if (t.accumulate) {
    accumulators.da_t.emplace("da_t", Role::inout, SQ_F32, std::vector<std::int64_t>{p.adapter->rank, p.layer.k});
    accumulators.db_t.emplace("db_t", Role::inout, SQ_F32, std::vector<std::int64_t>{p.layer.n, p.adapter->rank});
    for (std::size_t i = 0; i < t.initial_a.size(); ++i) accumulators.da_t->set(static_cast<std::int64_t>(i), t.initial_a[i]);
    for (std::size_t i = 0; i < t.initial_b.size(); ++i) accumulators.db_t->set(static_cast<std::int64_t>(i), t.initial_b[i]);
  }
  out.backward = backward(instance, p, t.dy, activated ? &saved : nullptr, h ? &*h : nullptr, {.accumulate = t.accumulate}, nullptr, t.accumulate ? &accumulators : nullptr);
  if (t.accumulate) {
    out.backward.da_t = std::move(accumulators.da_t);
    out.backward.db_t = std::move(accumulators.db_t);
  }
  return out;
}

/// Largest error in units of its bound, per quantity and activation dtype.
class Margins {
 public:
  ~Margins() {
    for (const auto& [name, margin] : worst_) fmt::print("margin {:<22} {:.3f}\n", name, margin);
  }
  void check(const std::string& name, std::int32_t dtype, const Numbers& got, const Quantity& expected) {
    // Not compare(): saturated activations are 0 in fp32 where float64 still sees 1e-20, which the suite rightly mistrusts in others.
    require(got.size() == expected.value.size(), fmt::format("{}: {} values, expected {}", name, got.size(), expected.value.size()));
    double margin = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double error = std::fabs(got[i] - expected.value[i]);
      require(error <= expected.bound[i], fmt::format("{}[{}] is {:.9g}, autograd says {:.9g} within {:.3g}", name, i, got[i], expected.value[i], expected.bound[i]));  // false for NaN
      margin = std::max(margin, error / expected.bound[i]);
    }
    double& worst = worst_[name + " " + std::string(dtype_name(dtype))];
    worst = std::max(worst, margin);
  }

 private:
  std::map<std::string, double> worst_;
};

Instance& reference() {
  static Instance instance(Implementation::load(find_backend("reference")), 2);
  return instance;
}

template <class F>
void every_step(F&& body) {
  Random random(1, "proof");
  for (const Shape& s : shapes)
    for (const std::int32_t dtype : dtypes)
      for (const sq_activation activation : activations)
        for (const Branch branch : {Branch::none, Branch::shared_x, Branch::own_x}) {
          const std::string what = fmt::format("M {} K {} N {} pack {} rank {}, {}, activation {}, branch {}", s.m, s.k, s.n, s.pack, s.rank, dtype_name(dtype), static_cast<int>(activation), static_cast<int>(branch));
          Sample trial(s, dtype, activation, branch, random);
          ASSERT_NO_THROW(body(trial, random)) << what;
        }
}

TEST(Proof, ReferenceAgreesWithAutograd) {
  Margins margins;
  int steps = 0;
  every_step([&](Sample& t, Random&) {
    const Computed got = compute(reference(), t);
    const StepResult want = autograd_step(t.step());
    const std::int32_t dtype = t.problem.x.dtype();
    const auto check = [&](const char* name, const std::optional<Guarded>& tensor, const Quantity& q) {
      if (tensor) margins.check(name, dtype, tensor->values(), q);
    };
    margins.check("y", dtype, got.forward.y.values(), want.y);
    check("preactivation", got.forward.preactivation, want.preactivation);
    check("h", got.forward.h, want.h);
    check("dx", got.backward.dx, want.dx);
    check("dx_lora", got.backward.dx_lora, want.dx_lora);
    check("da_t", got.backward.da_t, want.da_t);
    check("db_t", got.backward.db_t, want.db_t);
    require(got.backward.da_t.has_value() == t.problem.adapter.has_value(), "an adapter without gradients");
    ++steps;
  });
  fmt::print("{} steps\n", steps);
}

/// The suite's oracle gives the same float64 values (to 1e-13 of the bound's own scale) and the same bounds.
TEST(Proof, OracleAgreesWithAutograd) {
  double worst = 0;
  const auto same = [&](const char* name, const Expected& oracle, const Quantity& torch, std::int32_t dtype) {
    require(oracle.value.size() == torch.value.size(), fmt::format("{}: {} values against {}", name, oracle.value.size(), torch.value.size()));
    for (std::size_t i = 0; i < torch.value.size(); ++i) {
      // Float64 rounding relative to float32 rounding: 2^-29; sums of at most 512 terms.
      const double allowed = 0x1p-20 * (torch.bound[i] - unit_roundoff(dtype) * std::fabs(torch.value[i])) + 1e-15 * std::fabs(torch.value[i]) + 1e-300;
      const double off = std::fabs(oracle.value[i] - torch.value[i]);
      require(off <= allowed, fmt::format("{}[{}]: the oracle says {:.17g}, torch {:.17g}", name, i, oracle.value[i], torch.value[i]));
      require(std::fabs(oracle.bound[i] - torch.bound[i]) <= 1e-9 * torch.bound[i], fmt::format("{}[{}]: the oracle's bound is {:.12g}, the table's {:.12g}", name, i, oracle.bound[i], torch.bound[i]));
      worst = std::max(worst, off / torch.bound[i]);
    }
  };
  every_step([&](Sample& t, Random& random) {
    t.initial_a.clear(), t.initial_b.clear();  // the oracle knows no accumulators
    Step step = t.step();
    const ForwardOracle forward = oracle_forward(t.problem);
    Guarded saved("preactivation", Role::in, SQ_F32, {t.problem.m, t.problem.layer.n});
    saved.fill([&] { return random.uniform(-8, 8); });
    step.saved = saved.values();
    const BackwardOracle backward = oracle_backward(t.problem, t.dy, &saved);
    const StepResult torch = autograd_step(step);
    same("y", forward.y, torch.y, step.y_dtype);
    same("preactivation", forward.preactivation, torch.preactivation, SQ_F32);
    same("h", forward.h, torch.h, SQ_F32);
    same("dx", backward.dx, torch.dx, step.dy_dtype);
    same("dx_lora", backward.dx_lora, torch.dx_lora, step.dy_dtype);
    same("da_t", backward.da_t, torch.da_t, SQ_F32);
    same("db_t", backward.db_t, torch.db_t, SQ_F32);
  });
  fmt::print("largest difference: {:.3g} bounds\n", worst);
}

/// Both gradients against differences of the float64 loss along random directions: neither may be the derivative of something else.
TEST(Proof, GradientsAreDerivatives) {
  double worst_torch = 0, worst_reference = 0;
  every_step([&](Sample& t, Random& random) {
    t.accumulate = false;
    t.initial_a.clear(), t.initial_b.clear();
    const Step step = t.step();
    const StepResult torch = autograd_step(step);
    const Computed got = compute(reference(), t);
    const auto along = [&](const char* name, Numbers Step::*input, const Quantity& gradient, const std::optional<Guarded>& computed) {
      if (!computed || gradient.value.empty()) return;
      Numbers direction;
      for (std::size_t i = 0; i < gradient.value.size(); ++i) direction.push_back(random.uniform(-1, 1));
      double size = 0;
      for (const double v : step.*input) size = std::max(size, std::fabs(v));
      const double h = 0x1p-12 * std::max(size, 1e-3);
      const auto at = [&](double distance) {
        Step moved = step;
        for (std::size_t i = 0; i < direction.size(); ++i) (moved.*input)[i] += distance * direction[i];
        return loss(moved);
      };
      // Five points: the error is h^4 / 30 of the fifth derivative.
      const double near_up = at(h), near_down = at(-h), far_up = at(2 * h), far_down = at(-2 * h);
      const double slope = (8 * (near_up - near_down) - (far_up - far_down)) / (12 * h);
      double by_torch = 0, by_reference = 0, bound = 0, scale = 0;
      const Numbers values = computed->values();
      for (std::size_t i = 0; i < direction.size(); ++i) {
        by_torch += gradient.value[i] * direction[i];
        by_reference += values[i] * direction[i];
        bound += gradient.bound[i] * std::fabs(direction[i]);
        scale += std::fabs(gradient.value[i] * direction[i]);
      }
      double loss_size = 0;
      for (std::size_t i = 0; i < step.dy.size(); ++i) loss_size += std::fabs(step.dy[i]) * (std::fabs(torch.preactivation.value[i]) + 1);
      const double tolerance = 1e-6 * scale + 0x1p-48 * loss_size / h + 1e-12;
      require(std::fabs(by_torch - slope) <= tolerance, fmt::format("{}: autograd {:.12g}, differences {:.12g}, allowed {:.3g}", name, by_torch, slope, tolerance));
      require(std::fabs(by_reference - slope) <= bound + tolerance, fmt::format("{}: reference {:.12g}, differences {:.12g}, allowed {:.3g}", name, by_reference, slope, bound));
      worst_torch = std::max(worst_torch, std::fabs(by_torch - slope) / tolerance);
      worst_reference = std::max(worst_reference, std::fabs(by_reference - slope) / (bound + tolerance));
    };
    along("x", &Step::x, torch.dx, got.backward.dx);
    along("lora_x", &Step::lora_x, torch.dx_lora, got.backward.dx_lora);
    along("a_t", &Step::a_t, torch.da_t, got.backward.da_t);
    along("b_t", &Step::b_t, torch.db_t, got.backward.db_t);
  });
  fmt::print("largest difference in units of its tolerance: autograd {:.3f}, reference {:.3f}\n", worst_torch, worst_reference);
}

Numbers flat(const nlohmann::json& rows) { return matrix_of_numbers(rows); }

Numbers transposed(const Numbers& v, std::size_t rows, std::size_t columns) {
  Numbers out(v.size());
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c) out[c * rows + r] = v[r * columns + c];
  return out;
}

/// The published layer: autograd gives its numbers exactly, so that reference, oracle and libtorch are tied to the same source. The
/// Python layer rounds a 16-bit output once and does not round H: its bf16 output is the float64 value rounded once.
TEST(Proof, AutogradGivesThePublishedGoldens) {
  const auto& g = goldens()["linear"][0];
  Step s;
  s.m = 2, s.k = 5, s.n = 3, s.rank = 2;
  s.scaling = g["scaling"].get<double>();
  const Numbers q = flat(g["qweight"]);
  const auto scale = g["scale"].get<Numbers>();
  for (std::size_t n = 0; n < 3; ++n)
    for (std::size_t k = 0; k < 5; ++k) s.w.push_back(q[n * 8 + k] * scale[n]);
  s.bias = g["bias"].get<Numbers>();
  s.x = flat(g["x"]);
  s.a_t = transposed(flat(g["lora_A"]), 5, 2);
  s.b_t = transposed(flat(g["lora_B"]), 2, 3);
  s.dy = flat(g["grad_y"]);
  const StepResult r = autograd_step(s);
  EXPECT_EQ(r.y.value, flat(g["y_lora_f32"]));
  EXPECT_EQ(rounded(r.y.value, SQ_BF16), flat(g["y_lora_bf16"]));
  EXPECT_EQ(r.dx.value, flat(g["grad_x"]));
  EXPECT_EQ(r.da_t.value, transposed(flat(g["grad_lora_A"]), 5, 2));
  EXPECT_EQ(r.db_t.value, transposed(flat(g["grad_lora_B"]), 2, 3));
  Step base = s;
  base.rank = 0;
  base.a_t.clear(), base.b_t.clear();
  const StepResult without = autograd_step(base);
  EXPECT_EQ(without.y.value, flat(g["y_base_f32"]));
  EXPECT_EQ(rounded(without.y.value, SQ_BF16), flat(g["y_base_bf16"]));
}

}  // namespace
}  // namespace squareq::gates::proof
