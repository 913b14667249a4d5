// What the trainer takes from libtorch in one kernel on a GPU, against float64 (SQ-MOD-019's arithmetic, SQ-NUM-003, SQ-NUM-004).
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "squareq/training/models/modulation.hpp"
#include "squareq/training/torch_compat.hpp"
#include "squareq/training/trainer/adamw.hpp"

namespace squareq::training {
namespace {

using torch::Tensor;

constexpr double kUnit32 = 0x1p-24;
constexpr double kEpsilon = 1e-6;

double unit_of(torch::Dtype dtype) { return dtype == torch::kBFloat16 ? 0x1p-8 : kUnit32; }

/// Largest |got - want| / bound; at most 1 where every element is within its bound.
double share_of_bound(const Tensor& got, const Tensor& want, const Tensor& bound) {
  return ((got.to(torch::kCPU, torch::kFloat64) - want).abs() / bound).max().item<double>();
}

class TorchCompat : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (std::string(GetParam()) == "cuda" && !torch::cuda::is_available()) GTEST_SKIP() << "not run: libtorch sees no GPU here";
  }
  torch::Device device() const { return torch::Device(GetParam()); }
};

TEST_P(TorchCompat, RmsNormIsFloat32InsideAndRoundsOnce) {
  torch::manual_seed(3);
  constexpr std::int64_t d = 128;
  for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
    const double unit = unit_of(dtype), sums = (d + 16) * kUnit32;
    const Tensor x = (3 * torch::randn({2, 37, 3, d})).to(dtype), weight = (1 + 0.3 * torch::randn(d)).to(dtype), dy = torch::randn_like(x);
    Tensor y[2], dx[2];
    for (int run = 0; run < 2; ++run) {
      const Tensor leaf = x.to(device()).clone().requires_grad_();
      y[run] = rms_norm(leaf, weight.to(device()), kEpsilon);
      y[run].backward(dy.to(device()));
      dx[run] = leaf.grad();
    }
    EXPECT_EQ(y[0].scalar_type(), dtype);
    EXPECT_TRUE(torch::equal(y[0], y[1]));
    EXPECT_TRUE(torch::equal(dx[0], dx[1]));

    // y = x r w with r = 1 / sqrt(mean(x^2) + eps); dx = r (w dy - x r^2 mean(x w dy)).
    const Tensor X = x.to(torch::kFloat64), G = dy.to(torch::kFloat64) * weight.to(torch::kFloat64);
    const Tensor r = (X.square().mean(-1, true) + kEpsilon).rsqrt();
    const Tensor want = X * r * weight.to(torch::kFloat64);
    EXPECT_LE(share_of_bound(y[0].detach(), want, (unit + sums) * want.abs()), 1.0);
    const Tensor direct = r * G, mean = X * r.pow(3) * (X * G).mean(-1, true);
    const Tensor terms = direct.abs() + X.abs() * r.pow(3) * (X * G).abs().mean(-1, true);
    EXPECT_LE(share_of_bound(dx[0], direct - mean, unit * (direct - mean).abs() + 2 * sums * terms), 1.0);
  }
}

