// Activation functions and their derivatives, in fp32 (SQ-LIN-020). Formulas: Hendrycks and Gimpel, "Gaussian Error Linear Units";
// the tanh form is the one that FLUX.1's MLP uses.
#pragma once

#include <cmath>
#include <cstdint>

#include "squareq/contract.h"

namespace squareq::reference {

inline constexpr float sqrt_2_over_pi = 0.7978845608028654f;
inline constexpr float sqrt_half = 0.7071067811865476f;
inline constexpr float inverse_sqrt_2pi = 0.3989422804014327f;

inline float activate(std::int32_t activation, float x) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: return 0.5f * x * (1.0f + std::tanh(sqrt_2_over_pi * (x + 0.044715f * x * x * x)));
    case SQ_ACT_GELU_ERF: return 0.5f * x * (1.0f + std::erf(x * sqrt_half));
    case SQ_ACT_SILU: return x / (1.0f + std::exp(-x));
    default: return x;
  }
}

inline float activation_derivative(std::int32_t activation, float x) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: {
      const float t = std::tanh(sqrt_2_over_pi * (x + 0.044715f * x * x * x));
      return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * sqrt_2_over_pi * (1.0f + 0.134145f * x * x);
    }
    case SQ_ACT_GELU_ERF: return 0.5f * (1.0f + std::erf(x * sqrt_half)) + x * std::exp(-0.5f * x * x) * inverse_sqrt_2pi;
    case SQ_ACT_SILU: {
      const float s = 1.0f / (1.0f + std::exp(-x));
      return s * (1.0f + x * (1.0f - s));
    }
    default: return 1.0f;
  }
}

}  // namespace squareq::reference
