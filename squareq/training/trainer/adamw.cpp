#include "squareq/training/trainer/adamw.hpp"

#include <torch/torch.h>

#include <cmath>
#include <numbers>

#include "squareq/training/torch_compat.hpp"

namespace squareq::training {

namespace {

// FLUX.1 has 836 small parameters. On a GPU one kernel for many of them, instead of one for each, is the difference between a millisecond and thirty;
// groups bound the memory of what lies between the operations.
constexpr std::size_t kGroup = 32;

}  // namespace

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
  std::vector<torch::Tensor> p, g, m, v;
  const auto update = [&] {
    if (options_.weight_decay != 0.0) at::_foreach_mul_(p, 1.0 - lr * options_.weight_decay);
    at::_foreach_mul_(m, b1);
    at::_foreach_add_(m, g, 1.0 - b1);
    at::_foreach_mul_(v, b2);
    at::_foreach_addcmul_(v, g, g, 1.0 - b2);
    const std::vector<torch::Tensor> denominator = at::_foreach_sqrt(v);
    at::_foreach_div_(denominator, std::sqrt(correction2));
    at::_foreach_add_(denominator, options_.eps);
    at::_foreach_addcdiv_(p, m, denominator, -lr / correction1);
    for (auto* list : {&p, &g, &m, &v}) list->clear();
  };
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (!parameters_[i].grad().defined()) continue;
    p.push_back(parameters_[i]);
    g.push_back(parameters_[i].grad());
    m.push_back(moment1[i]);
    v.push_back(moment2[i]);
    if (p.size() == kGroup) update();
  }
  if (!p.empty()) update();
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
  std::vector<torch::Tensor> gradients;
  for (const torch::Tensor& p : parameters)
    if (p.grad().defined()) gradients.push_back(p.grad());
  if (gradients.empty()) return check;
  const torch::Tensor on_host = norms_of(gradients).to(torch::kCPU);  // the device is waited for once
  double sum = 0;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const double norm = on_host.data_ptr<double>()[i];
    sum += norm * norm;
    if (std::isfinite(norm)) continue;
    check.nan += torch::isnan(gradients[i]).sum().item<std::int64_t>();
    check.infinite += torch::isinf(gradients[i]).sum().item<std::int64_t>();
  }
  check.norm = std::sqrt(sum);
  return check;
}

void clip_gradients(const std::vector<torch::Tensor>& parameters, double norm, double clip) {
  const double factor = clip / (norm + 1e-6);
  if (clip == 0.0 || factor >= 1.0) return;
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> gradients;
  for (const torch::Tensor& p : parameters)
    if (p.grad().defined()) gradients.push_back(p.grad());
  if (!gradients.empty()) at::_foreach_mul_(gradients, factor);
}

}  // namespace squareq::training
