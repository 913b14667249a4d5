// Gate 5: forward and input gradient of a quantized linear layer.
#pragma once

#include "gates/harness/linear.hpp"
#include "gates/harness/linear_cases.hpp"
#include "gates/harness/registry.hpp"

namespace squareq::gates::g05 {

void add_exact(Cases& cases);
void add_generic(Cases& cases);
void add_contract(Cases& cases);
void add_numbers(Cases& cases);
void add_int8(Cases& cases);
void add_refused_given(Cases& cases);
void add_quantize_activation(Cases& cases);
void add_rms_norm_rope(Cases& cases);
void add_refused_backward(Cases& cases);
void add_refused_weights(Cases& cases);
void add_guard_borders(Cases& cases);
void add_create(Cases& cases);
void add_explain(Cases& cases);
void add_borders(Cases& cases);

}  // namespace squareq::gates::g05
