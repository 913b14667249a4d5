// Flow matching's time: how training draws sigma, how a schedule is shifted by resolution (SQ-TRN-010..014).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "squareq/training/trainer/philox.hpp"

namespace squareq::training {

enum class TimestepSampling { uniform, logit_normal, mode, sigmoid, shift, flux_shift };

/// How sigma in [0, 1] is drawn. mean and std belong to the normal below logit_normal, sigmoid, shift and flux_shift.
struct TimestepOptions {
  TimestepSampling sampling = TimestepSampling::logit_normal;
  double mean = 0.0;
  double std = 1.0;
  double shift = 3.0;             ///< S of `shift`
  std::int64_t image_tokens = 0;  ///< N of `flux_shift`
};

/// Name in configurations ("logit_normal"); throws CFG_VALUE listing the names for any other.
TimestepSampling parse_timestep_sampling(std::string_view name);

std::string_view timestep_sampling_name(TimestepSampling sampling);

/// mu(N) = 0.5 + (N - 256) (1.15 - 0.5) / (4096 - 256), N image tokens (FLUX.1 sampling.py).
double flux_mu(std::int64_t image_tokens);

/// s S / (1 + (S - 1) s); 0 -> 0, 1 -> 1.
double shift_constant(double s, double shift);

/// e^mu / (e^mu + 1/s - 1); 0 -> 0. Equals shift_constant with S = e^mu.
double shift_mu(double s, double mu);

/// 1 - r - m (cos^2(pi r / 2) - 1 + r), m = 1.29 (diffusers' "mode").
double mode_timestep(double r);

/// One draw.
float draw_timestep(const TimestepOptions& options, RandomStream& random);

/// steps + 1 values from 1 to 0, in equal steps, then through shift_mu where mu is not 0.
std::vector<double> euler_schedule(std::int64_t steps, double mu);

}  // namespace squareq::training
