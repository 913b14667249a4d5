// The float formats of a checkpoint, widened to fp32 exactly (F64: rounded to nearest even), for what is not arithmetic of a weight:
// biases, and finding the element that a backend refused.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "squareq/slab/dtype.hpp"

namespace squareq {

inline float float_of_half(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // subnormal or zero: exact
  return sign ? -magnitude : magnitude;
}

/// Element `index` of an array of F64, F32, F16 or BF16.
inline float load_float(const void* data, FileDtype dtype, std::uint64_t index) {
  const auto get = [&]<class T>(T) {
    T value;
    std::memcpy(&value, static_cast<const std::byte*>(data) + index * sizeof(T), sizeof(T));
    return value;
  };
  switch (dtype) {
    case FileDtype::F64: return static_cast<float>(get(double{}));
    case FileDtype::F16: return float_of_half(get(std::uint16_t{}));
    case FileDtype::BF16: return std::bit_cast<float>(static_cast<std::uint32_t>(get(std::uint16_t{})) << 16);
    default: return get(float{});
  }
}

}  // namespace squareq
