#include "squareq/training/trainer/adamw.hpp"

#include <torch/torch.h>

#include <cmath>
#include <numbers>

namespace squareq::training {

AdamW::AdamW(std::vector<torch::Tensor> parameters, AdamWOptions options) : parameters_(std::move(parameters)), options_(options) {
  for (const torch::Tensor& p : parameters_) {
    moment1.push_back(torch::zeros_like(p.detach()));
    moment2.push_back(torch::zeros_like(p.detach()));
  }
}

void AdamW::step(double lr) {
  const torch::NoGradGuard no_grad;
  ++steps;
  const auto [b1, b2] = options_.betas;
  const double correction1 = 1.0 - std::pow(b1, static_cast<double>(steps));
  const double correction2 = 1.0 - std::pow(b2, static_cast<double>(steps));
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    torch::Tensor& p = parameters_[i];
    const torch::Tensor g = p.grad();
    if (!g.defined()) continue;
    if (options_.weight_decay != 0.0) p.mul_(1.0 - lr * options_.weight_decay);
    moment1[i].mul_(b1).add_(g, 1.0 - b1);
    moment2[i].mul_(b2).addcmul_(g, g, 1.0 - b2);
    const torch::Tensor denominator = moment2[i].sqrt().div_(std::sqrt(correction2)).add_(options_.eps);
    p.addcdiv_(moment1[i], denominator, -lr / correction1);
  }
}

void AdamW::zero_grad() {
  for (torch::Tensor& p : parameters_) p.mutable_grad() = torch::Tensor();
}

double learning_rate(const std::string& schedule, double lr, std::int64_t step, std::int64_t warmup, std::int64_t steps) {
  if (step < warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (schedule == "constant") return lr;
  const double done = static_cast<double>(step - warmup) / static_cast<double>(std::max<std::int64_t>(1, steps - warmup));
  return schedule == "linear" ? lr * (1.0 - done) : lr * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
}

GradientCheck check_gradients(const std::vector<torch::Tensor>& parameters) {
  const torch::NoGradGuard no_grad;
  GradientCheck check;
  double sum = 0;
  for (const torch::Tensor& p : parameters) {
    const torch::Tensor g = p.grad();
    if (!g.defined()) continue;
    const double square = g.to(torch::kFloat64).pow(2).sum().item<double>();
    sum += square;
    if (std::isfinite(square)) continue;
    check.nan += torch::isnan(g).sum().item<std::int64_t>();
    check.infinite += torch::isinf(g).sum().item<std::int64_t>();
  }
  check.norm = std::sqrt(sum);
  return check;
}

void clip_gradients(const std::vector<torch::Tensor>& parameters, double norm, double clip) {
  const double factor = clip / (norm + 1e-6);
  if (clip == 0.0 || factor >= 1.0) return;
  const torch::NoGradGuard no_grad;
  for (const torch::Tensor& p : parameters)
    if (p.grad().defined()) p.grad().mul_(factor);
}

}  // namespace squareq::training
