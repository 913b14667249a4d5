// The bounds of spec/35-numerics.md under the suite's own namespace.
#pragma once

#include "squareq/bounds.hpp"

namespace squareq::gates {

using namespace squareq::bounds;

}  // namespace squareq::gates
