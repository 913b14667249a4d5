// Layer norm with a shift and a scale that the time embedding gives (adaLN).
#pragma once

#include <torch/torch.h>

namespace squareq::training {

/// LN(x) * (1 + scale) + shift for x [B, S, D], shift and scale [B, 1, D], all of one dtype; LN over D without weights. On a GPU a batch of
/// one takes 1 + scale and shift as weight and bias of the norm itself: one kernel each way, FP32 inside, rounded once. Elsewhere LN(x) is
/// rounded in between.
inline torch::Tensor modulated(const torch::Tensor& x, const torch::Tensor& shift, const torch::Tensor& scale, double epsilon) {
  if (x.is_cuda() && x.size(0) == 1) return torch::layer_norm(x, {x.size(-1)}, (scale + 1).flatten(), shift.flatten(), epsilon);
  return torch::addcmul(shift, torch::layer_norm(x, {x.size(-1)}, {}, {}, epsilon), scale + 1);
}

}  // namespace squareq::training
