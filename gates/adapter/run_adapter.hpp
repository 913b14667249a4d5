// A run of the suite against an adapter: what run_gates() needs of it.
#pragma once

#include <functional>

#include "gates/adapter/session.hpp"
#include "gates/gates.hpp"
#include "gates/harness/subject.hpp"

namespace squareq::gates::adapter {

class AdapterRun {
 public:
  explicit AdapterRun(const GateOptions& options) : session_(options.adapter, {}) {}
  AdapterRun(const AdapterRun&) = delete;
  AdapterRun& operator=(const AdapterRun&) = delete;
  /// Asks the adapter to stop; says on stderr where it does not.
  ~AdapterRun();

  /// Starts the process. Throws Error(INTERNAL) where it does not start or describes itself wrongly: a verdict, not a wrong command line.
  Description describe();
  /// The adapter's table; after describe().
  Subject subject() { return Subject::of_table(table_); }
  /// Runs a case of at most `limit_s` seconds with a sound process, and turns the adapter's faults into its verdict.
  Verdict around(int limit_s, const std::function<Verdict()>& run_case);

 private:
  Session session_;
  const sq_implementation* table_ = nullptr;
};

}  // namespace squareq::gates::adapter
