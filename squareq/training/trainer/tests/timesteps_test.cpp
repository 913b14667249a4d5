// Time sampling against published goldens and closed forms; the generator against Random123's known answers (SQ-TRN-010..014).
#include "squareq/training/trainer/timesteps.hpp"

#include <algorithm>
#include <cmath>

#include "squareq/training/data/tests/support.hpp"

namespace squareq::training {
namespace {

TEST(Philox, KnownAnswers) {  // kat_vectors of Random123, philox4x32 10
  using Block = std::array<std::uint32_t, 4>;
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomStream, DistributionsHaveTheirMoments) {
  RandomStream random(1, Purpose::noise, 0);
  constexpr int n = 200000;
  double sum = 0, square = 0, fourth = 0, uniform = 0;
  for (int i = 0; i < n; ++i) {
    const double x = random.normal();
    sum += x, square += x * x, fourth += x * x * x * x;
    const double u = random.uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    uniform += u;
  }
  // Five standard deviations of each estimate.
  EXPECT_NEAR(sum / n, 0.0, 5 / std::sqrt(n));
  EXPECT_NEAR(square / n, 1.0, 5 * std::sqrt(2.0 / n));
  EXPECT_NEAR(fourth / n, 3.0, 5 * std::sqrt(96.0 / n));
  EXPECT_NEAR(uniform / n, 0.5, 5 / std::sqrt(12.0 * n));
}

TEST(RandomStream, PurposesStepsAndSeedsAreApart) {
  const auto first = [](std::uint64_t seed, Purpose purpose, std::uint64_t step) { return RandomStream(seed, purpose, step).bits64(); };
  std::vector<std::uint64_t> all;
  for (std::uint64_t seed : {0ull, 1ull, 1ull << 32})
    for (Purpose purpose : {Purpose::order, Purpose::noise, Purpose::dropout})
      for (std::uint64_t step : {0ull, 1ull, 1ull << 32}) all.push_back(first(seed, purpose, step));
  std::sort(all.begin(), all.end());
  EXPECT_EQ(std::adjacent_find(all.begin(), all.end()), all.end());
  EXPECT_EQ(first(3, Purpose::init, 4), first(3, Purpose::init, 4));
}

TEST(Timesteps, Goldens) {  // SQ-TRN-011, SQ-TRN-012
  EXPECT_NEAR(mode_timestep(0.1), 0.8025685, 5e-8);
  EXPECT_NEAR(mode_timestep(0.5), 0.5, 1e-12);
  EXPECT_NEAR(mode_timestep(0.9), 0.1974315, 5e-8);
  EXPECT_NEAR(flux_mu(256), 0.5, 1e-12);
  EXPECT_NEAR(flux_mu(1024), 0.63, 1e-12);
  EXPECT_NEAR(flux_mu(2304), 0.8466667, 5e-8);
  EXPECT_NEAR(flux_mu(4096), 1.15, 1e-12);
  const double t[] = {0.75, 0.5, 0.25, 0.01};
  const double at4096[] = {0.904531, 0.759511, 0.512844, 0.030915}, at1024[] = {0.849235, 0.652489, 0.384945, 0.018613};
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(shift_mu(t[i], flux_mu(4096)), at4096[i], 5e-7);
    EXPECT_NEAR(shift_mu(t[i], flux_mu(1024)), at1024[i], 5e-7);
    EXPECT_NEAR(shift_constant(t[i], std::exp(1.15)), at4096[i], 5e-7);
  }
  EXPECT_NEAR(shift_constant(0.75, 3), 0.9, 1e-12);
  EXPECT_NEAR(shift_constant(0.001, 3), 0.002994, 5e-7);
  EXPECT_EQ(shift_mu(0.0, 1.15), 0.0);
  EXPECT_EQ(shift_constant(0.0, 3), 0.0);
}

/// Share of draws below 1/4.
double below_quarter(TimestepOptions options) {
  RandomStream random(5, Purpose::timestep, 0);
  constexpr int n = 100000;
  int count = 0;
  for (int i = 0; i < n; ++i) {
    const float t = draw_timestep(options, random);
    EXPECT_GE(t, 0.0f);
    EXPECT_LE(t, 1.0f);
    count += t < 0.25f;
  }
  return static_cast<double>(count) / n;
}

TEST(Timesteps, DrawsFollowTheirDistribution) {  // SQ-TRN-010
  const auto normal_below = [](double z) { return 0.5 * std::erfc(-z / std::sqrt(2.0)); };
  const auto logit = [](double p) { return std::log(p / (1 - p)); };
  const double tolerance = 5 * 0.5 / std::sqrt(100000.0);
  TimestepOptions o;
  o.sampling = TimestepSampling::uniform;
  EXPECT_NEAR(below_quarter(o), 0.25, tolerance);
  o.sampling = TimestepSampling::logit_normal;
  EXPECT_NEAR(below_quarter(o), normal_below(logit(0.25)), tolerance);
  o.mean = 0.5, o.std = 2.0;
  EXPECT_NEAR(below_quarter(o), normal_below((logit(0.25) - 0.5) / 2.0), tolerance);
  o = {};
  o.sampling = TimestepSampling::shift, o.shift = 3.0;  // s' < 1/4 where s < 1/10
  EXPECT_NEAR(below_quarter(o), normal_below(logit(0.1)), tolerance);
  o.sampling = TimestepSampling::flux_shift, o.image_tokens = 4096;
  EXPECT_NEAR(below_quarter(o), normal_below(logit(0.25) - 1.15), tolerance);
}

TEST(Timesteps, EulerSchedule) {  // SQ-TRN-014
  const auto plain = euler_schedule(4, 0);
  EXPECT_EQ(plain, (std::vector<double>{1.0, 0.75, 0.5, 0.25, 0.0}));
  const auto shifted = euler_schedule(4, flux_mu(4096));
  EXPECT_DOUBLE_EQ(shifted.front(), 1.0);
  EXPECT_EQ(shifted.back(), 0.0);
  EXPECT_NEAR(shifted[1], 0.904531, 5e-7);
}

TEST(Timesteps, UnknownNameListsTheKnown) {
  EXPECT_EQ(failure([] { parse_timestep_sampling("gauss"); }, {"gauss", "logit_normal", "flux_shift"}), Code::CFG_VALUE);
}

}  // namespace
}  // namespace squareq::training
