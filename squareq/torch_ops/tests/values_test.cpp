// Values and gradients on the CPU against float64: what ATen computes from the formulas of spec/30-quantization.md, and libtorch's autograd
// on dequantized weights within the bounds of spec/35-numerics.md (gates/proof/autograd.hpp).
#include <torch/csrc/autograd/autograd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "gates/proof/autograd.hpp"
#include "squareq/torch_ops/tests/library.hpp"

namespace squareq::torch_ops::testing {
namespace {

using gates::proof::Numbers;
using gates::proof::Quantity;
using gates::proof::Step;
using gates::proof::StepResult;

Numbers numbers(const Tensor& t) {
  const Tensor dense = t.detach().to(at::kDouble).contiguous();
  return {dense.data_ptr<double>(), dense.data_ptr<double>() + dense.numel()};
}

/// The largest error in units of its bound; fails the test above 1, and where all is zero that should not be.
double check(const char* what, const Tensor& got, const Quantity& exact) {
  const Numbers values = numbers(got);
  EXPECT_EQ(values.size(), exact.value.size()) << what;
  double worst = 0, size = 0;
  for (std::size_t i = 0; i < values.size() && i < exact.value.size(); ++i) {
    const double error = std::fabs(values[i] - exact.value[i]);
    EXPECT_TRUE(error <= exact.bound[i]) << what << "[" << i << "] is " << values[i] << ", float64 says " << exact.value[i] << " within "
                                         << exact.bound[i];
    worst = std::max(worst, error / exact.bound[i]);
    size += std::fabs(exact.value[i]);
  }
  EXPECT_TRUE(values.empty() || size > 0) << what << " is trivial";
  return worst;
}

std::int32_t sq_dtype_of(at::ScalarType dtype) { return dtype == at::kFloat ? SQ_F32 : dtype == at::kHalf ? SQ_F16 : SQ_BF16; }

/// The step in float64. A and B as the branch uses them: in the activations' dtype (SQ-LOR-003).
Step step_of(const Layer& layer, const Tensor& x, const Tensor& dy, std::int32_t activation, bool branch) {
  Step s;
  s.k = layer.qweight.size(1), s.n = layer.qweight.size(0), s.m = x.numel() / s.k;
  s.activation = activation;
  s.x_dtype = s.y_dtype = s.dy_dtype = sq_dtype_of(x.scalar_type());
  s.w = numbers(layer.qweight.to(at::kDouble) * layer.scale.to(at::kDouble).unsqueeze(1));
  if (layer.bias) s.bias = numbers(*layer.bias);
  s.x = numbers(x);
  s.dy = numbers(dy);
  if (!branch) return s;
  s.rank = layer.lora_a.size(0);
  s.scaling = layer.scaling;
  s.a_t = numbers(layer.lora_a.to(x.scalar_type()));
  s.b_t = numbers(layer.lora_b.to(x.scalar_type()));
  return s;
}

constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf};

class Values : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(1); }
};

TEST_F(Values, QuantizeIsTheFormulaToTheBit) {  // SQ-QNT-002..006
  Tensor wide = at::randn({5, 77});
  wide[1].zero_();
  wide[2].mul_(1e-9);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble})
    for (const Tensor& w : {wide.to(dtype), wide.to(dtype).t().contiguous().t(), wide.to(dtype).slice(1, 3, 60)}) {
      const auto [q, s] = quantize(w);
      const Tensor f = w.to(at::kFloat), scale = (f.abs().amax(1) / 127).clamp_min(1e-8);
      EXPECT_TRUE(q.is_contiguous() && s.is_contiguous());
      EXPECT_TRUE(at::equal(s, scale)) << dtype;
      EXPECT_TRUE(at::equal(q, (f * (1 / scale).unsqueeze(1)).round().clamp(-127, 127).to(at::kChar))) << dtype;
    }
}

TEST_F(Values, DequantizeIsOneProductAndOneRounding) {  // SQ-QNT-011, 012
  const Layer layer(9, 33);
  for (const at::ScalarType dtype : kDtypes)
    EXPECT_TRUE(
        at::equal(dequantize(layer.qweight, layer.scale, dtype), (layer.qweight.to(at::kFloat) * layer.scale.unsqueeze(1)).to(dtype)))
        << dtype;
}

