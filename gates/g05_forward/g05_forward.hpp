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
void add_refused(Cases& cases);
void add_borders(Cases& cases);

}  // namespace squareq::gates::g05
