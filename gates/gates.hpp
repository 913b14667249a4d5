// The conformance suite as a library: gates 0-15 run against any implementation of the contract. Needs no torch. spec/90-conformance.md
// defines statuses, verdicts, profiles and the report; the command `squareq gates` is a thin layer over this header.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "squareq/contract.h"

namespace squareq::gates {

struct GateOptions {
  /// Name of one of our backends (found as find_backend() does) or a path to any shared library with the contract's entry point.
  std::string backend = "cpu";
  /// A shell command line that speaks spec/95-adapter-protocol.md on stdin and stdout; empty: none. Takes the place of `backend`.
  std::string adapter;
  /// The groups of our own library that no backend file offers; used where `backend` is a name, never beside a foreign file.
  const sq_implementation* format = nullptr;
  const sq_implementation* module = nullptr;
  /// Profiles to insist on; empty: those whose groups the implementation describes.
  std::vector<std::string> profiles;
  /// ECMAScript regex searched in case ids; empty: all. A filtered run is partial and never says "conformant".
  std::string filter;
  /// Only this gate; a run of one gate is partial too.
  std::optional<int> gate;
  std::uint64_t seed = 1;
  /// false: cases run in this process (debugging); a crash then ends the run.
  bool fork = true;
  /// Seconds per case, at most; a case's own limit is used where it is shorter. 0: the case's own.
  int timeout_s = 0;
  /// "m=3,k=17": the one example that the selected property case runs, as a failure's repro line gives it; empty: its own examples.
  std::string example;
  std::filesystem::path waivers; ///< excused cases (schema/waivers.schema.json); empty: none
  std::string day;               ///< "YYYY-MM-DD", the day by which waivers expire; empty: today in UTC
  std::filesystem::path report;  ///< JSON lines; empty: none
  std::filesystem::path junit;   ///< JUnit XML; empty: none
  std::filesystem::path html;    ///< one self-contained page; empty: none
  bool json = false;             ///< the summary object on stdout instead of the table
  bool quiet = false;            ///< no line per case on stderr
};

/// Runs the selected cases, writes the reports, prints the summary. Returns 0 when every demand of the chosen profiles is met (or, in
/// a partial run, of the part that ran), else 1. Throws Error: CFG_BACKEND or CALL_VERSION (cannot be loaded), CFG_VALUE (bad regex,
/// unknown profile, a filter that selects nothing, an example for more than one case), CFG_* (a waiver file, read before anything runs),
/// IO_* (report cannot be written).
int run_gates(const GateOptions& options);

/// Writes the page of a finished run from the file that --report wrote. Throws CFG_JSON, CFG_TYPE or CFG_VALUE (the file is no such
/// report, or one without its summary) and IO_*.
void write_html_of_report(const std::filesystem::path& report, const std::filesystem::path& html);

/// `squareq gates --adapter CMD --smoke`: each rule of the adapter protocol checked with a few calls, one line per rule on stdout (or with `json` one
/// object), so that a broken adapter is told from an implementation with wrong numbers. Returns 0 when every rule is kept and the numbers are
/// right, else 1. Throws Error(IO_*) where no process can be started.
int smoke_adapter(const std::string& command, bool json);

/// Prints every case with its requirement ids: one line each, or with `json` one JSON array. Returns 0.
int list_cases(bool json);

}  // namespace squareq::gates
