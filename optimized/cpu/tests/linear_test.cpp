// Linear layers on random shapes, dtypes and strides against a float64 oracle, exact data, determinism, and what a lease changes.
#include "layer_case.hpp"

#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <array>

namespace squareq::test {
namespace {

const Context& context() {
  static const Context instance = make_context();
  return instance;
}

LayerShape random_shape() {
  LayerShape s;
  s.m = *rc::gen::inRange(1, 40);
  s.n = *rc::gen::inRange(1, 70);
  s.k = *rc::gen::inRange(1, 150);
  s.r = *rc::gen::element(0, 0, 1, 3, 16);
  s.dtype = *rc::gen::element<std::int32_t>(SQ_F32, SQ_BF16, SQ_F16);
  s.bias = *rc::gen::arbitrary<bool>();
  s.gap = *rc::gen::element(0, 1, 5);
  s.own_input = s.r > 0 && *rc::gen::arbitrary<bool>();
  s.seed = *rc::gen::arbitrary<std::uint32_t>();
  return s;
}

bool all_intact(const LayerCase& c) {
  return c.y.intact() && c.preactivation.intact() && c.h.intact() && c.dx.intact() && c.dx_lora.intact() && c.da.intact() && c.db.intact();
}

RC_GTEST_PROP(Linear, StaysWithinTheBounds_SQ_NUM_020_021, ()) {
  LayerShape s = random_shape();
  s.activation = *rc::gen::inRange<std::int32_t>(SQ_ACT_NONE, SQ_ACT_SILU + 1);
  LayerCase c(s);
  call(context().linear().linear_forward, context(), c.forward_args());
  const ForwardOracle f(c);
  RC_ASSERT(worst_ratio(c.preactivation, f.v) <= 1);
  if (s.r > 0) RC_ASSERT(worst_ratio(c.h, f.h) <= 1);
  Bounded y = f.v;
  for (std::size_t i = 0; i < y.value.size(); ++i) {
    if (s.activation == SQ_ACT_NONE) break;
    y.bound[i] = 1.13 * y.bound[i] + 8 * kU * std::fabs(y.value[i]);
    y.value[i] = activation_value(s.activation, y.value[i]);
  }
  RC_ASSERT(worst_ratio(c.y, y) <= 1);
  call(context().linear().linear_backward, context(), c.backward_args());
  const BackwardOracle back(c, f);
  RC_ASSERT(worst_ratio(c.dx, back.dx) <= 1);
  if (s.own_input) RC_ASSERT(worst_ratio(c.dx_lora, back.dx_lora) <= 1);
  if (s.r > 0) RC_ASSERT(worst_ratio(c.da, back.da) <= 1);
  if (s.r > 0) RC_ASSERT(worst_ratio(c.db, back.db) <= 1);
  RC_ASSERT(all_intact(c));
}

RC_GTEST_PROP(Linear, IsExactOnExactData_SQ_NUM_010_011, ()) {
  LayerShape s = random_shape();
  s.exact = true;
  s.dtype = SQ_F32;
  LayerCase c(s);
  call(context().linear().linear_forward, context(), c.forward_args());
  call(context().linear().linear_backward, context(), c.backward_args());
  const ForwardOracle f(c);
  const BackwardOracle back(c, f);
  for (std::int64_t i = 0; i < c.y.size(); ++i) RC_ASSERT(c.y.get(i) == f.v.value[static_cast<std::size_t>(i)]);
  for (std::int64_t i = 0; i < c.dx.size(); ++i) RC_ASSERT(c.dx.get(i) == back.dx.value[static_cast<std::size_t>(i)]);
  for (std::int64_t i = 0; i < c.da.size(); ++i) RC_ASSERT(c.da.get(i) == back.da.value[static_cast<std::size_t>(i)]);
  for (std::int64_t i = 0; i < c.db.size(); ++i) RC_ASSERT(c.db.get(i) == back.db.value[static_cast<std::size_t>(i)]);
}

/// Everything a forward and a backward leave behind, as bytes.
std::vector<std::byte> results(const Context& on, LayerCase& c, bool give_h) {
  call(on.linear().linear_forward, on, c.forward_args());
  auto back = c.backward_args();
  if (give_h && c.shape().r > 0) back.h = c.h.tensor();
  call(on.linear().linear_backward, on, back);
  std::vector<std::byte> all;
  for (const Buffer* b : {&c.y, &c.preactivation, &c.h, &c.dx, &c.dx_lora, &c.da, &c.db}) all.insert(all.end(), b->bytes().begin(), b->bytes().end());
  return all;
}

TEST(Linear, GivesTheSameBitsAgainAndOnAnyThreads_SQ_NUM_004_LOR_004) {
  const Context one = make_context(nullptr, 1), two = make_context(nullptr, 2), five = make_context(nullptr, 5);
  for (const std::int32_t dtype : {SQ_F32, SQ_BF16}) {
    // Sizes that split into several tiles, with remainders: 2^21 weights per tile, 1024 buffered rows, depth 1024.
    for (const auto& [m, n, k] : {std::array<std::int64_t, 3>{33, 700, 3100}, {1100, 200, 190}, {2, 2300, 1100}, {300, 90, 770}}) {
      LayerShape s{.m = m, .n = n, .k = k, .r = 5, .dtype = dtype, .activation = SQ_ACT_GELU_TANH, .bias = true, .gap = 3, .seed = 9};
      SCOPED_TRACE(std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k) + " " + std::string(dtype_name(dtype)));
      LayerCase c(s);
      const auto expected = results(one, c, false);
      EXPECT_TRUE(results(one, c, false) == expected) << "rerun";
      EXPECT_TRUE(results(two, c, false) == expected) << "two threads";
      EXPECT_TRUE(results(five, c, false) == expected) << "five threads";
      EXPECT_TRUE(results(two, c, true) == expected) << "h given";
    }
  }
}

TEST(Linear, TilesOfALargeLayerAreExact_SQ_NUM_010) {
  for (const std::int32_t dtype : {SQ_F32, SQ_BF16}) {
    LayerShape s{.m = 1030, .n = 1040, .k = 2100, .r = 2, .dtype = dtype, .bias = true, .exact = true, .gap = 1, .seed = 4};
    LayerCase c(s);
    call(context().linear().linear_forward, context(), c.forward_args());
    call(context().linear().linear_backward, context(), c.backward_args());
    std::mt19937 random(1);
    for (int i = 0; i < 300; ++i) {  // the oracle of single elements
      const std::int64_t m = static_cast<std::int64_t>(random() % 1030), n = static_cast<std::int64_t>(random() % 1040), k = static_cast<std::int64_t>(random() % 2100);
      double y = c.w.bias.get(n), dx = 0;
      double d[2] = {0, 0};
      for (std::int64_t j = 0; j < s.k; ++j) y += c.x.get(m, j) * 0.125 * c.w.q.get(n * c.w.q.cols() + j);
      for (std::int64_t r = 0; r < 2; ++r) {
        double h = 0;
        for (std::int64_t j = 0; j < s.k; ++j) h += c.x.get(m, j) * c.a.get(r, j);
        y += 0.5 * round_to(dtype, h) * c.b.get(n, r);
        for (std::int64_t j = 0; j < s.n; ++j) d[r] += c.dy.get(m, j) * c.b.get(j, r);
      }
      for (std::int64_t j = 0; j < s.n; ++j) dx += c.dy.get(m, j) * 0.125 * c.w.q.get(j * c.w.q.cols() + k);
      for (std::int64_t r = 0; r < 2; ++r) dx += 0.5 * round_to(dtype, d[r]) * c.a.get(r, k);
      ASSERT_EQ(c.y.get(m, n), round_to(dtype, y));
      ASSERT_EQ(c.dx.get(m, k), round_to(dtype, dx));
    }
    EXPECT_TRUE(all_intact(c));
  }
}

TEST(Linear, AccumulationDoublesExactly_SQ_LOR_012) {
  LayerCase c({.m = 1500, .n = 70, .k = 90, .r = 4, .seed = 2});
  call(context().linear().linear_forward, context(), c.forward_args());
  auto args = c.backward_args();
  call(context().linear().linear_backward, context(), args);
  const Buffer da = c.da, db = c.db;
  args.accumulate = 1;
  call(context().linear().linear_backward, context(), args);
  for (std::int64_t i = 0; i < da.size(); ++i) ASSERT_EQ(c.da.get(i), 2 * da.get(i));
  for (std::int64_t i = 0; i < db.size(); ++i) ASSERT_EQ(c.db.get(i), 2 * db.get(i));
}

TEST(Linear, NoRowsWriteNothingButOverwrittenGradients_SQ_LIN_006) {
  LayerCase c({.m = 0, .n = 7, .k = 9, .r = 2});
  call(context().linear().linear_forward, context(), c.forward_args());
  auto args = c.backward_args();
  c.da.set(3, 5.0);
  args.accumulate = 1;
  call(context().linear().linear_backward, context(), args);
  EXPECT_EQ(c.da.get(3), 5.0);
  args.accumulate = 0;
  call(context().linear().linear_backward, context(), args);
  EXPECT_EQ(c.da.get(3), 0.0);
}

TEST(Linear, W8A8IsTheExactIntegerProduct_SQ_NUM_012_LIN_012) {
  // Depth 3000 with codes of 127 passes 2^24: an F32 accumulator alone would round.
  const std::int64_t m = 3, n = 5, k = 3000;
  LayerCase c({.m = m, .n = n, .k = k, .compute = SQ_COMPUTE_W8A8, .exact = true});
  for (std::int64_t i = 0; i < c.x.size(); ++i) c.x.set(i, i % 7 == 3 ? 126 : 127);  // absmax 127: scale 1, codes are the values
  for (std::int64_t i = 0; i < c.w.q.size(); ++i) c.w.q.set(i, i % 5 == 2 ? 125 : 127);
  c.w.bind(n, k, false);
  call(context().linear().linear_forward, context(), c.forward_args());
  for (std::int64_t r = 0; r < m; ++r)
    for (std::int64_t o = 0; o < n; ++o) {
      double sum = 0;
      for (std::int64_t i = 0; i < k; ++i) sum += c.x.get(r, i) * c.w.q.get(o * c.w.q.cols() + i);
      ASSERT_GT(sum, 16777216.0);
      ASSERT_EQ(c.y.get(r, o), static_cast<float>(sum) * 0.125);
    }
}

}  // namespace
}  // namespace squareq::test
