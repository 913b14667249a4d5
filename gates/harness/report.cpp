#include "gates/harness/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <ostream>
#include <set>

#include "gates/harness/registry.hpp"
#include "squareq/text.hpp"

namespace squareq::gates {
namespace {

using nlohmann::ordered_json;

/// A verdict that a case which ran may have and still be fine.
bool acceptable(Status status) { return status == Status::pass || status == Status::waived; }

bool bad(Status status) { return status == Status::fail || status == Status::mistrusted || status == Status::crash || status == Status::timeout; }

std::string quote(const std::string& word) {
  static const std::string safe = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-./:,+@%=";
  if (!word.empty() && word.find_first_not_of(safe) == std::string::npos) return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string xml(const std::string& text) {
  std::string out;
  for (const char c : printable(text, 4000)) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& w : words) out += (out.empty() ? "" : " ") + w;
  return out;
}

std::map<Status, int> count(const Run& run, int gate) {
  std::map<Status, int> counts;
  for (const Result& r : run.results)
    if (gate < 0 || r.gate_case->gate == gate) ++counts[r.verdict.status];
  return counts;
}

ordered_json waiver_json(const Waiver& w) {
  ordered_json object = {{"case", w.case_id}, {"reason", printable(w.reason, 1000)}, {"expires", day_text(w.expires)}};
  if (!w.issue.empty()) object["issue"] = printable(w.issue, 1000);
  return object;
}

ordered_json margin_json(const Verdict& v) {
  if (!v.margin) return nullptr;
  return std::isfinite(*v.margin) ? ordered_json(*v.margin) : ordered_json(1e308);
}

}  // namespace

void judge(Run& run) {
  std::map<std::string, Status> status;
  std::set<std::string> unseen;  // through an adapter
  int ran = 0;
  bool all_acceptable = true;
  for (const Result& r : run.results) {
    status[r.gate_case->id] = r.verdict.status;
    if (r.verdict.status == Status::pass) ++ran;
    if (bad(r.verdict.status)) all_acceptable = false;
    const auto& needs = r.gate_case->needs;
    if (run.adapter && std::find(needs.begin(), needs.end(), "in_process") != needs.end()) unseen.insert(r.gate_case->id);
  }
  run.unmet.clear();
  run.not_judged.clear();
  for (const Profile& p : run.profiles) {
    // Insisting on a profile does not make an implementation one for its device: needs that no case stands for are demands too.
    for (const std::string& need : p.needs)
      if (!run.description.offers(need)) run.unmet.push_back({p.name, "describe offers " + need, Status::not_supported});
    for (const std::string& id : p.mandatory) {
      const Status s = status.contains(id) ? status.at(id) : Status::not_run;
      if (run.partial && s == Status::not_run) continue;
      if (unseen.contains(id)) {
        run.not_judged.push_back({p.name, id, s});
        continue;
      }
      if (!acceptable(s)) run.unmet.push_back({p.name, id, s});
    }
  }
  // No profile, or nothing passed: an implementation that offers nothing must not look like one that does everything right.
  run.good = all_acceptable && run.unmet.empty() && ran > 0 && !run.profiles.empty();
  run.conformant = run.good && !run.partial;
}

ordered_json result_line(const Run& run, const Result& r) {
  ordered_json line = {{"gate", r.gate_case->gate},
                       {"case", r.gate_case->id},
                       {"requirement", r.gate_case->requirements.front()},
                       {"status", name_of(r.verdict.status)},
                       {"margin", margin_json(r.verdict)},
                       {"repro", r.repro},
                       {"requirements", r.gate_case->requirements},
                       {"kind", name_of(r.gate_case->kind)},
                       {"hunts", r.gate_case->hunts},
                       {"seed", run.seed},
                       {"message", printable(r.verdict.message, 2000)},
                       {"seconds", r.verdict.seconds}};
  if (!r.verdict.example.empty()) line["example"] = r.verdict.example;
  if (r.waived) {
    line["waiver"] = waiver_json(r.waived->waiver);
    line["waiver"]["instead_of"] = name_of(r.waived->instead_of);
  }
  return line;
}

ordered_json summary_line(const Run& run) {
  ordered_json counts = ordered_json::object();
  const auto by_status = count(run, -1);
  for (const Status s : all_statuses) counts[std::string(name_of(s))] = by_status.contains(s) ? by_status.at(s) : 0;
  ordered_json profiles = ordered_json::array();
  for (const Profile& p : run.profiles) profiles.push_back(p.name);
  const auto demands = [](const std::vector<Unmet>& list) {
    ordered_json out = ordered_json::array();
    for (const Unmet& u : list) out.push_back({{"profile", u.profile}, {"case", u.case_id}, {"status", name_of(u.status)}});
    return out;
  };
  ordered_json waivers = ordered_json::array();
  for (const WaiverOutcome& w : run.waivers) {
    waivers.push_back(waiver_json(w.waiver));
    waivers.back()["state"] = name_of(w.state);
  }
  ordered_json description = ordered_json::parse(run.description.json, nullptr, false);
  if (description.is_discarded()) description = nullptr;
  return {{"summary", true},         {"backend", run.backend},   {"implementation", run.description.name}, {"version", run.description.version},
          {"profiles", profiles},    {"partial", run.partial},   {"conformant", run.conformant},           {"good", run.good},
          {"counts", counts},        {"unmet", demands(run.unmet)}, {"not_judged", demands(run.not_judged)}, {"adapter", run.adapter}, {"seed", run.seed},                       {"seconds", run.seconds},
          {"waivers", waivers},      {"describe", description}};
}

std::vector<ordered_json> report_lines(const Run& run) {
  std::vector<ordered_json> lines;
  for (const Result& r : run.results) lines.push_back(result_line(run, r));
  lines.push_back(summary_line(run));
  return lines;
}

void write_jsonl(const Run& run, std::ostream& out) {
  for (const ordered_json& line : report_lines(run)) out << line.dump(-1, ' ', false, ordered_json::error_handler_t::replace) << '\n';
}

void write_junit(const Run& run, std::ostream& out) {
  std::map<int, std::vector<const Result*>> gates;
  for (const Result& r : run.results) gates[r.gate_case->gate].push_back(&r);
  out << "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"squareq gates\">\n";
  for (const auto& [gate, results] : gates) {
    int failures = 0, errors = 0, skipped = 0;
    double seconds = 0;
    for (const Result* r : results) {
      const Status s = r->verdict.status;
      failures += s == Status::fail || s == Status::mistrusted;
      errors += s == Status::crash || s == Status::timeout;
      skipped += s == Status::not_run || s == Status::not_supported || s == Status::waived;
      seconds += r->verdict.seconds;
    }
    out << fmt::format("  <testsuite name=\"gate{:02} {}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{:.3f}\">\n", gate,
                       gate_subject(gate), results.size(), failures, errors, skipped, seconds);
    for (const Result* r : results) {
      const Verdict& v = r->verdict;
      out << fmt::format("    <testcase classname=\"{}.gate{}\" name=\"{}\" time=\"{:.3f}\">\n", xml(run.description.name), gate, xml(r->gate_case->id), v.seconds);
      const std::string text = xml(v.message) + "\n" + xml(joined(r->gate_case->requirements)) + "\n" + xml(r->repro);
      const std::string status(name_of(v.status));
      if (v.status == Status::crash || v.status == Status::timeout)
        out << "      <error type=\"" << status << "\">" << text << "</error>\n";
      else if (bad(v.status))
        out << "      <failure type=\"" << status << "\">" << text << "</failure>\n";
      else if (v.status == Status::waived)
        out << "      <skipped message=\"" << xml(v.message) << "\"/>\n";
      else if (v.status != Status::pass)
        out << "      <skipped message=\"" << status << "\"/>\n";
      out << "    </testcase>\n";
    }
    out << "  </testsuite>\n";
  }
  out << "</testsuites>\n";
}

std::string summary_table(const Run& run) {
  std::string out = fmt::format("{:<16}{:>6}{:>6}{:>6}{:>9}{:>9}{:>8}{:>14}{:>9}{:>12}\n", "gate", "cases", "pass", "fail", "mistrust", "crash/to", "waived",
                                "not supported", "not run", "max margin");
  std::map<int, int> gates;
  for (const Result& r : run.results) ++gates[r.gate_case->gate];
  for (const auto& [gate, cases] : gates) {
    auto n = count(run, gate);
    double margin = 0;
    for (const Result& r : run.results)
      if (r.gate_case->gate == gate && r.verdict.margin) margin = std::max(margin, *r.verdict.margin);
    out += fmt::format("{:<16}{:>6}{:>6}{:>6}{:>9}{:>9}{:>8}{:>14}{:>9}{:>12.3g}\n", fmt::format("{:>2} {}", gate, gate_subject(gate)), cases, n[Status::pass],
                       n[Status::fail], n[Status::mistrusted], n[Status::crash] + n[Status::timeout], n[Status::waived], n[Status::not_supported], n[Status::not_run], margin);
  }
  std::string profiles;
  for (const Profile& p : run.profiles) profiles += (profiles.empty() ? "" : ", ") + p.name;
  for (const Unmet& u : run.unmet) out += fmt::format("unmet: profile {} demands {}: {}\n", u.profile, u.case_id, name_of(u.status));
  for (const WaiverOutcome& w : run.waivers) {
    const std::string what = fmt::format("{}: {}", w.waiver.case_id, printable(w.waiver.reason, 400));
    if (w.state == WaiverOutcome::State::applied) out += fmt::format("waived until {}: {}\n", day_text(w.waiver.expires), what);
    if (w.state == WaiverOutcome::State::expired) out += fmt::format("waiver expired on {} and does not count: {}\n", day_text(w.waiver.expires), what);
    if (w.state == WaiverOutcome::State::unneeded) out += fmt::format("waiver to be removed, the case passes: {}\n", what);
  }
  if (run.profiles.empty()) out += "no profile applies: the implementation describes none of the groups that one needs\n";
  for (const Unmet& u : run.not_judged) out += fmt::format("not judged through an adapter: profile {} demands {}\n", u.profile, u.case_id);
  const char* verdict = run.partial ? (run.good ? "partial run, no failure" : "partial run, NOT good") : run.conformant ? (run.not_judged.empty() ? "CONFORMANT" : "CONFORMANT in what an adapter shows") : "NOT CONFORMANT";
  out += fmt::format("{} {} ({}): {}   profiles: {}   seed {}   {:.1f} s\n", printable(run.description.name), printable(run.description.version), printable(run.backend),
                     verdict, profiles.empty() ? "none" : profiles, run.seed, run.seconds);
  return out;
}

std::string verdict_sentence(const ordered_json& summary) {
  const ordered_json& counts = summary.at("counts");
  const auto n = [&](const char* status) { return counts.value(status, 0); };
  std::string profiles;
  for (const ordered_json& p : summary.at("profiles")) profiles += (profiles.empty() ? "" : ", ") + p.get<std::string>();
  const std::string of_profiles = fmt::format("the profile{} {}", summary.at("profiles").size() == 1 ? "" : "s", profiles);
  std::string excused;
  if (const std::size_t unseen = summary.contains("not_judged") ? summary.at("not_judged").size() : 0; unseen > 0)
    excused += fmt::format(" {} demand{} cannot be judged through an adapter.", unseen, unseen == 1 ? "" : "s");
  if (n("waived")) excused += fmt::format(" {} {} excused by a waiver.", n("waived"), n("waived") == 1 ? "case is" : "cases are");
  if (summary.at("conformant").get<bool>()) return fmt::format("Conformant: every case that {} demand{} passed or is waived, and nothing else that was offered failed.{}", of_profiles, summary.at("profiles").size() == 1 ? "s" : "", excused);
  std::string faults;
  const std::pair<const char*, const char*> words[] = {{"fail", "failed"}, {"mistrusted", "gave a result too trivial to trust"}, {"crash", "crashed"}, {"timeout", "hung"}};
  for (const auto& [status, word] : words)
    if (n(status)) faults += fmt::format("{}{} {}", faults.empty() ? "" : ", ", n(status), word);
  if (summary.at("partial").get<bool>()) {
    if (summary.at("good").get<bool>()) return "Partial run, no failure. Only the selected cases ran, so this says nothing about conformance." + excused;
    return "Partial run, not good: " + (faults.empty() ? "the selected cases do not meet what a profile demands, or none of them passed" : "of the selected cases, " + faults) + "." + excused;
  }
  std::string why = faults.empty() ? "" : "of " + std::to_string(n("pass") + n("fail") + n("mistrusted") + n("crash") + n("timeout") + n("waived")) + " cases that ran, " + faults;
  if (profiles.empty()) why += std::string(why.empty() ? "" : "; ") + "the implementation describes none of the groups that a profile needs";
  const std::size_t unmet = summary.at("unmet").size();
  if (unmet) why += fmt::format("{}{} demand{} of {} {} not met", why.empty() ? "" : "; ", unmet, unmet == 1 ? "" : "s", of_profiles, unmet == 1 ? "is" : "are");
  if (n("pass") == 0) why += std::string(why.empty() ? "" : "; ") + "no case passed";
  return "Not conformant: " + why + "." + excused;
}

std::string repro_line(const std::string& backend, const std::string& case_id, std::uint64_t seed, bool adapter, const std::string& example) {
  std::string pattern = "^";
  for (const char c : case_id) pattern += c == '.' ? std::string("\\.") : std::string(1, c);
  return std::string("squareq gates ") + (adapter ? "--adapter " : "--backend ") + quote(backend) + " --filter " + quote(pattern + "$") + " --seed " + std::to_string(seed) +
         (example.empty() ? "" : " --example " + quote(example));
}

}  // namespace squareq::gates
