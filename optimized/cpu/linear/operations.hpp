// The operations of the group "linear" (contract.h). Each throws squareq::Error; nothing is written before every check has passed.
#pragma once

#include <string>

#include "optimized/cpu/context.hpp"
#include "squareq/contract.h"

namespace squareq::cpu {

void quantize(Context& context, const sq_quantize_args& args);
void dequantize(Context& context, const sq_dequantize_args& args);
void linear_forward(Context& context, const sq_linear_forward_args& args);
void linear_backward(Context& context, const sq_linear_backward_args& args);
void quantize_activation(Context& context, const sq_quantize_activation_args& args);
void numeric_guard(Context& context, const sq_numeric_guard_args& args);
void rms_norm_rope_forward(Context& context, const sq_rms_norm_rope_forward_args& args);
void rms_norm_rope_backward(Context& context, const sq_rms_norm_rope_backward_args& args);

/// The checks of an operation without its work.
void check_quantize(const sq_quantize_args& args);
void check_dequantize(Context& context, const sq_dequantize_args& args);
void check_quantize_activation(const sq_quantize_activation_args& args);
void check_guard(const sq_numeric_guard_args& args);
void check_rms_norm_rope(const sq_rms_norm_rope_forward_args& args);
void check_rms_norm_rope(const sq_rms_norm_rope_backward_args& args);

/// One JSON object: the kernel that the call would run, and why the others would not. Refuses what the operation would refuse.
std::string explain(Context& context, std::int32_t op, const void* args);

}  // namespace squareq::cpu