TEST_P(TorchCompat, ModulationStaysWithinItsRoundings) {
  torch::manual_seed(5);
  constexpr std::int64_t d = 192;
  for (const std::int64_t batch : {1, 2}) {
    for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
      const double unit = unit_of(dtype), sums = (d + 16) * kUnit32;
      const Tensor x = (2 + 3 * torch::randn({batch, 41, d})).to(dtype), dy = torch::randn_like(x);
      const std::vector<Tensor> m = (0.5 * torch::randn({batch, 1, 3 * d})).to(dtype).chunk(3, -1);  // as the model has them: views
      Tensor y[2], dx[2];
      for (int run = 0; run < 2; ++run) {
        const Tensor leaf = x.to(device()).clone().requires_grad_();
        y[run] = modulated(leaf, m[1].to(device()), m[2].to(device()), kEpsilon);
        y[run].backward(dy.to(device()));
        dx[run] = leaf.grad();
      }
      EXPECT_EQ(y[0].scalar_type(), dtype);
      EXPECT_TRUE(torch::equal(y[0], y[1]));
      EXPECT_TRUE(torch::equal(dx[0], dx[1]));

      // y = n w + shift with n = (x - mean) r and w = 1 + scale; dx = r (g - mean(g) - n mean(n g)) with g = w dy.
      const Tensor X = x.to(torch::kFloat64), w = m[2].to(torch::kFloat64) + 1, g = w * dy.to(torch::kFloat64);
      const Tensor mean = X.mean(-1, true), r = ((X - mean).square().mean(-1, true) + kEpsilon).rsqrt(), n = (X - mean) * r;
      const Tensor shifted = (X.abs() + X.abs().mean(-1, true)) * r;  // what the subtraction of the mean rounds
      const Tensor want = n * w + m[1].to(torch::kFloat64);
      // Roundings: of w, of n where it is kept, of y; sums and the mean in FP32, but libtorch 1.13's CPU kernel rounds mean, r and mean * r
      // to 16 bits with x.
      const double inside = device().is_cpu() && dtype == torch::kBFloat16 ? 3 * unit : sums;
      EXPECT_LE(share_of_bound(y[0].detach(), want, unit * (want.abs() + 3.1 * (n * w).abs()) + inside * (shifted * w.abs() + want.abs())),
                1.0);
      const Tensor terms = r * (g.abs() + g.abs().mean(-1, true) + n.abs() * (n * g).abs().mean(-1, true));
      const Tensor exact = r * (g - g.mean(-1, true) - n * (n * g).mean(-1, true));
      EXPECT_LE(share_of_bound(dx[0], exact, unit * (exact.abs() + 2.1 * terms) + 4 * inside * terms * (1 + shifted.amax(-1, true))), 1.0);
    }
  }
}

TEST_P(TorchCompat, GradientNormIsSummedInFloat64AndCountsWhatIsNoNumber) {
  torch::manual_seed(4);
  std::vector<Tensor> parameters;
  double sum = 0;
  for (int i = 0; i < 300; ++i) {
    parameters.push_back(torch::zeros({1 + i % 7, 16 + 4099 * (i % 50 == 0)}, device()).requires_grad_());
    if (i == 200) continue;  // one without a gradient

    const Tensor gradient = (i == 17 ? 1e30 : 1.0) * torch::randn(parameters.back().sizes());  // its squares overflow FP32
    parameters.back().mutable_grad() = gradient.to(device());
    if (i != 17) sum += gradient.to(torch::kFloat64).square().sum().item<double>();
  }
  const Tensor large = parameters[17].grad();
  const double share = large.to(torch::kCPU, torch::kFloat64).square().sum().item<double>();
  const GradientCheck all = check_gradients(parameters), again = check_gradients(parameters);
  EXPECT_TRUE(all.finite());
  EXPECT_EQ(all.norm, again.norm);
  EXPECT_NEAR(all.norm / std::sqrt(sum + share), 1, 1e-12);
  large.zero_();
  EXPECT_NEAR(check_gradients(parameters).norm / std::sqrt(sum), 1, 1e-12);

  parameters[3].mutable_grad()[0][1] = NAN;
  parameters[250].mutable_grad()[1][2] = INFINITY;
  parameters[250].mutable_grad()[0][0] = -INFINITY;
  const GradientCheck broken = check_gradients(parameters);
  EXPECT_FALSE(broken.finite());
  EXPECT_EQ(broken.nan, 1);
  EXPECT_EQ(broken.infinite, 2);
}

INSTANTIATE_TEST_SUITE_P(Devices, TorchCompat, ::testing::Values("cpu", "cuda"),
                         [](const auto& device) { return std::string(device.param); });

}  // namespace
}  // namespace squareq::training
