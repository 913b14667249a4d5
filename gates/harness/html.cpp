#include "gates/harness/html.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <ostream>

#include "gates/gates.hpp"
#include "gates/harness/embedded.hpp"
#include "gates/harness/registry.hpp"
#include "gates/harness/report.hpp"
#include "squareq/error.hpp"
#include "squareq/text.hpp"

namespace squareq::gates {
namespace {

using nlohmann::ordered_json;

std::string escaped_html(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

/// JSON that cannot end the <script> element it stands in: ASCII only, and the three characters that HTML looks for spelled \u00XX.
std::string script_json(const ordered_json& value) {
  std::string out;
  for (const char c : value.dump(-1, ' ', true, ordered_json::error_handler_t::replace)) {
    if (c == '<' || c == '>' || c == '&')
      out += fmt::format("\\u{:04x}", static_cast<int>(c));
    else
      out += c;
  }
  return out;
}

[[noreturn]] void bad_line(Code code, const std::filesystem::path& file, std::size_t line, const std::string& what) {
  const std::string name = printable(file.string());
  throw Error(code, fmt::format("{}: line {}: {}", name, line, what), name);
}

struct Field {
  const char* name;
  bool (ordered_json::*is)() const noexcept;
  const char* type;
};

template <std::size_t N>
void check_fields(const ordered_json& object, const Field (&fields)[N], const std::filesystem::path& file, std::size_t line) {
  for (const Field& f : fields) {
    const auto found = object.find(f.name);
    if (found == object.end()) bad_line(Code::CFG_TYPE, file, line, fmt::format("'{}' is missing", f.name));
    if (!((*found).*f.is)())
      bad_line(Code::CFG_TYPE, file, line, fmt::format("'{}' is a {}, expected a {}", f.name, found->type_name(), f.type));
  }
}

constexpr Field case_fields[] = {{"gate", &ordered_json::is_number_integer, "number"},
                                 {"case", &ordered_json::is_string, "string"},
                                 {"requirement", &ordered_json::is_string, "string"},
                                 {"status", &ordered_json::is_string, "string"},
                                 {"repro", &ordered_json::is_string, "string"}};
constexpr Field summary_fields[] = {
    {"backend", &ordered_json::is_string, "string"},   {"implementation", &ordered_json::is_string, "string"},
    {"version", &ordered_json::is_string, "string"},   {"profiles", &ordered_json::is_array, "list"},
    {"partial", &ordered_json::is_boolean, "boolean"}, {"conformant", &ordered_json::is_boolean, "boolean"},
    {"good", &ordered_json::is_boolean, "boolean"},    {"counts", &ordered_json::is_object, "object"},
    {"unmet", &ordered_json::is_array, "list"},        {"seed", &ordered_json::is_number_integer, "number"},
    {"seconds", &ordered_json::is_number, "number"}};

void check_waiver(const ordered_json& waiver, const char* word, const std::filesystem::path& file, std::size_t line) {
  for (const char* key : {"case", "reason", "expires", word})
    if (!waiver.is_object() || !waiver.contains(key) || !waiver[key].is_string())
      bad_line(Code::CFG_TYPE, file, line, fmt::format("a waiver has no string '{}'", key));
  if (waiver.contains("issue") && !waiver["issue"].is_string()) bad_line(Code::CFG_TYPE, file, line, "a waiver's 'issue' is no string");
}

void check_case(const ordered_json& object, const std::filesystem::path& file, std::size_t line) {
  check_fields(object, case_fields, file, line);
  const std::string status = object["status"].get<std::string>();
  if (!status_of(status)) bad_line(Code::CFG_VALUE, file, line, "unknown status '" + printable(status) + "'");
  if (!object.contains("margin") || !(object["margin"].is_null() || object["margin"].is_number()))
    bad_line(Code::CFG_TYPE, file, line, "'margin' is neither a number nor null");
  for (const char* key : {"kind", "hunts", "message"})
    if (object.contains(key) && !object[key].is_string())
      bad_line(Code::CFG_TYPE, file, line, fmt::format("'{}' is a {}, expected a string", key, object[key].type_name()));
  if (object.contains("requirements"))
    for (const ordered_json& r : object["requirements"].is_array() ? object["requirements"] : ordered_json{nullptr})
      if (!r.is_string()) bad_line(Code::CFG_TYPE, file, line, "'requirements' holds something that is no string");
  if (object.contains("seconds") && !object["seconds"].is_number()) bad_line(Code::CFG_TYPE, file, line, "'seconds' is no number");
  if (object.contains("waiver")) check_waiver(object["waiver"], "instead_of", file, line);
}

void check_summary(const ordered_json& object, const std::filesystem::path& file, std::size_t line) {
  check_fields(object, summary_fields, file, line);
  for (const ordered_json& p : object["profiles"])
    if (!p.is_string()) bad_line(Code::CFG_TYPE, file, line, "'profiles' holds something that is no string");
  for (const ordered_json& u : object["unmet"])
    for (const char* key : {"profile", "case", "status"})
      if (!u.is_object() || !u.contains(key) || !u[key].is_string())
        bad_line(Code::CFG_TYPE, file, line, fmt::format("an unmet demand has no string '{}'", key));
  if (object.contains("waivers"))
    for (const ordered_json& w : object["waivers"].is_array() ? object["waivers"] : ordered_json{nullptr})
      check_waiver(w, "state", file, line);
  for (const auto& [status, count] : object["counts"].items())
    if (!status_of(status) || !count.is_number_integer())
      bad_line(Code::CFG_TYPE, file, line, "'counts' holds something other than a number per status");
}

}  // namespace

void write_html(const std::vector<ordered_json>& lines, std::ostream& out) {
  const ordered_json& summary = lines.back();
  ordered_json gates = ordered_json::object();
  ordered_json cases = ordered_json::array();
  for (std::size_t i = 0; i + 1 < lines.size(); ++i) {
    cases.push_back(lines[i]);
    const int gate = lines[i]["gate"].get<int>();
    gates[std::to_string(gate)] = gate_subject(gate);
  }
  const std::string sentence = verdict_sentence(summary);
  const std::string verdict = summary["conformant"].get<bool>() ? "conformant" : !summary["good"].get<bool>() ? "bad" : "partial";
  const ordered_json data = {{"summary", summary}, {"gates", gates}, {"cases", cases}};
  const std::pair<std::string_view, std::string> places[] = {
      {"@TITLE@", escaped_html(fmt::format("{} {}", printable(summary["implementation"].get<std::string>()),
                                           printable(summary["version"].get<std::string>())))},
      {"@VERDICT@", verdict},
      {"@SENTENCE@", escaped_html(printable(sentence, 2000))},
      {"@DATA@", script_json(data)}};
  // One pass over the template, so that nothing inserted is ever taken for a place itself.
  const std::string_view page = embedded("report/report.html");
  for (std::size_t at = 0; at < page.size();) {
    std::size_t next = page.size();
    const std::pair<std::string_view, std::string>* place = nullptr;
    for (const auto& p : places)
      if (const std::size_t found = page.find(p.first, at); found < next) {
        next = found;
        place = &p;
      }
    out << page.substr(at, next - at);
    at = next;
    if (!place) break;
    out << place->second;
    at += place->first.size();
  }
}

std::vector<ordered_json> read_report(const std::filesystem::path& file) {
  const std::string name = printable(file.string());
  std::ifstream in(file, std::ios::binary);
  if (!in) throw Error(Code::IO_MISSING, "cannot read '" + name + "': " + std::strerror(errno), name);
  std::vector<ordered_json> lines;
  std::size_t number = 0;
  for (std::string text; std::getline(in, text);) {
    ++number;
    if (text.empty()) continue;
    if (!lines.empty() && lines.back().contains("summary"))
      bad_line(Code::CFG_VALUE, file, number, "follows the summary, which is the last line of a report");
    ordered_json object = ordered_json::parse(text, nullptr, false);
    if (!object.is_object()) bad_line(Code::CFG_JSON, file, number, "is no JSON object: is this a file of squareq gates --report?");
    if (object.contains("summary"))
      check_summary(object, file, number);
    else
      check_case(object, file, number);
    lines.push_back(std::move(object));
  }
  if (in.bad()) throw Error(Code::IO_ERROR, "cannot read '" + name + "'", name);
  if (lines.empty() || !lines.back().contains("summary"))
    throw Error(Code::CFG_VALUE, name + ": has no summary line; the run that wrote it did not finish", name);
  return lines;
}

void write_html_of_report(const std::filesystem::path& report, const std::filesystem::path& html) {
  const std::vector<ordered_json> lines = read_report(report);
  std::ofstream out(html, std::ios::binary);
  if (out) write_html(lines, out);
  out.close();
  if (!out) throw Error(Code::IO_ERROR, "cannot write '" + printable(html.string()) + "': " + std::strerror(errno), html.string());
}

}  // namespace squareq::gates
