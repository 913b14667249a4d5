// AdamW (Loshchilov and Hutter 2019) in PyTorch's order of operations, with its state in plain sight: checkpoints hold it as tensors.
#pragma once

#include <torch/types.h>

#include <array>
#include <cstdint>
#include <vector>

namespace squareq::training {

struct AdamWOptions {
  std::array<double, 2> betas{0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0.0;
};

class AdamW {
 public:
  AdamW(std::vector<torch::Tensor> parameters, AdamWOptions options);

  /// One update from the parameters' gradients (a parameter without one is left alone):
  /// p *= 1 - lr wd; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps).
  void step(double lr);
  void zero_grad();

  /// Updates done so far (t).
  std::int64_t steps = 0;
  /// First and second moments, F32, in the parameters' order and shape.
  std::vector<torch::Tensor> moment1, moment2;
  const std::vector<torch::Tensor>& parameters() const { return parameters_; }

 private:
  std::vector<torch::Tensor> parameters_;
  AdamWOptions options_;
};

/// Learning rate of step `step` (from 0) of `steps`: lr * (step + 1) / warmup while step < warmup; then constant, or falling to 0 at
/// the last step ("linear", "cosine").
double learning_rate(const std::string& schedule, double lr, std::int64_t step, std::int64_t warmup, std::int64_t steps);

/// What a gradient norm found.
struct GradientCheck {
  double norm = 0;  ///< of all gradients together; NaN or infinite where one is
  std::int64_t nan = 0, infinite = 0;
  bool finite() const { return nan == 0 && infinite == 0; }
};
GradientCheck check_gradients(const std::vector<torch::Tensor>& parameters);
/// Scales all gradients by min(1, clip / (norm + 1e-6)); clip 0 is off.
void clip_gradients(const std::vector<torch::Tensor>& parameters, double norm, double clip);

}  // namespace squareq::training
