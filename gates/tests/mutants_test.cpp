// Every mutant must be killed by the case that mutants.json names, and the unmutated wrapper must pass that case (SQ-CNF-015, SQ-CNF-016).
#include <gtest/gtest.h>

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "fixtures/places.hpp"
#include "gates/gates.hpp"
#include "gates/harness/registry.hpp"
#include "squareq/contract.hpp"

namespace squareq::gates {
namespace {

using nlohmann::json;

struct Mutant {
  std::string name, killer, status;
  bool wraps;  ///< the reference offers what it changes, so the plain wrapper must pass the same case
};

void PrintTo(const Mutant& m, std::ostream* out) { *out << m.name << ", to be killed by " << m.killer; }

std::vector<Mutant> all_mutants() {
  std::ifstream file(test::source_dir() / "gates/mutants/mutants.json");
  const json object = json::parse(file);
  std::vector<Mutant> out;
  for (const json& m : object["mutants"]) out.push_back({m["name"], m["killer"], m.value("status", "fail"), m.value("wraps", true)});
  return out;
}

std::string exactly(const std::string& id) {
  std::string pattern = "^";
  for (const char c : id) pattern += c == '.' ? std::string("\\.") : std::string(1, c);
  return pattern + "$";
}

/// Exit status of a run of one case, and the line of that case.
std::pair<int, json> run_one(const GateOptions& given, const std::string& id) {
  GateOptions options = given;
  options.filter = exactly(id);
  options.quiet = true;
  if (options.timeout_s == 0) options.timeout_s = 60;
  options.report = std::filesystem::temp_directory_path() / ("squareq-mutant-" + std::to_string(::getpid()) + ".jsonl");
  const int status = run_gates(options);
  std::ifstream report(options.report);
  json found;
  for (std::string line; std::getline(report, line);) {
    const json object = json::parse(line);
    if (object.value("case", "") == id) found = object;
  }
  std::filesystem::remove(options.report);
  return {status, found};
}

GateOptions mutant_options(const std::string& mutant) {
  ::setenv("SQUAREQ_MUTANT", mutant.c_str(), 1);
  GateOptions options;
  options.backend = find_backend("mutants").string();
  options.backend = std::filesystem::absolute(options.backend).string();
  return options;
}

class mutant : public testing::TestWithParam<Mutant> {};

TEST_P(mutant, is_killed) {
  const Mutant& m = GetParam();
  GateOptions wrapped = mutant_options("none");
  const auto [plain_status, plain] = run_one(wrapped, m.killer);
  ASSERT_FALSE(plain.is_null()) << "no such case: " << m.killer;
  EXPECT_EQ(plain["status"], m.wraps ? "pass" : "not_supported") << plain["message"];
  EXPECT_EQ(plain_status, m.wraps ? 0 : 1);
  GateOptions mutated = mutant_options(m.name);
  if (m.status == "timeout") mutated.timeout_s = 2;
  const auto [status, line] = run_one(mutated, m.killer);
  EXPECT_EQ(line["status"], m.status) << m.name << " survives " << m.killer << ": " << line["message"];
  EXPECT_EQ(status, 1);
  std::printf("mutant %s killed by gate %d case %s: %s\n", m.name.c_str(), line["gate"].get<int>(), m.killer.c_str(), line["message"].get<std::string>().c_str());
}

INSTANTIATE_TEST_SUITE_P(every, mutant, testing::ValuesIn(all_mutants()), [](const auto& tested) { return tested.param.name; });

TEST(mutants, every_gate_kills_one) {
  std::set<int> gates;
  for (const Mutant& m : all_mutants())
    for (const Case& c : all_cases())
      if (c.id == m.killer) gates.insert(c.gate);
  for (int gate = 0; gate < 16; ++gate) EXPECT_TRUE(gates.contains(gate)) << "no mutant is killed by gate " << gate;
}

/// Whole runs: an implementation that does nothing is not conformant, whether it claims everything or says nothing (SQ-CNF-023, SQ-CNF-025).
TEST(mutants, mutant_null_is_not_conformant) {
  for (const char* name : {"null", "null_and_silent"}) {
    GateOptions options = mutant_options(name);
    options.quiet = true;
    options.filter = "^(forward\\.exact|lora\\.golden|quantize\\.row|training\\.s|memory)";
    EXPECT_EQ(run_gates(options), 1) << name;
  }
}

TEST(mutants, mutant_null_passes_no_profile_it_insists_on) {
  GateOptions options = mutant_options("null_and_silent");
  options.quiet = true;
  options.profiles = {"linear"};
  EXPECT_EQ(run_gates(options), 1);
}

/// A table that ends before an operation does not offer it, whatever lies behind its end: what it offers is judged as ever.
TEST(mutants, a_table_of_before_is_judged_by_what_it_offers) {
  const GateOptions options = mutant_options("table_of_before");
  EXPECT_EQ(run_one(options, "linear.describe_is_honest").second["status"], "pass");
  EXPECT_EQ(run_one(options, "cleanup.describe").second["status"], "pass");
  EXPECT_EQ(run_one(options, "forward.exact.f32.m1k1n1").second["status"], "pass");
  for (const char* id : {"rms_norm_rope.exact.f32", "errors.rms_norm_rope", "vector.rms_norm_rope_f32_forward"}) {
    const json line = run_one(options, id).second;
    EXPECT_EQ(line["status"], "not_supported") << line["message"];
  }
}

TEST(mutants, unknown_backend_is_wrong_usage) {  // SQ-CNF-027, SQ-ERR-006
  GateOptions options;
  options.backend = "no_such_backend";
  try {
    run_gates(options);
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::CFG_BACKEND);
    EXPECT_EQ(exit_status(e.code()), 2);
  }
}

/// A mutant's failure waived: the run is good, every report says so; the day after, it is not (SQ-CNF-050, SQ-CNF-052).
TEST(waivers, excuse_a_mutant_until_they_expire) {
  const auto folder = std::filesystem::temp_directory_path() / ("squareq-waivers-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  const auto read = [](const std::filesystem::path& path) {
    std::ifstream in(path);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  std::ofstream(folder / "waivers.json") << R"([{"case": "forward.exact.f32.no_bias", "reason": "ReLU by default", "expires": "2026-12-31"},
    {"case": "linear.describe_is_honest", "reason": "was broken once", "expires": "2026-12-31"}])";
  GateOptions options = mutant_options("relu_by_default");
  options.quiet = true;
  options.filter = "^(forward\\.exact\\.f32\\.no_bias|linear\\.describe_is_honest)$";
  options.waivers = folder / "waivers.json";
  options.junit = folder / "run.xml";
  options.html = folder / "run.html";
  options.report = folder / "run.jsonl";
  options.day = "2026-12-31";
  EXPECT_EQ(run_gates(options), 0);
  const std::string report = read(options.report), junit = read(options.junit), html = read(options.html);
  EXPECT_NE(report.find("\"state\":\"unneeded\""), std::string::npos);
  EXPECT_NE(report.find("\"case\":\"forward.exact.f32.no_bias\",\"requirement\":\"SQ-LIN-001\",\"status\":\"waived\""), std::string::npos);
  EXPECT_NE(junit.find("waived until 2026-12-31: ReLU by default"), std::string::npos);
  EXPECT_NE(html.find("ReLU by default"), std::string::npos);
  options.day = "2027-01-01";
  EXPECT_EQ(run_gates(options), 1);
  EXPECT_NE(read(options.report).find("\"state\":\"expired\""), std::string::npos);
  options.day = "tomorrow";
  EXPECT_THROW(run_gates(options), Error);
  options.day.clear();
  std::ofstream(options.waivers) << R"([{"case": "no.such.case", "reason": "x", "expires": "2026-12-31"}])";
  try {
    run_gates(options);
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(exit_status(e.code()), 2);  // SQ-CNF-051, SQ-CNF-027
  }
  std::filesystem::remove_all(folder);
}

