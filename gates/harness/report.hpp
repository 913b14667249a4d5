// What a run leaves: JSON lines, JUnit XML, and a table per gate on the terminal (spec/90-conformance.md, schema/gate_report.schema.json).
// The page is html.hpp's, made from the same lines.
#pragma once

#include <iosfwd>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gates/harness/case.hpp"
#include "gates/harness/profile.hpp"
#include "gates/harness/waiver.hpp"

namespace squareq::gates {

struct Result {
  const Case* gate_case;
  Verdict verdict;
  std::string repro;
  std::optional<Waived> waived = {};
};

/// One demand of a profile that was not met.
struct Unmet {
  std::string profile;
  std::string case_id;  ///< or "describe offers NEED"
  Status status;
};

struct Run {
  std::string backend;  ///< as given; an adapter's command line where `adapter`
  bool adapter = false; ///< out of process: what only the process shows is not judged
  Description description;
  std::vector<Profile> profiles;
  std::vector<Result> results;  ///< every case of the suite; those outside a partial run are not_run
  std::vector<Unmet> unmet;
  std::vector<WaiverOutcome> waivers;  ///< of every waiver that was given
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
/// One line per case, then the summary.
std::vector<nlohmann::ordered_json> report_lines(const Run& run);
void write_jsonl(const Run& run, std::ostream& out);
void write_junit(const Run& run, std::ostream& out);
/// Cases per gate and status, the unmet demands, the verdict.
std::string summary_table(const Run& run);

/// The verdict of a run in plain words, from its summary line: what was found, why that is not enough, what was excused.
std::string verdict_sentence(const nlohmann::ordered_json& summary);

/// `squareq gates ...` for one case (and one example of a property), quoted for a POSIX shell; `backend` is a command line where `adapter`.
std::string repro_line(const std::string& backend, const std::string& case_id, std::uint64_t seed, bool adapter = false,
                       const std::string& example = {});

}  // namespace squareq::gates
