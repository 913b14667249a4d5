// Activations and their derivatives in fp32 (SQ-LIN-020, SQ-LIN-021; formulas in spec/40-linear.md).
#pragma once

#include "squareq/contract.h"

namespace squareq::cuda {

__device__ inline float tanh_form(float x) { return tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)); }

__device__ inline float activate(int activation, float x) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: return 0.5f * x * (1.0f + tanh_form(x));
    case SQ_ACT_GELU_ERF: return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    case SQ_ACT_SILU: return x / (1.0f + expf(-x));
    default: return x;
  }
}

__device__ inline float activation_derivative(int activation, float x) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: {
      const float t = tanh_form(x);
      return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608028654f * (1.0f + 0.134145f * x * x);
    }
    case SQ_ACT_GELU_ERF: return 0.5f * (1.0f + erff(x * 0.7071067811865476f)) + x * expf(-0.5f * x * x) * 0.3989422804014327f;
    case SQ_ACT_SILU: {
      const float s = 1.0f / (1.0f + expf(-x));
      return s * (1.0f + x * (1.0f - s));
    }
    default: return 1.0f;
  }
}

}  // namespace squareq::cuda
