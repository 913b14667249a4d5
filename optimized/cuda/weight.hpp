// A weight of format bp8_v2 after its checks, given directly or through a lease: what every operation that reads a weight starts with.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "optimized/cuda/context.hpp"
#include "squareq/contract.h"

namespace squareq::cuda {

/// W = diag(scale) q, on the device: q I8 [out, >= in] with rows `stride` bytes apart, scale F32 [out], bias F32 [out] or null.
struct Weight {
  std::string name;
  std::int64_t out = 0;
  std::int64_t in = 0;
  const std::int8_t* q = nullptr;
  std::int64_t stride = 0;
  const float* scale = nullptr;
  const float* bias = nullptr;
  const float* zero_point = nullptr;  // of a weight given directly: still to be checked on the device; a leased one was when it was read
  std::shared_ptr<void> hold;         // keeps the lease's slot from being reused while the call queues its work
};

/// Looks at the arguments only. `stream` is the one on which the operation will read the weight. Throws CALL_NULL, CALL_VALUE (weight and
/// lease both or neither given), CALL_UNSUPPORTED (format), CALL_PART, CALL_SHAPE, CALL_DTYPE, CALL_DEVICE, CALL_ALIGN, CALL_STATE (lease)
/// or, for a lease, DT_ZP_NONZERO. The reference must stay as long as the result.
Weight resolve_weight(const sq_context& context, const sq_weight_ref* ref, cudaStream_t stream = nullptr);

/// Waits for `stream` once where the weight was given directly and has a zero_point. Throws DT_ZP_NONZERO.
void check_zero_point(const sq_context& context, const Weight& weight, cudaStream_t stream);

}  // namespace squareq::cuda
