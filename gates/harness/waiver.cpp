#include "gates/harness/waiver.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "gates/harness/registry.hpp"
#include "squareq/error.hpp"
#include "squareq/text.hpp"

namespace squareq::gates {
namespace {

using nlohmann::json;

/// The parser keeps the last of two equal keys and takes a NUL for the end of its input; neither may go unnoticed in a file that excuses
/// failures.
json parse_strictly(const std::string& text, const std::string& name) {
  if (text.find('\0') != std::string::npos) throw Error(Code::CFG_JSON, name + ": holds a NUL byte", name);
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > 8) throw Error(Code::CFG_JSON, name + ": nests deeper than a list of waivers does", name);
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get_ref<const std::string&>()).second)
      throw Error(Code::CFG_KEY,
                  fmt::format("{}: key '{}' stands twice in one object", name, printable(value.get_ref<const std::string&>())), name);
    return true;
  };
  try {
    return json::parse(text, watch);
  } catch (const json::parse_error& e) {
    throw Error(Code::CFG_JSON, fmt::format("{}: not valid JSON at byte {}", name, e.byte), name);
  } catch (const json::exception&) {
    throw Error(Code::CFG_JSON, name + ": holds a number outside the range of a double", name);
  }
}

std::string text_of(const json& object, const char* key, const std::string& where, bool required) {
  const auto found = object.find(key);
  if (found == object.end()) {
    if (required) throw Error(Code::CFG_TYPE, where + ": '" + key + "' is missing");
    return {};
  }
  if (!found->is_string()) throw Error(Code::CFG_TYPE, fmt::format("{}: '{}' is a {}, expected a string", where, key, found->type_name()));
  const std::string text = found->get<std::string>();
  if (text.find_first_not_of(" \t\r\n") == std::string::npos) throw Error(Code::CFG_VALUE, where + ": '" + key + "' is empty");
  return text;
}

Waiver parse_waiver(const json& object, const std::string& where) {
  if (!object.is_object()) throw Error(Code::CFG_TYPE, fmt::format("{}: is a {}, expected an object", where, object.type_name()));
  for (const auto& [key, value] : object.items())
    if (key != "case" && key != "reason" && key != "expires" && key != "issue")
      throw Error(Code::CFG_KEY, fmt::format("{}: unknown key '{}'; known: case, reason, expires, issue", where, printable(key)));
  Waiver w;
  w.case_id = text_of(object, "case", where, true);
  w.reason = text_of(object, "reason", where, true);
  w.issue = text_of(object, "issue", where, false);
  const std::string expires = text_of(object, "expires", where, true);
  const auto day = parse_day(expires);
  if (!day) throw Error(Code::CFG_VALUE, fmt::format("{}: expires is '{}', expected a day YYYY-MM-DD", where, printable(expires)));
  w.expires = *day;
  if (std::none_of(all_cases().begin(), all_cases().end(), [&](const Case& c) { return c.id == w.case_id; }))
    throw Error(Code::CFG_VALUE, fmt::format("{}: no gate case is called '{}'", where, printable(w.case_id)));
  return w;
}

bool excusable(Status s) {
  return s == Status::fail || s == Status::mistrusted || s == Status::crash || s == Status::timeout || s == Status::not_supported;
}

}  // namespace

std::string_view name_of(WaiverOutcome::State state) {
  switch (state) {
    case WaiverOutcome::State::applied: return "applied";
    case WaiverOutcome::State::expired: return "expired";
    case WaiverOutcome::State::unneeded: return "unneeded";
    case WaiverOutcome::State::idle: return "idle";
  }
  return "idle";
}

std::optional<std::chrono::year_month_day> parse_day(std::string_view text) {
  if (text.size() != 10 || text[4] != '-' || text[7] != '-') return std::nullopt;
  const auto number = [text](std::size_t from, std::size_t digits) {
    int value = 0;
    for (const char c : text.substr(from, digits)) value = c >= '0' && c <= '9' && value >= 0 ? value * 10 + (c - '0') : -1;
    return value;
  };
  const int year = number(0, 4), month = number(5, 2), day = number(8, 2);
  if (year < 0 || month < 0 || day < 0) return std::nullopt;
  const std::chrono::year_month_day parsed{std::chrono::year(year), std::chrono::month(static_cast<unsigned>(month)),
                                           std::chrono::day(static_cast<unsigned>(day))};
  return parsed.ok() ? std::optional(parsed) : std::nullopt;
}

std::string day_text(std::chrono::year_month_day day) {
  return fmt::format("{:04}-{:02}-{:02}", static_cast<int>(day.year()), static_cast<unsigned>(day.month()),
                     static_cast<unsigned>(day.day()));
}

std::chrono::year_month_day today() { return std::chrono::floor<std::chrono::days>(std::chrono::system_clock::now()); }

std::vector<Waiver> parse_waivers(const std::string& text, const std::string& name) {
  const json root = parse_strictly(text, name);
  if (!root.is_array()) throw Error(Code::CFG_TYPE, fmt::format("{}: is a {}, expected a list of waivers", name, root.type_name()), name);
  std::vector<Waiver> waivers;
  std::set<std::string> seen;
  for (std::size_t i = 0; i < root.size(); ++i) {
    const std::string where = fmt::format("{}: waiver {}", name, i + 1);
    waivers.push_back(parse_waiver(root[i], where));
    if (!seen.insert(waivers.back().case_id).second)
      throw Error(Code::CFG_VALUE, fmt::format("{}: '{}' is waived a second time", where, waivers.back().case_id));
  }
  return waivers;
}

std::vector<Waiver> read_waivers(const std::filesystem::path& file) {
  const std::string name = printable(file.string());
  std::ifstream in(file, std::ios::binary);
  const int error = errno;
  std::error_code ignored;
  if (!in || !std::filesystem::is_regular_file(file, ignored))
    throw Error(in ? Code::IO_NOT_REGULAR : Code::IO_MISSING,
                "cannot read the waivers '" + name + "': " + (in ? "not a regular file" : std::strerror(error)), name);
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (in.bad()) throw Error(Code::IO_ERROR, "cannot read the waivers '" + name + "'", name);
  return parse_waivers(text, name);
}

std::optional<Waived> Waivers::excuse(const std::string& case_id, Verdict& verdict) const {
  if (!excusable(verdict.status)) return std::nullopt;
  for (const Waiver& w : waivers_) {
    if (w.case_id != case_id || expired(w)) continue;
    const Status before = verdict.status;
    verdict.status = Status::waived;
    verdict.message = fmt::format("waived until {}: {}{} ({}: {})", day_text(w.expires), w.reason, w.issue.empty() ? "" : ", " + w.issue,
                                  name_of(before), verdict.message);
    return Waived{w, before};
  }
  return std::nullopt;
}

WaiverOutcome Waivers::outcome(const Waiver& waiver, Status status) const {
  using State = WaiverOutcome::State;
  if (expired(waiver)) return {waiver, State::expired};
  if (status == Status::waived) return {waiver, State::applied};
  return {waiver, status == Status::pass ? State::unneeded : State::idle};
}

}  // namespace squareq::gates
