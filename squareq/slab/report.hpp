// What a check found: every problem and warning of a file or pair, most structural first, capped.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/error.hpp"

namespace squareq {

/// The code's name as users see it. Two warnings share their error's name: MF_ORPHAN_OTHER prints as MF_ORPHAN,
/// DT_SCALE_FP16 as DT_SCALE_RANGE.
std::string_view public_code_name(Code code);

/// Problems (which make the file bad) and warnings (which do not), each at most limits::problems. Not thread-safe.
struct Report {
  std::vector<Problem> problems;
  std::vector<Problem> warnings;
  std::uint64_t problems_left_out = 0;  ///< found beyond the cap
  std::uint64_t warnings_left_out = 0;

  bool ok() const { return problems.empty(); }
  /// Files the finding under the list that its code's class asks for.
  void add(Code code, std::string message, std::string file = {}, std::string layer = {}, std::string tensor = {});
  void add(Problem problem);
  void append(Report other);
  bool has(Code code) const;  ///< in either list
  /// 0 without problems; 3 with one of class SYSTEM (I/O, memory); else 1.
  int exit_status() const;
  /// Throws Error with the first problem, if there is one; the message says how many more there are.
  void throw_first() const;
};

/// A name from a file, escaped and between quotes, for messages.
std::string in_quotes(std::string_view name);

/// {"code", "message", "file", "layer", "tensor"}; null where empty. Texts are escaped for printing.
nlohmann::ordered_json problem_json(const Problem& problem);

/// {"ok", "problems": [...], "warnings": [...]} and, beyond the cap, "problems_left_out" / "warnings_left_out".
nlohmann::ordered_json report_json(const Report& report);

}  // namespace squareq
