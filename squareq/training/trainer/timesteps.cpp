#include "squareq/training/trainer/timesteps.hpp"

#include <fmt/format.h>

#include <cmath>
#include <numbers>
#include <string>
#include <utility>

#include "squareq/error.hpp"
#include "squareq/text.hpp"

namespace squareq::training {

namespace {

constexpr std::pair<std::string_view, TimestepSampling> names[] = {
    {"uniform", TimestepSampling::uniform}, {"logit_normal", TimestepSampling::logit_normal},
    {"mode", TimestepSampling::mode},       {"sigmoid", TimestepSampling::sigmoid},
    {"shift", TimestepSampling::shift},     {"flux_shift", TimestepSampling::flux_shift},
};

}  // namespace

TimestepSampling parse_timestep_sampling(std::string_view name) {
  std::string known;
  for (const auto& [text, value] : names) {
    if (text == name) return value;
    known += (known.empty() ? "" : ", ") + std::string(text);
  }
  throw Error(Code::CFG_VALUE, fmt::format("train.timesteps is '{}', expected one of {}", printable(name), known));
}

std::string_view timestep_sampling_name(TimestepSampling sampling) {
  for (const auto& [text, value] : names)
    if (value == sampling) return text;
  return "unknown";
}

double flux_mu(std::int64_t image_tokens) { return 0.5 + (static_cast<double>(image_tokens) - 256.0) * (1.15 - 0.5) / (4096.0 - 256.0); }

double shift_constant(double s, double shift) { return s * shift / (1.0 + (shift - 1.0) * s); }

double shift_mu(double s, double mu) { return s <= 0.0 ? 0.0 : std::exp(mu) / (std::exp(mu) + (1.0 / s - 1.0)); }

double mode_timestep(double r) {
  const double c = std::cos(std::numbers::pi * r / 2.0);
  return 1.0 - r - 1.29 * (c * c - 1.0 + r);
}

float draw_timestep(const TimestepOptions& options, RandomStream& random) {
  const auto logistic = [&] { return 1.0 / (1.0 + std::exp(-(options.mean + options.std * static_cast<double>(random.normal())))); };
  switch (options.sampling) {
    case TimestepSampling::uniform: return random.uniform();
    case TimestepSampling::mode: return static_cast<float>(mode_timestep(random.uniform()));
    case TimestepSampling::logit_normal:
    case TimestepSampling::sigmoid: return static_cast<float>(logistic());
    case TimestepSampling::shift: return static_cast<float>(shift_constant(logistic(), options.shift));
    case TimestepSampling::flux_shift: return static_cast<float>(shift_mu(logistic(), flux_mu(options.image_tokens)));
  }
  throw Error(Code::INTERNAL, "unknown timestep sampling");
}

std::vector<double> euler_schedule(std::int64_t steps, double mu) {
  std::vector<double> times(static_cast<std::size_t>(steps) + 1);
  for (std::int64_t i = 0; i <= steps; ++i) {
    const double t = static_cast<double>(steps - i) / static_cast<double>(steps);
    times[static_cast<std::size_t>(i)] = mu == 0.0 ? t : shift_mu(t, mu);
  }
  return times;
}

}  // namespace squareq::training
