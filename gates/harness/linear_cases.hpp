// Words that the linear gates share: shapes, dtypes, and how a case for one of them is named.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "squareq/contract.h"

namespace squareq::gates {

struct Shape {
  std::int64_t m, k, n, pack;
};

struct NamedDtype {
  std::int32_t dtype;
  const char* name;
};
inline constexpr std::array<NamedDtype, 3> activation_dtypes = {{{SQ_F32, "f32"}, {SQ_BF16, "bf16"}, {SQ_F16, "f16"}}};

struct NamedActivation {
  sq_activation activation;
  const char* name;
};
inline constexpr std::array<NamedActivation, 3> activations = {{{SQ_ACT_GELU_TANH, "gelu_tanh"}, {SQ_ACT_GELU_ERF, "gelu_erf"}, {SQ_ACT_SILU, "silu"}}};

inline std::string shape_slug(const Shape& s) {
  return "m" + std::to_string(s.m) + "k" + std::to_string(s.k) + "n" + std::to_string(s.n) + (s.pack > 1 ? "p" + std::to_string(s.pack) : "");
}

/// Largest |x| for which every partial sum of K products with |q| <= 127, plus a bias of at most 1000 units, is an integer of 24 bits
/// (facts of exactness: the sum then does not depend on its order).
inline std::int64_t exact_limit(std::int64_t k, std::int32_t dtype) {
  const std::int64_t limit = ((1 << 24) - 1000) / (127 * k);
  const std::int64_t representable = dtype == SQ_BF16 ? 256 : 1024;  // consecutive integers that the dtype holds
  return limit < representable ? limit : representable;
}

}  // namespace squareq::gates
