// 16-bit floats against their definitions, over every bit pattern.
#include "squareq/training/data/float_convert.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace squareq::training {
namespace {

/// (-1)^s (1 + f / 2^m) 2^(e - bias) in double, from the IEEE layout.
double value_of(std::uint16_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1), fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) return fraction ? std::nan("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

template <class Decode, class Encode>
void every_pattern(Decode decode, Encode encode, int exponent_bits, int fraction_bits) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const double exact = value_of(static_cast<std::uint16_t>(bits), exponent_bits, fraction_bits);
    const float decoded = decode(static_cast<std::uint16_t>(bits));
    if (std::isnan(exact)) {
      ASSERT_TRUE(std::isnan(decoded)) << bits;
      ASSERT_TRUE(std::isnan(decode(encode(decoded)))) << bits;
      continue;
    }
    ASSERT_EQ(decoded, exact) << bits;
    ASSERT_EQ(std::signbit(decoded), std::signbit(exact)) << bits;
    ASSERT_EQ(encode(decoded), bits);
    // Between this number and the next of the same sign: nearest, ties to the even pattern.
    const double next = value_of(static_cast<std::uint16_t>(bits + 1), exponent_bits, fraction_bits);
    if (bits == 0x7FFF || bits == 0xFFFF || !std::isfinite(exact) || !std::isfinite(next)) continue;
    const double middle = (exact + next) / 2;
    ASSERT_EQ(encode(static_cast<float>(middle)), bits & 1 ? bits + 1 : bits);
    ASSERT_EQ(encode(std::nextafter(static_cast<float>(middle), static_cast<float>(exact))), bits);
    ASSERT_EQ(encode(std::nextafter(static_cast<float>(middle), static_cast<float>(next))), bits + 1);
  }
}

TEST(FloatConvert, EveryF16) { every_pattern(float_from_f16, f16_from_float, 5, 10); }
TEST(FloatConvert, EveryBf16) { every_pattern(float_from_bf16, bf16_from_float, 8, 7); }

TEST(FloatConvert, OverflowOfF16IsInfinity) {
  EXPECT_EQ(f16_from_float(65519.0f), 0x7BFF);
  EXPECT_EQ(f16_from_float(65520.0f), 0x7C00);
  EXPECT_EQ(f16_from_float(-1e30f), 0xFC00);
  EXPECT_EQ(f16_from_float(1e-9f), 0);
}

}  // namespace
}  // namespace squareq::training
