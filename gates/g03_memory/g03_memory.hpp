// Gate 3: no float weight.
#pragma once

#include "gates/harness/registry.hpp"

namespace squareq::gates::g03 {

void add_module(Cases& cases);

}  // namespace squareq::gates::g03
