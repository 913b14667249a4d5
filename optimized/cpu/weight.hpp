// A weight of format bp8_v2 after its checks, given directly or through a lease.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "optimized/cpu/context.hpp"

namespace squareq::cpu {

/// W = diag(scale) q: q I8 [out, >= in] rows `stride` apart, scale F32 [out], bias F32 [out] or null.
struct Weight {
  std::string name;
  std::int64_t out = 0;
  std::int64_t in = 0;
  const std::int8_t* q = nullptr;
  std::int64_t stride = 0;
  const float* scale = nullptr;
  const float* bias = nullptr;
  std::shared_ptr<void> hold;  // keeps the lease's slot from being reused while the call runs
};

/// Throws CALL_NULL, CALL_VALUE (weight and lease both or neither given), CALL_UNSUPPORTED (format), CALL_PART, CALL_SHAPE, CALL_DTYPE,
/// CALL_STATE (lease) or DT_ZP_NONZERO.
Weight resolve_weight(Context& context, const sq_weight_ref* ref);

/// The checks of a weight that need no byte of its parts: names, dtypes, shapes. Throws as resolve_weight.
void check_weight_table(const sq_weight& weight);

}  // namespace squareq::cpu
