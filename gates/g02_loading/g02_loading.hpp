// Gate 2: numbers into the slab and out of it again: quantize, dequantize, load, round trip.
#pragma once

#include "gates/harness/registry.hpp"

namespace squareq::gates::g02 {

void add_quantize(Cases& cases);
void add_dequantize(Cases& cases);
void add_lease(Cases& cases);
void add_module(Cases& cases);

}  // namespace squareq::gates::g02
