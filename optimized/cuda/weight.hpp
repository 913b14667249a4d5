// A weight of format bp8_v2 after its checks.
#pragma once

#include <cstdint>
#include <string>

#include "optimized/cuda/context.hpp"
#include "squareq/contract.h"

namespace squareq::cuda {

/// W = diag(scale) q: q I8 [out, >= in], rows `stride` bytes apart; scale F32 [out]; bias and zero_point F32 [out] or null. Device memory.
struct Weight {
  std::string name;
  std::int64_t out = 0;
  std::int64_t in = 0;
  const std::int8_t* q = nullptr;
  std::int64_t stride = 0;
  const float* scale = nullptr;
  const float* bias = nullptr;
  const float* zero_point = nullptr;
};

/// Looks at names, dtypes, shapes and places only. Throws CALL_NULL, CALL_VALUE, CALL_PART, CALL_DTYPE, CALL_SHAPE, CALL_DEVICE, CALL_ALIGN,
/// CALL_UNSUPPORTED.
Weight resolve_weight(const sq_context& context, const sq_weight_ref* ref);

/// Throws DT_ZP_NONZERO where the weight has a zero_point that is not 0 in every row; waits for `stream` once where it has one at all.
void check_zero_point(const sq_context& context, const Weight& weight, cudaStream_t stream);

}  // namespace squareq::cuda
