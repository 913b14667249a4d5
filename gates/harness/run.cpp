// The run itself: select, run each case in a child, judge, report.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "gates/adapter/run_adapter.hpp"
#include "gates/gates.hpp"
#include "gates/harness/filter.hpp"
#include "gates/harness/html.hpp"
#include "gates/harness/registry.hpp"
#include "gates/harness/report.hpp"
#include "gates/harness/run_case.hpp"
#include "gates/harness/trial.hpp"
#include "gates/harness/waiver.hpp"
#include "squareq/text.hpp"

namespace squareq::gates {
namespace {

std::ofstream open_report(const std::filesystem::path& path) {
  std::ofstream out(path, std::ios::binary);
  if (!out) throw Error(Code::IO_ERROR, "cannot write '" + printable(path.string()) + "': " + std::strerror(errno), path.string());
  return out;
}

void close_report(std::ofstream& out, const std::filesystem::path& path) {
  out.close();
  if (!out) throw Error(Code::IO_ERROR, "cannot write '" + printable(path.string()) + "': " + std::strerror(errno), path.string());
}

/// What keeps the case from running, empty if nothing does.
std::string missing(const Case& c, const Description& description) {
  for (const std::string& need : c.needs)
    if (!description.offers(need)) return "the implementation does not offer " + need;
  return {};
}

Waivers waivers_of(const GateOptions& options) {
  const auto day = options.day.empty() ? std::optional(today()) : parse_day(options.day);
  if (!day) throw Error(Code::CFG_VALUE, "'" + printable(options.day) + "' is no day YYYY-MM-DD");
  return {options.waivers.empty() ? std::vector<Waiver>() : read_waivers(options.waivers), *day};
}

}  // namespace

int run_gates(const GateOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Filter filter(options.filter);
  const auto selected = [&](const Case& c) { return (!options.gate || *options.gate == c.gate) && filter.matches(c.id); };
  if (std::none_of(all_cases().begin(), all_cases().end(), selected))
    throw Error(Code::CFG_VALUE, "no gate case matches '" + printable(options.filter) + "'" + (options.gate ? " in gate " + std::to_string(*options.gate) : ""));
  const auto example = given_example(options);
  if (example && std::count_if(all_cases().begin(), all_cases().end(), selected) != 1)
    throw Error(Code::CFG_VALUE, "--example needs a --filter that selects exactly one case");
  const Waivers waivers = waivers_of(options);
  // Reports are opened first: an hour's run must not end at an unwritable path.
  std::ofstream report, junit, html;
  if (!options.report.empty()) report = open_report(options.report);
  if (!options.junit.empty()) junit = open_report(options.junit);
  if (!options.html.empty()) html = open_report(options.html);

  Run run;
  run.backend = options.adapter.empty() ? options.backend : options.adapter;
  run.adapter = !options.adapter.empty();
  run.seed = options.seed;
  run.partial = options.gate.has_value() || !options.filter.empty();
  std::optional<Subject> here;
  std::optional<adapter::AdapterRun> remote;
  if (run.adapter) remote.emplace(options);
  try {
    if (remote) run.description = remote->describe();
    if (remote && !options.fork) here.emplace(remote->subject());
    else if (!remote && !options.fork) here.emplace(Subject::open(options));
    if (!remote) run.description = here ? here->describe() : describe_in_child(options);
  } catch (const Error& error) {
    // An implementation that cannot even describe itself offers nothing: that is a verdict, not a wrong command line.
    if (error.code() != Code::INTERNAL) throw;
    fmt::print(stderr, "{}\n", printable(error.what(), 400));
    run.description = {};
    run.description.name = run.backend;
  }
  if (!run.description.usable)
    throw Error(Code::CFG_BACKEND, "backend '" + printable(run.backend) + "' cannot run here: " + printable(run.description.reason));
  run.profiles = choose_profiles(options.profiles, run.description);

  const auto finish = [&](Result& r) {
    r.repro = repro_line(run.backend, r.gate_case->id, options.seed, run.adapter, r.verdict.example);
    r.waived = waivers.excuse(r.gate_case->id, r.verdict);
  };
  for (const Case& c : all_cases()) {
    Result result{&c, {}, {}, {}};
    if (!selected(c)) {
      result.verdict.status = Status::not_run;
    } else if (const std::string reason = missing(c, run.description); !reason.empty()) {
      result.verdict.status = Status::not_supported;
      result.verdict.message = reason;
    } else {
      const auto run_case = [&] {
        if (here) return run_here(c, *here, run.description, options.seed, {example, nullptr});
        return run_in_child(c, options, run.description, [&] { return remote ? remote->subject() : Subject::open(options); });
      };
      result.verdict = remote ? remote->around(limit_of(c, options), run_case) : run_case();
      finish(result);
      const bool good = result.verdict.status == Status::pass;
      if (!options.quiet || !good)
        fmt::print(stderr, "{:<13} gate {:>2}  {}{}{}\n", name_of(result.verdict.status), c.gate, c.id,
                   good ? std::string() : "\n    " + printable(result.verdict.message, 2000), good ? std::string() : "\n    " + result.repro);
    }
    if (result.repro.empty()) finish(result);
    run.results.push_back(std::move(result));
  }
  for (const Waiver& w : waivers.all())
    for (const Result& r : run.results)
      if (r.gate_case->id == w.case_id) run.waivers.push_back(waivers.outcome(w, r.verdict.status));
  judge(run);
  run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  if (report.is_open()) {
    write_jsonl(run, report);
    close_report(report, options.report);
  }
  if (junit.is_open()) {
    write_junit(run, junit);
    close_report(junit, options.junit);
  }
  if (html.is_open()) {
    write_html(report_lines(run), html);
    close_report(html, options.html);
  }
  if (options.json)
    fmt::print("{}\n", summary_line(run).dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace));
  else
    fmt::print("{}", summary_table(run));
  std::fflush(stdout);
  return run.good ? 0 : 1;
}

int list_cases(bool json) {
  nlohmann::ordered_json cases = nlohmann::ordered_json::array();
  for (const Case& c : all_cases()) {
    if (json)
      cases.push_back({{"gate", c.gate}, {"case", c.id}, {"kind", name_of(c.kind)}, {"requirements", c.requirements}, {"needs", c.needs}, {"hunts", c.hunts}});
    else
      fmt::print("gate {:>2}  {:<12}  {:<52}  {}\n", c.gate, name_of(c.kind), c.id, fmt::join(c.requirements, " "));
  }
  if (json) fmt::print("{}\n", nlohmann::ordered_json{{"cases", cases}}.dump(2));
  std::fflush(stdout);
  return 0;
}

}  // namespace squareq::gates
