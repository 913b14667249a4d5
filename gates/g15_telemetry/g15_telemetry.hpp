// Gate 15: what a pass reports, and the numeric guard.
#pragma once

#include "gates/harness/registry.hpp"
#include "gates/harness/trial.hpp"

namespace squareq::gates::g15 {

void add_counters(Cases& cases);
void add_pass_counts(Cases& cases);
void add_guard(Cases& cases);

}  // namespace squareq::gates::g15
