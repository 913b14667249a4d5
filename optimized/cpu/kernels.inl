// The loops of kernels.hpp, written so that the compiler vectorises them for whatever instruction set this file is compiled for.
// Include it from one .cpp per instruction set, which defines SQ_ISA. Nothing here may call an inline function of another header:
// the linker could keep the AVX copy of it for everybody.
#include "optimized/cpu/kernels.hpp"

#define SQ_CONCAT2(a, b) a##b
#define SQ_CONCAT(a, b) SQ_CONCAT2(a, b)
#define SQ_STRING2(a) #a
#define SQ_STRING(a) SQ_STRING2(a)
#define SQ_BITS(T, value) __builtin_bit_cast(T, value)

namespace squareq::cpu {
namespace {

using std::int32_t;
using std::int64_t;
using std::int8_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;

// Adding 1.5 * 2^23 leaves round_half_even(t) in the low mantissa bits for |t| <= 2^22: no rounding instruction needed.
constexpr float kRound = 12582912.0f;
constexpr int32_t kRoundBits = 0x4B400000;

inline int32_t round_half_even(float t) { return SQ_BITS(int32_t, t + kRound) - kRoundBits; }

inline float bf16_value(uint16_t b) { return SQ_BITS(float, static_cast<uint32_t>(b) << 16); }

inline float f16_value(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7FFFu) << 13;
  // Subnormals: place the fraction under 2^-14 and subtract it; works under flush-to-zero too.
  const float subnormal = SQ_BITS(float, magnitude + (113u << 23)) - SQ_BITS(float, 113u << 23);
  const uint32_t normal = magnitude + (112u << 23);
  const uint32_t special = magnitude | 0x7F800000u;
  const uint32_t finite = magnitude < (1u << 23) ? SQ_BITS(uint32_t, subnormal) : normal;
  return SQ_BITS(float, sign | (magnitude >= (31u << 23) ? special : finite));
}

inline uint16_t bf16_bits(float x) {
  const uint32_t u = SQ_BITS(uint32_t, x);
  const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  const uint32_t quiet = (u >> 16) | 0x40u;
  return static_cast<uint16_t>((u & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded);
}

inline uint16_t f16_bits(float x) {
  const uint32_t u = SQ_BITS(uint32_t, x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7FFFFFFFu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 the sum with 0.5 rounds to a multiple of 2^-24, which is the subnormal unit of fp16.
  const uint32_t subnormal = SQ_BITS(uint32_t, SQ_BITS(float, magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t bounded = magnitude >= 0x477FF000u ? 0x7C00u : finite;  // 65520 and above round to infinity
  return static_cast<uint16_t>(sign | (magnitude > 0x7F800000u ? 0x7E00u : bounded));
}

inline int8_t clamp_code(int32_t r) { return static_cast<int8_t>(r > 127 ? 127 : r < -127 ? -127 : r); }

uint32_t max_abs_f32(const float* x, int64_t n) {
  int32_t m = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t a = SQ_BITS(int32_t, x[i]) & 0x7FFFFFFF;
    m = a > m ? a : m;
  }
  return static_cast<uint32_t>(m);
}

uint32_t max_abs_16(const uint16_t* x, int64_t n) {
  uint16_t m = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto a = static_cast<uint16_t>(x[i] & 0x7FFF);
    m = a > m ? a : m;
  }
  return m;
}

void quantize_f32(const float* __restrict w, int64_t n, float inv, int8_t* __restrict q) {
  for (int64_t i = 0; i < n; ++i) q[i] = clamp_code(round_half_even(w[i] * inv));
}
void quantize_bf16(const uint16_t* __restrict w, int64_t n, float inv, int8_t* __restrict q) {
  for (int64_t i = 0; i < n; ++i) q[i] = clamp_code(round_half_even(bf16_value(w[i]) * inv));
}
void quantize_f16(const uint16_t* __restrict w, int64_t n, float inv, int8_t* __restrict q) {
  for (int64_t i = 0; i < n; ++i) q[i] = clamp_code(round_half_even(f16_value(w[i]) * inv));
}
void quantize_div(const float* __restrict x, int64_t n, float scale, int8_t* __restrict q) {
  for (int64_t i = 0; i < n; ++i) {
    const float t = x[i] / scale;
    const float bounded = t > 127.0f ? 127.0f : t < -127.0f ? -127.0f : t;
    q[i] = static_cast<int8_t>(round_half_even(bounded == bounded ? bounded : 0.0f));
  }
}

void dequantize(const int8_t* __restrict q, int64_t n, float scale, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(q[i]) * scale;
}
void bf16_to_f32(const uint16_t* __restrict x, int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = bf16_value(x[i]);
}
void f16_to_f32(const uint16_t* __restrict x, int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = f16_value(x[i]);
}
void f32_to_bf16(const float* __restrict x, int64_t n, uint16_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = bf16_bits(x[i]);
}
void f32_to_f16(const float* __restrict x, int64_t n, uint16_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = f16_bits(x[i]);
}

void add(const float* __restrict x, int64_t n, float* __restrict y) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}
void multiply(const float* a, const float* b, int64_t n, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] * b[i];
}

// e^x for |x| <= 87, within 1.5 ulp; larger |x| are clamped, NaN stays NaN. Polynomial: Cephes expf.
inline float exponential(float x) {
  const float bounded = x > 87.0f ? 87.0f : x < -87.0f ? -87.0f : x;
  const float shifted = bounded * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float e = (p * (r * r) + r) + 1.0f;
  return e * SQ_BITS(float, (SQ_BITS(int32_t, shifted) - kRoundBits + 127) << 23);
}

constexpr float kGelu = 0.7978845608028654f;
constexpr float kGeluCubic = 0.044715f;

// 0.5 (1 + tanh(u)) = 1 / (1 + e^-2u): the logistic form has no cancellation for negative x.
inline float gelu_exponent(float x) { return exponential(-2.0f * kGelu * (x + kGeluCubic * (x * x * x))); }

void gelu_tanh(const float* x, int64_t n, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] / (1.0f + gelu_exponent(x[i]));
}
void gelu_tanh_gradient(const float* pre, const float* g, int64_t n, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const float x = pre[i];
    const float e = gelu_exponent(x);
    const float s = 1.0f / (1.0f + e);
    out[i] = g[i] * (s + x * s * (e * s) * (2.0f * kGelu * (1.0f + 3.0f * kGeluCubic * (x * x))));
  }
}
void silu(const float* x, int64_t n, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] / (1.0f + exponential(-x[i]));
}
void silu_gradient(const float* pre, const float* g, int64_t n, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const float e = exponential(-pre[i]);
    const float s = 1.0f / (1.0f + e);
    out[i] = g[i] * (s * (1.0f + pre[i] * (e * s)));
  }
}

