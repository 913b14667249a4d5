// The vectors of fixtures/linear as gate cases: made by numpy and torch in float64, with none of our code (fixtures/linear/README.md).
#pragma once

#include "gates/harness/registry.hpp"

namespace squareq::gates {

/// Every vector whose operation belongs to `gate`: quantize and dequantize to 2, linears with a branch to 4, other linears and
/// quantize_activation and rms_norm_rope to 5, numeric_guard to 15.
void add_linear_vectors(Cases& cases, int gate);

}  // namespace squareq::gates
