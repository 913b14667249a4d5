// The operations of the group "linear" that this backend offers. With run = false they check their arguments only (explain).
#pragma once

#include "squareq/contract.h"

namespace squareq::cuda {

/// Reads the verdict on the weight back before anything is written: waits for `stream` once.
void quantize(const sq_context& context, const sq_quantize_args* args, bool run);

/// Waits for `stream` once where the weight has a zero_point, which must be 0.
void dequantize(const sq_context& context, const sq_dequantize_args* args, bool run);

/// Only queues work.
void numeric_guard(const sq_context& context, const sq_numeric_guard_args* args, bool run);

extern const sq_linear_group linear_group;

}  // namespace squareq::cuda