#include "optimized/cpu/erf.inl"

void gelu_erf(const float* x, int64_t n, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(x[i] * normal_cdf(x[i]));
}
void gelu_erf_gradient(const float* pre, const float* g, int64_t n, float* out) {
  constexpr double inverse_sqrt_2pi = 0.3989422804014326779;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const double x = pre[i];
    out[i] = g[i] * static_cast<float>(normal_cdf(x) + x * exponential_double(-0.5 * (x * x)) * inverse_sqrt_2pi);
  }
}

void layernorm_modulate(const float* x, const float* shift, const float* scale, int64_t n, float epsilon, float* out) {
  constexpr int64_t lanes = 16;
  double part[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int64_t l = 0; l < lanes; ++l) part[l] += x[i + l];
  for (int64_t l = 0; i + l < n; ++l) part[l] += x[i + l];
  double sum = 0;
  for (const double p : part) sum += p;
  const double mean = sum / static_cast<double>(n);
  double square[lanes] = {};
  i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int64_t l = 0; l < lanes; ++l) square[l] += (x[i + l] - mean) * (x[i + l] - mean);
  for (int64_t l = 0; i + l < n; ++l) square[l] += (x[i + l] - mean) * (x[i + l] - mean);
  double total = 0;
  for (const double s : square) total += s;
  const double inverse = 1.0 / __builtin_sqrt(total / static_cast<double>(n) + static_cast<double>(epsilon));
#pragma GCC ivdep
  for (int64_t k = 0; k < n; ++k)
    out[k] = static_cast<float>((x[k] - mean) * inverse) * (1.0f + scale[k]) + shift[k];
}

