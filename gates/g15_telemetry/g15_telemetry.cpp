// Gate 15: counters. Opened with the numeric guard's exact counts.
#include "gates/harness/linear_vectors.hpp"

namespace squareq::gates {

void add_g15_telemetry(Cases& cases) { add_linear_vectors(cases, 15); }

}  // namespace squareq::gates
