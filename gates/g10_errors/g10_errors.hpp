// Gate 10: every promise about refusals. The code is that of the fault, the message names the thing and both values, nothing changes.
#pragma once

#include "gates/harness/registry.hpp"
#include "gates/harness/trial.hpp"

namespace squareq::gates::g10 {

void add_linear(Cases& cases);
void add_operations(Cases& cases);
void add_structs(Cases& cases);
void add_files(Cases& cases);

}  // namespace squareq::gates::g10
