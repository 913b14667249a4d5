#include "squareq/slab/report.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "squareq/slab/limits.hpp"
#include "squareq/text.hpp"

namespace squareq {

std::string_view public_code_name(Code code) {
  switch (code) {
    case Code::MF_ORPHAN_OTHER: return code_name(Code::MF_ORPHAN);
    case Code::DT_SCALE_FP16: return code_name(Code::DT_SCALE_RANGE);
    default: return code_name(code);
  }
}

void Report::add(Problem problem) {
  const bool warning = code_class(problem.code) == CodeClass::WARNING;
  auto& list = warning ? warnings : problems;
  if (list.size() < limits::problems) list.push_back(std::move(problem));
  else ++(warning ? warnings_left_out : problems_left_out);
}

void Report::add(Code code, std::string message, std::string file, std::string layer, std::string tensor) {
  add(Problem{code, std::move(message), std::move(file), std::move(layer), std::move(tensor)});
}

void Report::append(Report other) {
  problems_left_out += other.problems_left_out;
  warnings_left_out += other.warnings_left_out;
  for (Problem& p : other.problems) add(std::move(p));
  for (Problem& p : other.warnings) add(std::move(p));
}

bool Report::has(Code code) const {
  const auto is = [&](const Problem& p) { return p.code == code; };
  return std::any_of(problems.begin(), problems.end(), is) || std::any_of(warnings.begin(), warnings.end(), is);
}

int Report::exit_status() const {
  int status = 0;
  for (const Problem& p : problems) status = std::max(status, squareq::exit_status(p.code));
  return status;
}

void Report::throw_first() const {
  if (problems.empty()) return;
  Problem first = problems.front();
  const std::uint64_t more = problems.size() - 1 + problems_left_out;
  if (more > 0) first.message += " (and " + std::to_string(more) + " more problem" + (more > 1 ? "s" : "") + "; `squareq verify` lists them)";
  throw Error(std::move(first));
}

std::string in_quotes(std::string_view name) { return "'" + printable(name) + "'"; }

nlohmann::ordered_json problem_json(const Problem& problem) {
  const auto text_or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(printable(text, 1024));
  };
  nlohmann::ordered_json object;
  object["code"] = public_code_name(problem.code);
  object["message"] = printable(problem.message, 2048);
  object["file"] = text_or_null(problem.file);
  object["layer"] = text_or_null(problem.layer);
  object["tensor"] = text_or_null(problem.tensor);
  return object;
}

nlohmann::ordered_json report_json(const Report& report) {
  nlohmann::ordered_json object;
  object["ok"] = report.ok();
  object["problems"] = nlohmann::ordered_json::array();
  for (const Problem& p : report.problems) object["problems"].push_back(problem_json(p));
  object["warnings"] = nlohmann::ordered_json::array();
  for (const Problem& p : report.warnings) object["warnings"].push_back(problem_json(p));
  if (report.problems_left_out) object["problems_left_out"] = report.problems_left_out;
  if (report.warnings_left_out) object["warnings_left_out"] = report.warnings_left_out;
  return object;
}

}  // namespace squareq
