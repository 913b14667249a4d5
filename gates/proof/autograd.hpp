// One step of a linear layer with a low-rank branch, in float64: outputs, gradients by libtorch's autograd, and the error bounds of
// spec/35-numerics.md written out a second time, from the table. Plain vectors on this side; autograd.cpp alone includes torch.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "squareq/contract.h"

namespace squareq::gates::proof {

using Numbers = std::vector<double>;  // row-major, dense

/// Values as an implementation is given them; A and B already rounded to the activations' dtype (SQ-LOR-003).
struct Step {
  std::int64_t m = 0, k = 0, n = 0, rank = 0;
  std::int32_t activation = SQ_ACT_NONE;
  std::int32_t x_dtype = SQ_F32, y_dtype = SQ_F32, dy_dtype = SQ_F32;
  double scaling = 0;
  Numbers w, bias;                      ///< W = q s [n, k]; bias [n] or empty
  Numbers x, lora_x;                    ///< [m, k]; lora_x empty: the layer's x
  Numbers a_t, b_t;                     ///< [rank, k], [n, rank]
  Numbers dy;                           ///< [m, n]
  std::optional<Numbers> saved;         ///< [m, n]: act' is taken here. Absent: at the step's own float64 preactivation
  Numbers initial_a, initial_b;         ///< what da_t and db_t are added to; empty: overwritten
};

struct Quantity {
  Numbers value, bound;
};

struct StepResult {
  Quantity y, preactivation, h, dx, dx_lora, da_t, db_t;
};

/// Gradients of sum(dy * y) with respect to x, lora_x, a_t and b_t, from one autograd graph over the whole step. Without `saved` the
/// bound of G also holds the error of the fp32 preactivation that an implementation saves: |act''| <= 0.81 times E_P.
StepResult autograd_step(const Step& step);

/// sum(dy * y) in float64, from torch's forward alone.
double loss(const Step& step);

}  // namespace squareq::gates::proof
