// Gate 15: what a pass reports, and the numeric guard.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "gates/harness/registry.hpp"
#include "gates/harness/trial.hpp"

namespace squareq::gates::g15 {

/// The record of the session's last pass.
inline sq_step_metrics last_step(Instance& instance, std::uint64_t session) {
  auto m = sized<sq_step_metrics>();
  call_ok("last_step", {}, [&](sq_error* e) { return instance.telemetry().last_step(instance.get(), session, &m, e); });
  return m;
}

struct Counts {
  std::int64_t nans = 0, infinite = 0;
};

/// What numeric_guard adds for `x` to counters that start at (1000, 2000): they are added to, not set. `tensors` are checked as in call_ok.
Counts guarded_counts(Instance& instance, const sq_tensor& x, std::initializer_list<Guarded*> tensors);

void add_counters(Cases& cases);
void add_pass_counts(Cases& cases);
void add_guard(Cases& cases);

}  // namespace squareq::gates::g15
