// Gradients against central differences of a float64 forward written here from the formula alone.
#include "reference/tests/layer_harness.hpp"

namespace squareq::tests {
namespace {

double activate(std::int32_t activation, double x) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case SQ_ACT_GELU_ERF: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case SQ_ACT_SILU: return x / (1 + std::exp(-x));
    default: return x;
  }
}

struct Inputs {
  std::vector<double> x, lora_x, a_t, b_t;
};

/// sum(dy * y) in float64.
double loss(const Layer& l, const Inputs& in) {
  const std::vector<double>& branch_x = l.own_x ? in.lora_x : in.x;
  double total = 0;
  for (std::int64_t m = 0; m < l.m; ++m) {
    std::vector<double> h(static_cast<std::size_t>(l.rank), 0.0);
    for (std::int64_t r = 0; r < l.rank; ++r)
      for (std::int64_t k = 0; k < l.k; ++k) h[r] += branch_x[m * l.k + k] * in.a_t[r * l.k + k];
    for (std::int64_t n = 0; n < l.n; ++n) {
      double v = l.bias[n];
      for (std::int64_t k = 0; k < l.k; ++k) v += in.x[m * l.k + k] * l.q[n * l.padded + k] * static_cast<double>(l.scale[n]);
      for (std::int64_t r = 0; r < l.rank; ++r) v += static_cast<double>(l.scaling) * h[r] * in.b_t[n * l.rank + r];
      total += l.dy[m * l.n + n] * activate(l.activation, v);
    }
  }
  return total;
}

void expect_differences(const Layer& l, Inputs& in, std::vector<double> Inputs::*which, const Tensor& gradient, const char* name) {
  constexpr double step = 1e-5;
  std::vector<double>& values = in.*which;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double saved = values[i];
    values[i] = saved + step;
    const double above = loss(l, in);
    values[i] = saved - step;
    const double below = loss(l, in);
    values[i] = saved;
    const double expected = (above - below) / (2 * step);
    const double got = gradient.value(static_cast<std::int64_t>(i) / gradient.columns(), static_cast<std::int64_t>(i) % gradient.columns());
    ASSERT_NEAR(got, expected, 2e-5 * (1 + std::fabs(expected))) << name << "[" << i << "]";
  }
}

TEST(Gradients, AgreeWithFiniteDifferences) {
  const Context context = make_context();
  std::uint32_t seed = 1;
  for (const std::int32_t activation : {SQ_ACT_NONE, SQ_ACT_GELU_TANH, SQ_ACT_GELU_ERF, SQ_ACT_SILU})
    for (const std::int64_t rank : {0, 1, 5})
      for (const bool own_x : {false, true}) {
        if (own_x && rank == 0) continue;
        Layer l(3, 7, 5, rank, seed++);
        l.activation = activation;
        l.own_x = own_x;
        Bound b(l);
        b.run_forward(context).run_backward(context);
        Inputs in{{l.x.begin(), l.x.end()}, {l.lora_x.begin(), l.lora_x.end()}, {l.a_t.begin(), l.a_t.end()}, {l.b_t.begin(), l.b_t.end()}};
        expect_differences(l, in, &Inputs::x, b.dx, "dx");
        if (rank == 0) continue;
        expect_differences(l, in, &Inputs::a_t, b.da_t, "da_t");
        expect_differences(l, in, &Inputs::b_t, b.db_t, "db_t");
        if (own_x) expect_differences(l, in, &Inputs::lora_x, b.dx_lora, "dx_lora");
      }
}

/// Any subset of the outputs can be asked for, and each has the same bits as in the full call (SQ-LIN-013).
TEST(Gradients, OutputsDoNotDependOnWhichAreAskedFor) {
  const Context context = make_context();
  for (const bool own_x : {false, true}) {
    Layer l(4, 9, 6, 3, 77);
    l.own_x = own_x;
    Bound all(l);
    all.run_backward(context);
    for (unsigned subset = 0; subset < 16; ++subset) {
      Bound some(l);
      if (!(subset & 1)) some.backward.dx = nullptr;
      if (!(subset & 2)) some.backward.da_t = nullptr;
      if (!(subset & 4)) some.backward.db_t = nullptr;
      if (!(subset & 8)) some.backward.dx_lora = nullptr;
      some.run_backward(context);
      if (!(subset & 1)) some.dx = all.dx;
      if (!(subset & 2)) some.da_t = all.da_t;
      if (!(subset & 4)) some.db_t = all.db_t;
      if (!(subset & 8)) some.dx_lora = all.dx_lora;
      EXPECT_TRUE(some.dx.bytes == all.dx.bytes && some.da_t.bytes == all.da_t.bytes && some.db_t.bytes == all.db_t.bytes && some.dx_lora.bytes == all.dx_lora.bytes)
          << "subset " << subset;
    }
  }
}

}  // namespace
}  // namespace squareq::tests
