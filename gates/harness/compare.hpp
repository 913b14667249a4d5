// The one comparison: shape was fixed by the call, then NaN and infinity agreement, then error against bound, then trust.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "gates/harness/trial.hpp"

namespace squareq::gates {

/// Expected values and the error each may have; a bound of 0 demands equality.
struct Expected {
  std::vector<double> value;
  std::vector<double> bound;

  void add(double v, double b) {
    value.push_back(v);
    bound.push_back(b);
  }
};

/// Compares and records the margin with the trial. Fails at the worst element; mistrusts a result of which more than 30 % (of at least
/// 10 elements) are zero although the expectation is not.
void compare(Trial& trial, const Guarded& actual, const Expected& expected);
/// The same without a trial: returns the margin. For the harness's own tests.
double compare(const std::string& name, std::span<const double> actual, const Expected& expected);

/// Every bit the same, element by element; a difference names the first element. 0.0 and -0.0 differ.
void same_bits(const std::string& what, const Guarded& a, const Guarded& b);
void same_bytes(const std::string& what, std::span<const std::byte> a, std::span<const std::byte> b);

}  // namespace squareq::gates
