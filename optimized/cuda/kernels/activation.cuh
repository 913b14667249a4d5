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

/// Those that are x / (1 + 2^(x (linear + cubic x^2))): GELU's tanh form, since 1 + tanh(u) = 2 / (1 + exp(-2 u)), and SiLU.
struct Sigmoid {
  float linear = 0, cubic = 0;
  __host__ __device__ explicit Sigmoid(int activation) {
    constexpr float kLog2E = 1.4426950408889634f, kGelu = -2 * 0.7978845608028654f * kLog2E;
    if (activation == SQ_ACT_GELU_TANH) linear = kGelu, cubic = kGelu * 0.044715f;
    if (activation == SQ_ACT_SILU) linear = -kLog2E;
  }
  __host__ __device__ static bool serves(int activation) { return activation == SQ_ACT_GELU_TANH || activation == SQ_ACT_SILU; }

  /// For outputs of 16 bits: the two approximations are off by some units of 2^-23, times the exponent's size.
  __device__ float operator()(float x) const { return __fmul_rn(x, reciprocal(__fadd_rn(1.0f, power_of_two(__fmul_rn(x, __fmaf_rn(cubic, capped_square(x), linear)))))); }

  /// For every dtype: off by less than 8 units of 2^-24 (64 are allowed, spec/35-numerics.md). With p the power and s = 1 / (1 + p): s + x s (p s) slope,
  /// where p s is 1 - s without its cancellation.
  __device__ float derivative(float x) const {
    constexpr float kLn2 = 0.6931471805599453f;
    const float square = capped_square(x), p = power_of_two(fminf(__fmul_rn(x, __fmaf_rn(cubic, square, linear)), 126.0f));  // infinity times 0 is not 0
    const float s = reciprocal(__fadd_rn(1.0f, p)), slope = -kLn2 * __fmaf_rn(3 * cubic, square, linear);
    return __fmaf_rn(__fmul_rn(__fmul_rn(x, s), __fmul_rn(p, s)), slope, s);
  }

 private:
  __device__ static float capped_square(float x) { return fminf(__fmul_rn(x, x), 1e30f); }
  __device__ static float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
  }
  __device__ static float reciprocal(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
  }
};

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