TEST_F(Values, QuantizeActivationHasOneScalePerRow) {  // SQ-QNT-020, 022
  for (const at::ScalarType dtype : kDtypes)
    for (const Tensor& x : {at::randn({2, 3, 70}).to(dtype), at::randn({70}).to(dtype), at::randn({70, 4}).to(dtype).t()}) {
      const auto [q, s] = quantize_activation(x);
      const Tensor f = x.to(at::kFloat), scale = (f.abs().amax(-1) / 127).clamp_min(1e-30),
                   quotient = x.to(at::kDouble) / s.to(at::kDouble).unsqueeze(-1);
      EXPECT_EQ(q.sizes(), x.sizes());
      EXPECT_TRUE(at::equal(s, scale));
      const Tensor off = (q.to(at::kDouble) - quotient).abs();
      EXPECT_LE(off.max().item<double>(), 0.5 + 0x1p-14);  // nearest, but for ties
      EXPECT_EQ(q.abs().max().item<std::int64_t>(), 127);
    }
}

struct Shape {
  std::vector<std::int64_t> rows;
  std::int64_t k, n;
};

TEST_F(Values, LinearForwardAndBackwardAreWithinTheBounds) {  // SQ-NUM-020, 021
  double worst = 0;
  for (const Shape& shape : {Shape{{2, 3}, 37, 29}, Shape{{}, 64, 5}, Shape{{1}, 1, 1}, Shape{{4, 1, 2}, 13, 96}})
    for (const at::ScalarType dtype : kDtypes)
      for (const auto& [name, activation] : {std::pair{"none", SQ_ACT_NONE}, std::pair{"gelu_tanh", SQ_ACT_GELU_TANH},
                                             std::pair{"gelu_erf", SQ_ACT_GELU_ERF}, std::pair{"silu", SQ_ACT_SILU}}) {
        const Layer layer(shape.n, shape.k, 3, shape.k != 64);
        auto size = shape.rows;
        size.push_back(shape.k);
        const Tensor x = at::randn(size).to(dtype).requires_grad_();
        const Tensor y = layer.linear(x, name);
        const Tensor dy = at::randn_like(y);
        Step step = step_of(layer, x, dy, activation, false);
        if (activation != SQ_ACT_NONE) {
          const auto [again, preactivation] = layer.linear_forward(x.detach(), name);
          EXPECT_TRUE(at::equal(again, y));
          step.saved = numbers(preactivation);
          Step none = step;
          none.activation = SQ_ACT_NONE;
          none.saved.reset();
          worst = std::max(worst, check("preactivation", preactivation, autograd_step(none).y));
        }
        const StepResult exact = autograd_step(step);
        size.back() = shape.n;
        EXPECT_EQ(y.sizes(), at::IntArrayRef(size));
        EXPECT_EQ(y.scalar_type(), dtype);
        const Tensor dx = torch::autograd::grad({y}, {x}, {dy})[0];
        EXPECT_EQ(dx.scalar_type(), dtype);
        EXPECT_EQ(dx.sizes(), x.sizes());
        worst = std::max({worst, check("y", y, exact.y), check("dx", dx, exact.dx)});
        EXPECT_TRUE(at::equal(layer.linear(x.detach(), name), y)) << "without a graph";
      }
  std::printf("margin %.3f\n", worst);
}

TEST_F(Values, LowRankForwardAndBackwardAreWithinTheBounds) {
  double worst = 0;
  for (const auto& [rows, k, n, rank] : {std::tuple{6, 37, 29, 3}, std::tuple{1, 5, 64, 16}, std::tuple{33, 48, 7, 12}})
    for (const at::ScalarType dtype : kDtypes)
      for (const bool bias : {false, true}) {
        const Layer layer(n, k, rank, bias);
        const Tensor x = at::randn({rows, k}).to(dtype).requires_grad_();
        layer.lora_a.requires_grad_(), layer.lora_b.requires_grad_();
        const Tensor y = layer.linear_lora(x), dy = at::randn_like(y);
        const StepResult exact = autograd_step(step_of(layer, x, dy, SQ_ACT_NONE, true));
        const auto grads = torch::autograd::grad({y}, {x, layer.lora_a, layer.lora_b}, {dy});
        const auto [again, h] = layer.linear_lora_forward(x.detach());
        EXPECT_EQ(h.scalar_type(), at::kFloat);
        worst = std::max({worst, check("y", y, exact.y), check("dx", grads[0], exact.dx), check("da", grads[1], exact.da_t),
                          check("db", grads[2], exact.db_t)});
        // H is rounded to the activations' dtype before it is widened again (SQ-LOR-004).
        Quantity rounded = exact.h;
        const double u = dtype == at::kFloat ? 0x1p-24 : dtype == at::kHalf ? 0x1p-11 : 0x1p-8;
        for (std::size_t i = 0; i < rounded.bound.size(); ++i) rounded.bound[i] += u * (std::fabs(rounded.value[i]) + rounded.bound[i]);
        worst = std::max(worst, check("h", h, rounded));
        const at::NoGradGuard off;
        EXPECT_TRUE(at::equal(again, y) && at::equal(layer.linear_lora(x), y)) << "without a graph";
      }
  std::printf("margin %.3f\n", worst);
}

