// The operations of the group "linear" that this backend offers. With run = false they check their arguments only (explain).
#pragma once

#include "optimized/cuda/linear/kernel_table.hpp"
#include "squareq/contract.h"

namespace squareq::cuda {

/// Reads the verdict on the weight back before anything is written: waits for `stream` once.
void quantize(const sq_context& context, const sq_quantize_args* args, bool run);

/// The operations on a weight wait for `stream` once where it has a zero_point, which must be 0; without one they only queue work.
void dequantize(const sq_context& context, const sq_dequantize_args* args, bool run);

/// Return the kernel that multiplies by the weight.
KernelChoice linear_forward(const sq_context& context, const sq_linear_forward_args* args, bool run);
KernelChoice linear_backward(const sq_context& context, const sq_linear_backward_args* args, bool run);

/// These only queue work.
void quantize_activation(const sq_context& context, const sq_quantize_activation_args* args, bool run);
void numeric_guard(const sq_context& context, const sq_numeric_guard_args* args, bool run);
void rms_norm_rope_forward(const sq_context& context, const sq_rms_norm_rope_forward_args* args, bool run);
void rms_norm_rope_backward(const sq_context& context, const sq_rms_norm_rope_backward_args* args, bool run);

extern const sq_linear_group linear_group;

}  // namespace squareq::cuda