void add_squares(const float* x, int64_t n, double* lanes) {
  constexpr int64_t count = 16;
  int64_t i = 0;
  for (; i + count <= n; i += count)
    for (int64_t l = 0; l < count; ++l) lanes[l] += static_cast<double>(x[i + l]) * x[i + l];
  for (int64_t l = 0; i + l < n; ++l) lanes[l] += static_cast<double>(x[i + l]) * x[i + l];
}
void add_products(const float* x, const float* w, const float* g, int64_t n, double* lanes) {
  constexpr int64_t count = 16;
  int64_t i = 0;
  for (; i + count <= n; i += count)
    for (int64_t l = 0; l < count; ++l) lanes[l] += static_cast<double>(x[i + l]) * (w[i + l] * g[i + l]);
  for (int64_t l = 0; i + l < n; ++l) lanes[l] += static_cast<double>(x[i + l]) * (w[i + l] * g[i + l]);
}
void scale_by_weight(const float* __restrict x, const float* __restrict w, int64_t n, float r, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * r * w[i];
}
void rotate_pairs(const float* __restrict rope, int64_t n, float direction, float* __restrict values) {
  for (int64_t i = 0; i < n; i += 2) {
    const float cosine = rope[i], sine = direction * rope[i + 1], even = values[i], odd = values[i + 1];
    values[i] = even * cosine - odd * sine;
    values[i + 1] = even * sine + odd * cosine;
  }
}
void rms_norm_gradient(const float* x, const float* w, const float* g, int64_t n, float r, float m, float* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = r * (w[i] * g[i] - x[i] * r * m);
}

void accumulate_i32(const float* __restrict partial, int64_t n, int32_t* __restrict acc) {
  for (int64_t i = 0; i < n; ++i) acc[i] += static_cast<int32_t>(partial[i]);
}
void rescale_i32(const int32_t* __restrict acc, int64_t n, float row_scale, const float* __restrict column_scale, float* __restrict out) {
  if (column_scale == nullptr) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(acc[i]) * row_scale;
    return;
  }
  for (int64_t i = 0; i < n; ++i) out[i] = (static_cast<float>(acc[i]) * row_scale) * column_scale[i];
}

void count_nonfinite_f32(const float* x, int64_t n, int64_t* counts) {
  int64_t nan = 0, infinite = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t a = SQ_BITS(uint32_t, x[i]) & 0x7FFFFFFFu;
    nan += a > 0x7F800000u;
    infinite += a == 0x7F800000u;
  }
  counts[0] += nan;
  counts[1] += infinite;
}
void count_nonfinite_f64(const double* x, int64_t n, int64_t* counts) {
  int64_t nan = 0, infinite = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t a = SQ_BITS(uint64_t, x[i]) & 0x7FFFFFFFFFFFFFFFu;
    nan += a > 0x7FF0000000000000u;
    infinite += a == 0x7FF0000000000000u;
  }
  counts[0] += nan;
  counts[1] += infinite;
}
void count_nonfinite_16(const uint16_t* x, int64_t n, uint32_t infinity, int64_t* counts) {
  int64_t nan = 0, infinite = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t a = x[i] & 0x7FFFu;
    nan += a > infinity;
    infinite += a == infinity;
  }
  counts[0] += nan;
  counts[1] += infinite;
}

}  // namespace

extern const Kernels SQ_CONCAT(kernels_, SQ_ISA);
const Kernels SQ_CONCAT(kernels_, SQ_ISA) = {
    .isa = SQ_STRING(SQ_ISA),
    .max_abs_f32 = max_abs_f32,
    .max_abs_16 = max_abs_16,
    .quantize_f32 = quantize_f32,
    .quantize_bf16 = quantize_bf16,
    .quantize_f16 = quantize_f16,
    .quantize_div = quantize_div,
    .dequantize = dequantize,
    .bf16_to_f32 = bf16_to_f32,
    .f16_to_f32 = f16_to_f32,
    .f32_to_bf16 = f32_to_bf16,
    .f32_to_f16 = f32_to_f16,
    .add = add,
    .multiply = multiply,
    .gelu_tanh = gelu_tanh,
    .gelu_erf = gelu_erf,
    .silu = silu,
    .gelu_tanh_gradient = gelu_tanh_gradient,
    .gelu_erf_gradient = gelu_erf_gradient,
    .silu_gradient = silu_gradient,
    .layernorm_modulate = layernorm_modulate,
    .add_squares = add_squares,
    .add_products = add_products,
    .scale_by_weight = scale_by_weight,
    .rotate_pairs = rotate_pairs,
    .rms_norm_gradient = rms_norm_gradient,
    .accumulate_i32 = accumulate_i32,
    .rescale_i32 = rescale_i32,
    .count_nonfinite_f32 = count_nonfinite_f32,
    .count_nonfinite_f64 = count_nonfinite_f64,
    .count_nonfinite_16 = count_nonfinite_16,
};

}  // namespace squareq::cpu