/// The repro line of a failed property: its example alone fails again (SQ-CNF-004, SQ-CNF-005, SQ-CNF-033).
TEST(properties, repro_runs_the_counterexample) {
  GateOptions options = mutant_options("scale_in_bf16");
  const json line = run_one(options, "linear.property.f32").second;
  ASSERT_EQ(line["status"], "fail");
  EXPECT_GT(line["margin"].get<double>(), 1.0) << "a failure says by how much";
  options.example = line["example"].get<std::string>();
  EXPECT_TRUE(line["repro"].get<std::string>().ends_with("--seed 1 --example " + options.example)) << line["repro"];
  EXPECT_NE(line["message"].get<std::string>().find("smallest counterexample"), std::string::npos) << line["message"];
  const json again = run_one(options, "linear.property.f32").second;
  EXPECT_EQ(again["status"], "fail");
  EXPECT_EQ(again["example"], line["example"]);
  GateOptions plain = mutant_options("none");
  plain.example = options.example;
  EXPECT_EQ(run_one(plain, "linear.property.f32").second["status"], "pass");
  plain.quiet = true;
  plain.filter = "^linear\\.property";
  EXPECT_THROW(run_gates(plain), Error) << "one example for several cases";
  plain.filter = "^linear\\.property\\.f32$";
  plain.example = "k=";
  EXPECT_THROW(run_gates(plain), Error);
}

/// The smallest cut is found, whichever was drawn first (SQ-CNF-004).
TEST(properties, format_cut_kills_a_reader_that_accepts_everything) {
  const json line = run_one(mutant_options("format_accepts_everything"), "format.bad.cut_anywhere").second;
  EXPECT_EQ(line["status"], "fail") << line["message"];
  EXPECT_TRUE(line["example"].get<std::string>().ends_with("=1")) << line["example"] << ": one byte is the smallest cut";
}

/// Insisting on a device that the implementation does not run on fails, whatever passes (SQ-CNF-028).
TEST(profiles, cuda_is_not_met_on_a_cpu) {
  GateOptions options;
  options.backend = "reference";
  options.quiet = true;
  options.profiles = {"cuda"};
  options.filter = "^forward\\.exact\\.f32\\.m1k1n1$";
  EXPECT_EQ(run_gates(options), 1);
  options.profiles = {"linear"};
  EXPECT_EQ(run_gates(options), 0);
}

/// Data depends on the seed and nothing else (SQ-CNF-003): the same margin to the bit again, another one with another seed.
TEST(runs, seed_decides_the_data) {
  GateOptions options = mutant_options("none");
  const json first = run_one(options, "linear.property.f32").second, again = run_one(options, "linear.property.f32").second;
  options.seed = 2;
  const json other = run_one(options, "linear.property.f32").second;
  EXPECT_EQ(first["margin"], again["margin"]);
  EXPECT_NE(first["margin"], other["margin"]);
}

/// In this process instead of a child, for a debugger: the same verdict.
TEST(runs, without_fork_gives_the_same_verdict) {
  GateOptions options = mutant_options("none");
  options.fork = false;
  EXPECT_EQ(run_one(options, "linear.property.f32").second["status"], "pass");
}

}  // namespace
}  // namespace squareq::gates
