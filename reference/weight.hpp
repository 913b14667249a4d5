// A weight resolved from a direct reference or a lease, with every part checked.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "reference/context.hpp"

namespace squareq::reference {

/// Keeps a lease from being released while an operation reads through it. Empty for direct weights.
using Pin = std::shared_ptr<void>;

/// Format bp8_v2 (spec/30-quantization.md). Row n of the matrix is q(n)[k] * scale[n] for k < in_features; bytes past that are padding.
struct Weight {
  std::string name;
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  const std::int8_t* qweight = nullptr;
  std::int64_t row_stride = 0;
  const float* scale = nullptr;  // [out_features]
  const float* bias = nullptr;   // [out_features], or null
  Pin pin;

  const std::int8_t* q(std::int64_t row) const { return qweight + row * row_stride; }
};

/// Whether check_weight may follow pointers, or only looks at names, dtypes and shapes.
enum class Values { check, skip };

/// Checks a weight's parts. Throws CALL_NULL, CALL_VALUE, CALL_PART, CALL_DTYPE, CALL_SHAPE, CALL_DEVICE, CALL_ALIGN; DT_ZP_NONZERO.
Weight check_weight(const sq_weight& weight, Values values = Values::check);

/// Resolves a direct weight or a leased layer; exactly one must be set. Throws also CALL_STATE for a lease that is not held.
Weight resolve(sq_context& context, const sq_weight_ref* ref);

}  // namespace squareq::reference
