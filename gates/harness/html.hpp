// The page of a run: one HTML file without any outside resource (template: gates/report/report.html), made from the lines of --report.
#pragma once

#include <filesystem>
#include <iosfwd>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace squareq::gates {

/// `lines` as report_lines() gives them: a line per case, then the summary. Everything in them is untrusted text: it reaches the page as
/// JSON in which no '<', '>' or '&' is left, or as escaped HTML.
void write_html(const std::vector<nlohmann::ordered_json>& lines, std::ostream& out);

/// Reads what --report wrote. Throws CFG_JSON (a line is no JSON object), CFG_TYPE (a field is missing or of the wrong type), CFG_VALUE
/// (no line, a summary that is absent or not last) and IO codes, each with file and line number.
std::vector<nlohmann::ordered_json> read_report(const std::filesystem::path& file);

}  // namespace squareq::gates
