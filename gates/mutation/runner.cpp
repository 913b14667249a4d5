// squareq_mutation: turns the mutations of the mutable reference on, one at a time, and runs gate cases until one says no.
//   killed      a case that passes without the mutation fails, crashes or hangs with it
//   equivalent  listed in equivalent.json with the reason; it must survive
//   survived    every case passes: a hole in the suite
// Exit status: 0 when every point is killed or equivalent, 1 otherwise, 2 for wrong usage or a suite that fails without any mutation.
#include <fmt/format.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "gates/harness/registry.hpp"
#include "gates/harness/run_case.hpp"
#include "gates/mutation/points.hpp"
#include "squareq/error.hpp"

namespace squareq::gates::mutation {
namespace {

struct Options {
  std::filesystem::path points, equivalent, library, report;
  int sample = 0;  // 0: every point
  int seed = 1;
  double budget = 0;  // seconds after which no further point is begun; 0: none
  int shard = 0, shards = 1;
  std::vector<int> only;
};

/// A case that the unmutated library passes, and the points that it evaluates.
struct Judge {
  const Case* gate_case = nullptr;
  std::vector<unsigned char> reached;
  double seconds = 0;
};

GateOptions gate_options(const Options& options) {
  GateOptions g;
  g.backend = std::filesystem::absolute(options.library).string();
  g.timeout_s = options.sample > 0 ? 5 : 20;
  return g;
}

/// Runs every offered case once without a mutation and records which points it evaluates.
std::vector<Judge> make_judges(const Options& options, const Description& description, std::size_t points) {
  const std::filesystem::path file = std::filesystem::temp_directory_path() / fmt::format("squareq-mutation-{}.reached", ::getpid());
  std::vector<Judge> judges;
  std::string failures;
  ::setenv("SQUAREQ_MUTATION_REACHED", file.c_str(), 1);
  for (const Case& c : all_cases()) {
    if (!std::all_of(c.needs.begin(), c.needs.end(), [&](const std::string& need) { return description.offers(need); })) continue;
    if (options.sample > 0 && (c.gate == 3 || c.gate == 9)) {  // slow cases: in a sample they are tried last, on any point, and taken to pass without a mutation
      judges.push_back({&c, std::vector<unsigned char>(points + 2, 1), 1e3});
      continue;
    }
    std::ofstream(file, std::ios::binary | std::ios::trunc) << std::string(points + 2, '\0');
    const Verdict v = run_in_child(c, gate_options(options), description, [&] { return Subject::open(gate_options(options)); });
    if (v.status != Status::pass) {
      failures += fmt::format("\n  {} is {}: {}", c.id, name_of(v.status), v.message);
      continue;
    }
    std::ifstream in(file, std::ios::binary);
    Judge judge{&c, std::vector<unsigned char>((std::istreambuf_iterator<char>(in)), {}), v.seconds};
    if (std::find(judge.reached.begin(), judge.reached.end(), 1) != judge.reached.end()) judges.push_back(std::move(judge));
  }
  ::unsetenv("SQUAREQ_MUTATION_REACHED");
  std::filesystem::remove(file);
  if (!failures.empty()) throw Error(Code::INTERNAL, "cases fail without any mutation:" + failures);
  return judges;
}

struct Outcome {
  const Case* killer = nullptr;
  Verdict verdict;
  int tried = 0;
};

Outcome judge_point(const MutationPoint& point, std::vector<Judge*> judges, const Options& options, const Description& description) {
  ::setenv("SQUAREQ_MUTATION", std::to_string(point.id).c_str(), 1);
  Outcome outcome;
  for (Judge* judge : judges) {
    if (!judge->reached[static_cast<std::size_t>(point.id)]) continue;
    ++outcome.tried;
    outcome.verdict = run_in_child(*judge->gate_case, gate_options(options), description, [&] { return Subject::open(gate_options(options)); });
    if (outcome.verdict.status == Status::pass) continue;
    outcome.killer = judge->gate_case;
    break;
  }
  ::unsetenv("SQUAREQ_MUTATION");
  return outcome;
}

bool chosen(const MutationPoint& p, const Options& options, std::size_t count) {
  if (!options.only.empty()) return std::find(options.only.begin(), options.only.end(), p.id) != options.only.end();
  if (p.id % options.shards != options.shard) return false;
  if (options.sample == 0) return true;
  if (!p.reason.empty()) return false;  // every case must pass it: too long for a sample
  const int stride = std::max(1, static_cast<int>(count) / options.sample);
  return p.id % stride == options.seed % stride;
}

int run(Options options) {
  // A mutated size must end in a failed allocation, not in a machine without memory.
  const rlimit memory{8ull << 30, 8ull << 30};
  ::setrlimit(RLIMIT_AS, &memory);
  const std::vector<MutationPoint> points = read_points(options.points, options.equivalent);
  const Description description = describe_in_child(gate_options(options));
  std::vector<Judge> judges = make_judges(options, description, points.size());
  std::vector<Judge*> order;
  for (Judge& j : judges) order.push_back(&j);
  std::sort(order.begin(), order.end(), [](const Judge* a, const Judge* b) { return a->seconds < b->seconds; });

  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  int killed = 0, survived = 0, equivalent = 0, wrong = 0, left = 0;
  nlohmann::json report = nlohmann::json::array();
  for (const MutationPoint& p : points) {
    if (!chosen(p, options, points.size())) continue;
    if (options.budget > 0 && seconds() > options.budget) {
      ++left;
      continue;
    }
    const Outcome outcome = judge_point(p, order, options, description);
    const char* result = outcome.killer ? "killed" : p.reason.empty() ? "survived" : "equivalent";
    (outcome.killer ? killed : p.reason.empty() ? survived : equivalent) += 1;
    if (outcome.killer && !p.reason.empty()) {
      ++wrong;
      fmt::print("listed as equivalent, but killed by {}: {} {}\n", outcome.killer->id, p.id, text(p));
    }
    if (!outcome.killer && p.reason.empty()) fmt::print("SURVIVED {} cases: {} {}\n", outcome.tried, p.id, text(p));
    report.push_back({{"id", p.id}, {"file", p.file}, {"line", p.line}, {"column", p.column}, {"from", p.from}, {"to", p.to}, {"source", p.source}, {"result", result}, {"tried", outcome.tried},
                      {"killer", outcome.killer ? outcome.killer->id : ""}, {"status", outcome.killer ? std::string(name_of(outcome.verdict.status)) : ""}, {"reason", p.reason}});
    if (outcome.killer) {  // what killed this one is likely to kill its neighbours
      const auto at = std::find_if(order.begin(), order.end(), [&](const Judge* j) { return j->gate_case == outcome.killer; });
      std::rotate(order.begin(), at, at + 1);
    }
    std::fflush(stdout);
  }
  if (!options.report.empty()) std::ofstream(options.report) << report.dump(1) << "\n";
  const int total = killed + survived + equivalent;
  fmt::print("mutation: {} of {} points (seed {}), {} cases: {} killed, {} equivalent, {} survived, {} wrongly listed, {} not begun in time; {:.0f} s\n", total, points.size(), options.seed, judges.size(), killed - wrong, equivalent, survived,
             wrong, left, seconds());
  if (total == 0) throw Error(Code::CFG_VALUE, "no mutation point was chosen");
  return survived || wrong ? 1 : 0;
}

}  // namespace
}  // namespace squareq::gates::mutation

int main(int argc, char** argv) {
  using namespace squareq::gates::mutation;
  Options options;
  CLI::App app{"Mutation testing of the reference by the gate cases"};
  app.add_option("--points", options.points, "points.json of the build")->required();
  app.add_option("--equivalent", options.equivalent, "gates/mutation/equivalent.json")->required();
  app.add_option("--library", options.library, "libsquareq_reference_mutable.so")->required();
  app.add_option("--report", options.report, "JSON of every point's result");
  app.add_option("--sample", options.sample, "about this many points instead of all");
  app.add_option("--seed", options.seed, "which sample");
  app.add_option("--budget", options.budget, "begin no further point after this many seconds of judging points, and say how many are left");
  app.add_option("--shard", options.shard, "this share of the points");
  app.add_option("--shards", options.shards, "of so many")->check(CLI::PositiveNumber);
  app.add_option("--point", options.only, "these points only");
  CLI11_PARSE(app, argc, argv);
  try {
    return run(options);
  } catch (const std::exception& e) {
    fmt::print(stderr, "squareq_mutation: {}\n", e.what());
    return 2;
  }
}
