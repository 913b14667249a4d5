// Checked 64-bit arithmetic for numbers that came out of a file: no wrap, no signed compare, no double.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace squareq {

inline std::optional<std::uint64_t> checked_add(std::uint64_t a, std::uint64_t b) {
  std::uint64_t r = 0;
  if (__builtin_add_overflow(a, b, &r)) return std::nullopt;
  return r;
}

inline std::optional<std::uint64_t> checked_mul(std::uint64_t a, std::uint64_t b) {
  std::uint64_t r = 0;
  if (__builtin_mul_overflow(a, b, &r)) return std::nullopt;
  return r;
}

/// Smallest multiple of `unit` (>= 1) that is >= value.
inline std::optional<std::uint64_t> checked_round_up(std::uint64_t value, std::uint64_t unit) {
  return checked_mul(value / unit + (value % unit != 0), unit);
}

/// What a dtype of `bits` and a shape occupy. `overflow`: the product of the non-zero dims, or that times bits, exceeds 64 bits;
/// the verdict does not depend on the order of the dims. `whole`: the bits fill whole bytes.
struct TensorExtent {
  bool overflow = false;
  bool whole = true;
  std::uint64_t bytes = 0;
};

inline TensorExtent tensor_extent(std::span<const std::uint64_t> shape, std::uint32_t bits) {
  std::optional<std::uint64_t> product = 1;
  bool empty = false;
  for (const std::uint64_t dim : shape) {
    if (dim == 0) empty = true;
    else if (product) product = checked_mul(*product, dim);
  }
  if (product) product = checked_mul(*product, bits);
  if (!product) return {true, true, 0};
  if (empty) return {};
  return {false, *product % 8 == 0, *product / 8};
}

}  // namespace squareq
