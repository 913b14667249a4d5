// What a run leaves: JSON lines, JUnit XML, and a table per gate on the terminal (spec/90-conformance.md, schema/gate_report.schema.json).
#pragma once

#include <iosfwd>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gates/harness/case.hpp"
#include "gates/harness/profile.hpp"

namespace squareq::gates {

struct Result {
  const Case* gate_case;
  Verdict verdict;
  std::string repro;
};

/// One demand of a profile that was not met.
struct Unmet {
  std::string profile;
  std::string case_id;
  Status status;
};

struct Run {
  std::string backend;  ///< as given; an adapter's command line where `adapter`
  bool adapter = false; ///< out of process: what only the process shows is not judged
  Description description;
  std::vector<Profile> profiles;
  std::vector<Result> results;  ///< every case of the suite; those outside a partial run are not_run
  std::vector<Unmet> unmet;
  std::vector<Unmet> not_judged;  ///< demands that cannot be seen through an adapter (SQ-ADP-050)
  std::uint64_t seed = 1;
  bool partial = false;     ///< --filter or --gate
  bool conformant = false;  ///< never true for a partial run
  bool good = false;        ///< what the exit status says
  double seconds = 0;
};

/// Decides `unmet`, `conformant` and `good` from the results.
void judge(Run& run);

nlohmann::ordered_json result_line(const Run& run, const Result& result);
nlohmann::ordered_json summary_line(const Run& run);
void write_jsonl(const Run& run, std::ostream& out);
void write_junit(const Run& run, std::ostream& out);
/// Cases per gate and status, the unmet demands, the verdict.
std::string summary_table(const Run& run);

/// `squareq gates ...` for one case, quoted for a POSIX shell; `backend` is a command line where `adapter`.
std::string repro_line(const std::string& backend, const std::string& case_id, std::uint64_t seed, bool adapter = false);

}  // namespace squareq::gates
