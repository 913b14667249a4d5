// Attention against float64, and the groups of heads that its deterministic backward takes on a GPU (SQ-NUM-004, SQ-TRN-049).
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "squareq/training/device.hpp"
#include "squareq/training/models/attention.hpp"
#include "squareq/training/torch_compat.hpp"

namespace squareq::training {
namespace {

using torch::Tensor;
using Groups = std::vector<std::int64_t>;

/// Tiles that follow each other on the busiest multiprocessor, where blocks are dealt out in order: counted, not by the formula.
std::int64_t longest(std::int64_t batch, const Groups& groups, std::int64_t keys, std::int64_t multiprocessors) {
  std::int64_t total = 0;
  for (const std::int64_t heads : groups) {
    const std::int64_t tiles = (keys + 127) / 128;
    std::int64_t per_head = 0;
    while (per_head * batch * heads < multiprocessors) ++per_head;
    std::int64_t busiest = 0;
    for (std::int64_t m = 0; m < multiprocessors; ++m) {
      std::int64_t mine = 0;
      for (std::int64_t block = m; block < per_head * batch * heads; block += multiprocessors)
        for (std::int64_t tile = block / (batch * heads); tile < tiles; tile += per_head) ++mine;
      busiest = std::max(busiest, mine);
    }
    total += busiest;
  }
  return total;
}

TEST(HeadGroups, FillTheDevice) {
  EXPECT_EQ(head_groups(1, 24, 4608, 132), (Groups{22, 2}));  // FLUX.1 at 1024 x 1024 and 512 x 512 on an H100 or H200
  EXPECT_EQ(head_groups(1, 24, 1536, 132), (Groups{22, 2}));
  EXPECT_EQ(head_groups(1, 11, 4608, 132), (Groups{11}));  // 12 blocks each fill it already
  EXPECT_EQ(head_groups(4, 33, 4608, 132), (Groups{33}));
  EXPECT_EQ(head_groups(1, 1, 100, 132), (Groups{1}));
  EXPECT_EQ(head_groups(1, 24, 4608, 0), (Groups{24}));
  EXPECT_EQ(longest(1, {24}, 4608, 132), 12);
  EXPECT_EQ(longest(1, {22, 2}, 4608, 132), 7);
}

TEST(HeadGroups, AddUpAndAreNeverSlowerThanOneCall) {
  for (const std::int64_t multiprocessors : {16, 28, 46, 84, 108, 128, 132, 170})
    for (const std::int64_t heads : {1, 3, 10, 20, 24, 38, 48})
      for (const std::int64_t batch : {1, 2, 3})
        for (const std::int64_t keys : {77, 1536, 4608}) {
          const Groups groups = head_groups(batch, heads, keys, multiprocessors);
          EXPECT_EQ(std::accumulate(groups.begin(), groups.end(), std::int64_t{0}), heads);
          for (const std::int64_t group : groups) EXPECT_GT(group, 0);
          EXPECT_LE(longest(batch, groups, keys, multiprocessors), longest(batch, {heads}, keys, multiprocessors))
              << batch << " x " << heads << " heads, " << keys << " keys, " << multiprocessors << " multiprocessors, groups of " << groups[0];
        }
}

struct Result {
  Tensor out, gradients[3];
};

template <class Function>
Result run(const Function& function, const Tensor (&from)[3], const Tensor& dy) {
  std::vector<Tensor> leaves;
  for (const Tensor& t : from) leaves.push_back(t.detach().clone().requires_grad_());
  Result result;
  result.out = function(leaves[0], leaves[1], leaves[2]);
  result.out.backward(dy);
  for (int i = 0; i < 3; ++i) result.gradients[i] = leaves[static_cast<std::size_t>(i)].grad();
  return result;
}

TEST(Attention, GroupsOfHeadsChangeOnlyTheOrderOfSumsOnAGpu) {
  if (!torch::cuda::is_available()) GTEST_SKIP() << "not run: libtorch sees no GPU here";
  prepare_device({SQ_CUDA, 0});
  torch::manual_seed(5);
  const auto cuda = torch::TensorOptions(torch::kCUDA).dtype(torch::kBFloat16);
  for (const std::int64_t batch : {1, 2}) {
    const std::int64_t heads = 24, length = 1100;
    ASSERT_GT(head_groups(1, heads, length, multiprocessors()).size(), 1U) << "choose another number of heads for this device";
    Tensor from[3];  // [B, H, L, d] as the models have them: heads of a row lie side by side
    for (Tensor& t : from) t = torch::randn({batch, length, heads, 128}, cuda).transpose(1, 2);
    const Tensor dy = torch::randn({batch, length, heads, 128}, cuda).transpose(1, 2);
    const Result first = run(attention, from, dy), again = run(attention, from, dy), whole = run(plain_attention, from, dy);
    EXPECT_TRUE(torch::equal(first.out, whole.out));
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(torch::equal(first.gradients[i], again.gradients[i])) << i;
      EXPECT_EQ(first.gradients[i].strides(), from[i].strides()) << i;
    }
    // A block adds up dk and dv of its tile alone, in the order of the queries; dq is added over the blocks of a head, of which there are more now.
    EXPECT_TRUE(torch::equal(first.gradients[1], whole.gradients[1]));
    EXPECT_TRUE(torch::equal(first.gradients[2], whole.gradients[2]));
    const Tensor apart = (first.gradients[0].to(torch::kFloat32) - whole.gradients[0].to(torch::kFloat32)).abs();
    const Tensor scale = whole.gradients[0].to(torch::kFloat32).abs();
    // Both are fp32 sums of the same products, rounded to bf16 at the end: one step of bf16 apart at most, plus the sums' own 2^-24 per term of some hundred.
    EXPECT_LE((apart / (scale * 0x1p-7 + scale.max() * 0x1p-14)).max().item<double>(), 1.0);
    // A gradient without a graph for q: only what is asked for, by the same kernels.
    const Tensor q = from[0].detach(), k = from[1].detach().clone().requires_grad_(), v = from[2].detach();
    attention(q, k, v).backward(dy);
    EXPECT_TRUE(torch::equal(k.grad(), first.gradients[1]));
  }
}

class AttentionOn : public ::testing::TestWithParam<const char*> {};

TEST_P(AttentionOn, IsTheFormula) {
  const torch::Device device(GetParam());
  if (device.is_cuda() && !torch::cuda::is_available()) GTEST_SKIP() << "not run: libtorch sees no GPU here";
  torch::manual_seed(6);
  Tensor from[3], exact[3];
  for (int i = 0; i < 3; ++i) exact[i] = torch::randn({1, 24, 160, 64}, torch::kFloat32).to(torch::kFloat64), from[i] = exact[i].to(device, torch::kFloat32);
  const Tensor dy = torch::randn({1, 24, 160, 64}, torch::kFloat64);
  const auto formula = [](const Tensor& q, const Tensor& k, const Tensor& v) {
    return torch::matmul(torch::softmax(torch::matmul(q, k.transpose(-1, -2)) / std::sqrt(64.0), -1), v);
  };
  const Result got = run(attention, from, dy.to(device, torch::kFloat32)), want = run(formula, exact, dy);
  // Sums of up to 160 fp32 terms, twice, of numbers of size one: 1e-5 is some hundred roundings.
  EXPECT_LE((got.out.to(torch::kCPU, torch::kFloat64) - want.out).abs().max().item<double>(), 1e-5);
  for (int i = 0; i < 3; ++i) EXPECT_LE((got.gradients[i].to(torch::kCPU, torch::kFloat64) - want.gradients[i]).abs().max().item<double>(), 1e-5) << i;
}

INSTANTIATE_TEST_SUITE_P(Devices, AttentionOn, ::testing::Values("cpu", "cuda"), [](const auto& of) { return std::string(of.param); });

}  // namespace
}  // namespace squareq::training
