#include "gates/g15_telemetry/g15_telemetry.hpp"

#include "gates/harness/linear_vectors.hpp"

namespace squareq::gates {

void add_g15_telemetry(Cases& cases) {
  add_linear_vectors(cases, 15);
  g15::add_guard(cases);
  g15::add_counters(cases);
  g15::add_pass_counts(cases);
}

}  // namespace squareq::gates
