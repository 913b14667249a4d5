// Queries and keys through the contract against float64, for every backend that offers the operation (SQ-LIN-060 to 065, SQ-NUM-004).
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>
#include <vector>

#include "squareq/error.hpp"
#include "squareq/training/backend.hpp"
#include "squareq/training/modules/normed_heads.hpp"

namespace squareq::training {
namespace {

using torch::Tensor;

constexpr double kEpsilon = 1e-6;

/// The same in float64, by libtorch's own operations and autograd.
Tensor formula(const std::vector<HeadStream>& streams, const Tensor& rope) {
  std::vector<Tensor> parts;
  for (const HeadStream& s : streams) {
    const Tensor x = s.x.unflatten(-1, {-1, s.weight.size(0)});
    parts.push_back(x * torch::rsqrt(x.square().mean(-1, true) + kEpsilon) * s.weight);
  }
  return torch::view_as_real(torch::view_as_complex(torch::cat(parts, 1).unflatten(-1, {-1, 2}).contiguous()) * rope.unsqueeze(1)).flatten(-2);
}

class NormedHeads : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (on_gpu() && !torch::cuda::is_available()) GTEST_SKIP() << "not run: libtorch sees no GPU here";
  }
  bool on_gpu() const { return std::string(GetParam()) == "cuda"; }
  torch::Device device() const { return on_gpu() ? torch::kCUDA : torch::kCPU; }
};

TEST_P(NormedHeads, JoinsStreamsAndFollowsTheFormula) {
  const Context backend = open_backend(GetParam(), 2);
  ASSERT_TRUE(offers_normed_heads(backend, torch::kFloat32));
  EXPECT_FALSE(offers_normed_heads(backend, torch::kFloat64));
  torch::manual_seed(9);
  constexpr std::int64_t heads = 3, d = 16;
  for (const std::int64_t batch : {1, 2})
    for (const std::vector<std::int64_t>& lengths : {std::vector<std::int64_t>{7}, {4, 9}, {0, 5}}) {
      std::int64_t total = 0;
      for (const std::int64_t length : lengths) total += length;
      const Tensor angle = 3 * torch::randn({total, d / 2}, torch::kFloat64);
      const Tensor rope = torch::complex(torch::cos(angle), torch::sin(angle)).to(torch::kComplexFloat);
      std::vector<HeadStream> exact, again, given;
      for (const std::int64_t length : lengths) {
        const Tensor x = torch::randn({batch, length, heads * d}), weight = 1 + 0.3 * torch::randn({d});
        exact.push_back({x.to(torch::kFloat64).requires_grad_(), weight.to(torch::kFloat64)});
        for (auto* streams : {&given, &again}) streams->push_back({x.to(device()).clone().requires_grad_(), weight.to(device())});
      }
      const Tensor want = formula(exact, rope.to(torch::kComplexDouble)), dy = torch::randn_like(want);
      const Tensor got = normed_heads(backend, given, rope.to(device()), kEpsilon), twice = normed_heads(backend, again, rope.to(device()), kEpsilon);
      ASSERT_EQ(got.sizes(), (std::vector<std::int64_t>{batch, total, heads, d}));
      // As attention's backward hands gradients over: heads before tokens in memory or not.
      got.backward(dy.to(device(), torch::kFloat32));
      twice.backward(dy.to(device(), torch::kFloat32).transpose(1, 2).contiguous().transpose(1, 2));
      want.backward(dy);
      EXPECT_TRUE(torch::equal(got, twice));
      EXPECT_LE((got.detach().cpu() - want.detach()).abs().max().item<double>(), 4e-6);  // 32 roundings of 2^-24 of numbers up to 4 and a sum of two
      for (std::size_t i = 0; i < lengths.size(); ++i) {
        EXPECT_TRUE(torch::equal(given[i].x.grad(), again[i].x.grad()));
        if (lengths[i] == 0) continue;
        const Tensor apart = (given[i].x.grad().cpu() - exact[i].x.grad()).abs(), scale = exact[i].x.grad().abs().max();
        EXPECT_LE((apart / scale).max().item<double>(), 1e-5) << i;
      }
      const torch::NoGradGuard guard;
      EXPECT_TRUE(torch::equal(normed_heads(backend, given, rope.to(device()), kEpsilon), got));
    }
}

TEST_P(NormedHeads, OnlyTheStreamsThatAreAskedForGetGradients) {
  const Context backend = open_backend(GetParam(), 1);
  const auto on_device = torch::TensorOptions(device());
  const Tensor rope = torch::ones({5, 4}, on_device.dtype(torch::kComplexFloat)), weight = torch::ones({8}, on_device);
  const HeadStream frozen{torch::randn({1, 2, 16}, on_device), weight}, trained{torch::randn({1, 3, 16}, on_device).requires_grad_(), weight};
  normed_heads(backend, {frozen, trained}, rope, kEpsilon).sum().backward();
  EXPECT_FALSE(frozen.x.grad().defined());
  EXPECT_TRUE(trained.x.grad().defined());
}

TEST_P(NormedHeads, RefusesToLoseAGradientOfTableOrWeight) {
  const Context backend = open_backend(GetParam(), 1);
  const auto on_device = torch::TensorOptions(device());
  const Tensor x = torch::randn({1, 2, 8}, on_device), rope = torch::ones({2, 4}, on_device.dtype(torch::kComplexFloat)), weight = torch::ones({8}, on_device);
  const auto code = [&](const Tensor& w, const Tensor& table) {
    try {
      normed_heads(backend, {{x, w}}, table, kEpsilon);
    } catch (const Error& e) {
      return e.code();
    }
    return Code::OK;
  };
  EXPECT_EQ(code(weight, rope), Code::OK);
  EXPECT_EQ(code(weight, rope.clone().requires_grad_()), Code::CALL_UNSUPPORTED);
  EXPECT_EQ(code(weight.clone().requires_grad_(), rope), Code::CALL_UNSUPPORTED);
}

INSTANTIATE_TEST_SUITE_P(Backends, NormedHeads, ::testing::Values("reference", "cpu", "cuda"), [](const auto& of) { return std::string(of.param); });

}  // namespace
}  // namespace squareq::training
