// 16-bit floats as bits, and element access to tensors of any floating dtype. Rounding is to nearest, ties to even, everywhere
// (SQ-NUM-001).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "squareq/contract.h"

namespace squareq::reference {

inline float bf16_to_float(std::uint16_t h) { return std::bit_cast<float>(static_cast<std::uint32_t>(h) << 16); }

inline std::uint16_t float_to_bf16(float f) {
  const auto bits = std::bit_cast<std::uint32_t>(f);
  if (std::isnan(f)) return static_cast<std::uint16_t>((bits >> 16) | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float f16_to_float(std::uint16_t h) {
  const std::uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023u;
  if (exponent == 0) return std::copysign(static_cast<float>(mantissa) * 0x1p-24f, std::bit_cast<float>(sign));
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

inline std::uint16_t float_to_f16(float f) {
  const auto bits = std::bit_cast<std::uint32_t>(f);
  const std::uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (std::isnan(f)) return static_cast<std::uint16_t>(sign | 0x7E00u);
  if (magnitude >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u)                                                      // below 2^-14: units of 2^-24
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(std::rint(std::fabs(f) * 0x1p24f)));
  return static_cast<std::uint16_t>(sign | (((magnitude + 0xFFF + ((magnitude >> 13) & 1)) >> 13) - (112u << 10)));
}

/// `f` rounded to `dtype` (F32, BF16, F16) and widened again.
inline float round_to(std::int32_t dtype, float f) {
  if (dtype == SQ_BF16) return bf16_to_float(float_to_bf16(f));
  if (dtype == SQ_F16) return f16_to_float(float_to_f16(f));
  return f;
}

/// Element `index` (counted from t.data, strides already applied) of a floating tensor; F64 is rounded to fp32.
inline float load(const sq_tensor& t, std::int64_t index) {
  switch (t.dtype) {
    case SQ_BF16: return bf16_to_float(static_cast<const std::uint16_t*>(t.data)[index]);
    case SQ_F16: return f16_to_float(static_cast<const std::uint16_t*>(t.data)[index]);
    case SQ_F64: return static_cast<float>(static_cast<const double*>(t.data)[index]);
    default: return static_cast<const float*>(t.data)[index];
  }
}

/// Stores with one rounding. F32, BF16 and F16.
inline void store(const sq_tensor& t, std::int64_t index, float value) {
  switch (t.dtype) {
    case SQ_BF16: static_cast<std::uint16_t*>(t.data)[index] = float_to_bf16(value); break;
    case SQ_F16: static_cast<std::uint16_t*>(t.data)[index] = float_to_f16(value); break;
    default: static_cast<float*>(t.data)[index] = value;
  }
}

inline float load(const sq_tensor& t, std::int64_t row, std::int64_t column) { return load(t, row * t.strides[0] + column); }
inline void store(const sq_tensor& t, std::int64_t row, std::int64_t column, float value) { store(t, row * t.strides[0] + column, value); }

}  // namespace squareq::reference