TEST_F(Values, OnlyWhatIsAskedForIsDifferentiated) {
  Layer layer(11, 23);
  const Tensor x = at::randn({4, 23}), dy = at::randn({4, 11});
  const auto [y, h] = layer.linear_lora_forward(x);
  const auto [dx, da, db] = layer.linear_lora_backward(dy, x, h);
  for (int mask = 1; mask < 8; ++mask) {
    const std::array<bool, 3> asked{(mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0};
    const auto [some_dx, some_da, some_db] = layer.linear_lora_backward(dy, x, h, asked);
    const std::array some{some_dx, some_da, some_db}, all{dx, da, db};
    std::vector<Tensor> inputs{x.detach(), layer.lora_a.detach(), layer.lora_b.detach()};
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(some[i].defined(), asked[i]);
      if (asked[i]) {
        EXPECT_TRUE(at::equal(some[i], all[i]));
      }
      inputs[i].requires_grad_(asked[i]);
    }
    Layer trained = layer;
    trained.lora_a = inputs[1], trained.lora_b = inputs[2];
    trained.linear_lora(inputs[0]).backward(dy);
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(inputs[i].grad().defined(), asked[i]) << mask;
      if (asked[i]) {
        EXPECT_TRUE(at::equal(inputs[i].grad(), all[i])) << mask;
      }
      inputs[i].requires_grad_(false);
    }
  }
}

TEST_F(Values, AnyStridesGiveTheBitsOfContiguousOnes) {
  const Layer layer(6, 40);
  const Tensor x = at::randn({3, 5, 40}), y = layer.linear(x), dy = at::randn({3, 5, 6});
  const Tensor wide = at::randn({3, 5, 50});
  wide.slice(2, 7, 47).copy_(x);
  for (const Tensor& same :
       {x.transpose(0, 2).contiguous().transpose(0, 2), wide.slice(2, 7, 47), x.transpose(0, 1).contiguous().transpose(0, 1)}) {
    EXPECT_FALSE(same.is_contiguous());
    EXPECT_TRUE(at::equal(layer.linear(same), y));
    EXPECT_TRUE(layer.linear(same).is_contiguous());
  }
  // One row for all, as the gradient of a sum is.
  const Tensor row = at::randn({40});
  EXPECT_TRUE(at::equal(layer.linear(row.expand({3, 5, 40})), layer.linear(row.expand({3, 5, 40}).contiguous())));
  const Tensor leaf = x.detach().requires_grad_();
  layer.linear(leaf).sum().backward();
  EXPECT_TRUE(at::equal(leaf.grad(), layer.linear_backward(at::ones({3, 5, 6}))));
  EXPECT_TRUE(at::equal(layer.linear_backward(dy.transpose(0, 2).contiguous().transpose(0, 2)), layer.linear_backward(dy)));
}

TEST_F(Values, AViewOfAPaddedMatrixIsTheWeight) {  // SQ-LIN-002
  Layer layer(6, 40);
  const Tensor x = at::randn({2, 40}), y = layer.linear_lora(x), w = dequantize(layer.qweight, layer.scale, at::kFloat);
  const Tensor padded = at::full({6, 64}, 99, at::kChar);
  padded.slice(1, 0, 40).copy_(layer.qweight);
  layer.qweight = padded.slice(1, 0, 40);
  EXPECT_TRUE(at::equal(layer.linear_lora(x), y));
  EXPECT_TRUE(at::equal(dequantize(layer.qweight, layer.scale, at::kFloat), w));
}

