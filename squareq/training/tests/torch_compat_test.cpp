// What the trainer takes from libtorch in one kernel on a GPU, against float64 (SQ-MOD-019's arithmetic, SQ-NUM-003, SQ-NUM-004).
#include <gtest/gtest.h>

#include <string>

#include "squareq/training/torch_compat.hpp"

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

INSTANTIATE_TEST_SUITE_P(Devices, TorchCompat, ::testing::Values("cpu", "cuda"), [](const auto& device) { return std::string(device.param); });

}  // namespace
}  // namespace squareq::training
