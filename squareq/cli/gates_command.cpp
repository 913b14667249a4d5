// `squareq gates`: runs the conformance suite against a backend. A thin layer over gates/gates.hpp.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gates/gates.hpp"
#include "squareq/builder/format_group.hpp"
#include "squareq/cli/command.hpp"
#include "squareq/error.hpp"
#ifdef SQUAREQ_WITH_TORCH
#include "squareq/training/modules/module_group.hpp"
#endif

namespace squareq::cli {
namespace {

void add_gates_report_command(CLI::App& app, int& status) {
  CLI::App* command = app.add_subcommand("gates-report", "Make the HTML page of a finished conformance run");
  struct Paths {
    std::string report, html;
  };
  const auto paths = std::make_shared<Paths>();
  command->add_option("report", paths->report, "the JSON lines that squareq gates --report wrote")->required();
  command->add_option("--html", paths->html, "page to write")->required();
  command->callback([paths, &status] {
    gates::write_html_of_report(paths->report, paths->html);
    status = 0;
  });
}

}  // namespace

void add_gates_command(CLI::App& app, const Common& common, int& status) {
  CLI::App* command = app.add_subcommand("gates", "Run the conformance suite (gates 0-15) against a backend");
  struct Flags {
    gates::GateOptions options;
    int gate = -1;
    bool list = false, no_fork = false, smoke = false;
  };
  const auto flags = std::make_shared<Flags>();
  gates::GateOptions& options = flags->options;
  command->add_option("--adapter", options.adapter, "instead of --backend: a command line that speaks the adapter protocol on stdin and stdout (gates/ADAPTERS.md)");
  command->add_flag("--smoke", flags->smoke, "with --adapter: check the protocol, rule by rule, and run no case");
  command->add_option("--profile", options.profiles, "profile to insist on: cuda, format, linear, lora-training, module, streaming (default: all that the backend's groups allow)");
  command->add_option("--filter", options.filter, "only cases whose id matches this regular expression; such a run is partial and never says conformant");
  command->add_option("--gate", flags->gate, "only this gate")->check(CLI::Range(0, 15));
  command->add_option("--seed", options.seed, "seed of all random data")->capture_default_str();
  command->add_option("--timeout", options.timeout_s, "seconds per case, at most")->check(CLI::Range(1, 3600));
  command->add_option("--example", options.example, "run a property case on this one example (name=integer,...) only, as a failure's repro line says");
  command->add_option("--waivers", options.waivers, "JSON list of excused cases, each with a reason and an expiry (spec/schema/waivers.schema.json)");
  command->add_option("--report", options.report, "write one JSON line per case and a summary line");
  command->add_option("--junit", options.junit, "write JUnit XML");
  command->add_option("--html", options.html, "write one self-contained HTML page");
  command->add_flag("--list", flags->list, "print every case with its requirement ids and run nothing");
  command->add_flag("--no-fork", flags->no_fork, "run cases in this process, for a debugger");
  command->callback([flags, &common, &status] {
    gates::GateOptions& o = flags->options;
    if (flags->list) {
      status = gates::list_cases(common.json);
      return;
    }
    if (flags->smoke && o.adapter.empty()) throw Error(Code::CFG_FLAG, "--smoke checks an adapter: give --adapter CMD too");
    if (!o.adapter.empty() && common.backend != "auto") throw Error(Code::CFG_FLAG, "--adapter and --backend exclude each other: one implementation is judged at a time");
    if (flags->smoke) {
      status = gates::smoke_adapter(o.adapter, common.json);
      return;
    }
    if (o.adapter.empty()) o.backend = resolve_backend(common);
    o.format = format_implementation();
#ifdef SQUAREQ_WITH_TORCH
    o.module = training::module_implementation();
#endif
    if (flags->gate >= 0) o.gate = flags->gate;
    o.fork = !flags->no_fork;
    o.json = common.json;
    o.quiet = common.quiet;
    status = gates::run_gates(o);
  });
  add_gates_report_command(app, status);
}

}  // namespace squareq::cli