TEST_F(Values, NoRowsGiveNoRowsAndZeroGradients) {  // SQ-LIN-006
  const Layer layer(6, 10);
  const Tensor x = at::empty({2, 0, 10}).requires_grad_();
  layer.lora_a.requires_grad_(), layer.lora_b.requires_grad_();
  const Tensor y = layer.linear_lora(x);
  EXPECT_EQ(y.sizes(), at::IntArrayRef({2, 0, 6}));
  y.sum().backward();
  EXPECT_EQ(x.grad().sizes(), x.sizes());
  EXPECT_TRUE(at::equal(layer.lora_a.grad(), at::zeros({3, 10})));
  EXPECT_TRUE(at::equal(layer.lora_b.grad(), at::zeros({6, 3})));
  EXPECT_EQ(layer.linear(at::empty({0, 10}), "silu").sizes(), at::IntArrayRef({0, 6}));
  EXPECT_EQ(std::get<0>(quantize_activation(at::empty({0, 10}))).sizes(), at::IntArrayRef({0, 10}));
}

/// Integer sums are exact, three fp32 roundings follow: the product with the row's scale, with the weight's, and the bias.
TEST_F(Values, ComputeW8A8QuantizesTheActivations) {  // SQ-LIN-003
  const Layer layer(17, 50);
  const Tensor x = at::randn({4, 50});
  const auto [q, s] = quantize_activation(x);
  const Tensor product =
      q.to(at::kDouble).matmul(layer.qweight.to(at::kDouble).t()) * s.to(at::kDouble).unsqueeze(1) * layer.scale.to(at::kDouble);
  const Tensor bound = 4 * 0x1p-24 * (product.abs() + layer.bias->abs());
  const Tensor y = layer.linear(x, "none", "w8a8").to(at::kDouble), exact = product + layer.bias->to(at::kDouble);
  EXPECT_TRUE((y - exact).abs().le(bound).all().item<bool>());
  EXPECT_FALSE((layer.linear(x).to(at::kDouble) - exact).abs().le(bound).all().item<bool>()) << "the same as without";
  EXPECT_TRUE(at::equal(layer.linear(x, "none", "exact_w"), layer.linear(x)));
}

/// G s is quantized per row (by the operation of the test before), the sum over n is exact, one fp32 rounding
/// of the product follows.
TEST_F(Values, ComputeW8A8QuantizesTheGradientsToo) {  // SQ-LIN-012
  Layer layer(17, 50);
  layer.lora_b.zero_();  // the branch adds nothing to dX
  const Tensor x = at::randn({4, 50}).requires_grad_(), dy = at::randn({4, 17});
  const auto [q, s] = quantize_activation(dy * layer.scale);
  const Tensor exact = q.to(at::kDouble).matmul(layer.qweight.to(at::kDouble)) * s.to(at::kDouble).unsqueeze(1);
  const auto within = [&](const Tensor& dx) { return (dx.to(at::kDouble) - exact).abs().le(4 * 0x1p-24 * exact.abs()).all().item<bool>(); };
  const auto dx_of = [&](const Tensor& y) { return torch::autograd::grad({y}, {x}, {dy})[0]; };
  EXPECT_TRUE(within(dx_of(layer.linear(x, "none", "w8a8"))));
  EXPECT_TRUE(within(dx_of(layer.linear_lora(x, "w8a8"))));
  EXPECT_FALSE(within(dx_of(layer.linear(x)))) << "the same as without";
}

TEST_F(Values, ThreadsDoNotDisturbEachOther) {
  const Layer layer(31, 65);
  const Tensor x = at::randn({9, 65}), dy = at::randn({9, 31});
  const auto step = [&] {
    std::vector<Tensor> leaves{x.detach().requires_grad_(), layer.lora_a.detach().requires_grad_(), layer.lora_b.detach().requires_grad_()};
    Layer own = layer;
    own.lora_a = leaves[1], own.lora_b = leaves[2];
    const Tensor y = own.linear_lora(leaves[0]);
    auto results = torch::autograd::grad({y}, leaves, {dy});
    results.push_back(y.detach());
    return results;
  };
  const auto alone = step();
  std::atomic<int> differ{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        const auto results = step();
        for (std::size_t j = 0; j < alone.size(); ++j) differ += !at::equal(results[j], alone[j]);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(differ, 0);
}

/// Both backends are within their bounds of the same numbers; a call computes with one of them, whole.
TEST_F(Values, ABackendMayBeChangedWhileOthersCompute) {
  const Layer layer(5, 8);
  const Tensor x = at::randn({2, 8}), y = layer.linear(x);
  std::atomic<int> differ{0};
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      while (!done) differ += !at::allclose(layer.linear(x), y, 1e-5, 1e-5);
    });
  for (int change = 0; change < 100; ++change)
    op<void(std::string, std::string)>("set_backend").call("cpu", change % 2 ? "cpu" : "reference");
  done = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(differ, 0);
}

}  // namespace
}  // namespace squareq::torch_ops::testing
