// Every mutant must be killed by the case that mutants.json names, and the unmutated wrapper must pass that case.
#include <gtest/gtest.h>

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "gates/gates.hpp"
#include "gates/harness/registry.hpp"
#include "squareq/builder/format_group.hpp"
#include "squareq/contract.hpp"

namespace squareq::gates {
namespace {

using nlohmann::json;

struct Mutant {
  std::string name, killer, status;
};

void PrintTo(const Mutant& m, std::ostream* out) { *out << m.name << ", to be killed by " << m.killer; }

std::vector<Mutant> all_mutants() {
  std::ifstream file(SQUAREQ_SOURCE_DIR "/gates/mutants/mutants.json");
  const json object = json::parse(file);
  std::vector<Mutant> out;
  for (const json& m : object["mutants"]) out.push_back({m["name"], m["killer"], m.value("status", "fail")});
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
  options.timeout_s = 60;
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
  EXPECT_EQ(plain["status"], "pass") << plain["message"];
  EXPECT_EQ(plain_status, 0);
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
  // Gate 0 is judged through the group `format`, whose mutants stand below.
  EXPECT_EQ(gates, (std::set<int>{2, 3, 4, 5, 9}));
}

/// Whole runs: an implementation that does nothing is not conformant, whether it claims everything or says nothing.
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

TEST(mutants, unknown_backend_is_wrong_usage) {
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

// Mutants of the group `format`: the library's own table with one entry changed, beside the reference backend.
sq_status accept_everything(sq_context*, const char*, sq_text_sink sink, void* user, sq_error*) {
  const std::string text = R"({"ok": true, "problems": [], "warnings": []})";
  sink(user, text.data(), text.size());
  return SQ_OK;
}

sq_status first_problem_only(sq_context* c, const char* request, sq_text_sink sink, void* user, sq_error* e) {
  std::string answer;
  const sq_status status = format_implementation()->format->validate(c, request, append_text, &answer, e);
  if (status != SQ_OK) return status;
  json object = json::parse(answer);
  while (object["problems"].size() > 1) object["problems"].erase(1);
  const std::string text = object.dump();
  sink(user, text.data(), text.size());
  return SQ_OK;
}

sq_status newline_at_the_end(sq_context* c, const char* request, sq_text_sink sink, void* user, sq_error* e) {
  const sq_status status = format_implementation()->format->build(c, request, sink, user, e);
  if (status != SQ_OK) return status;
  const json r = json::parse(request);
  std::ofstream(r["out"].get<std::string>() + "/" + r["name"].get<std::string>() + ".manifest.json", std::ios::app) << "\n";
  return SQ_OK;
}

sq_status file_left_behind(sq_context* c, const char* request, sq_text_sink sink, void* user, sq_error* e) {
  const sq_status status = format_implementation()->format->build(c, request, sink, user, e);
  const json r = json::parse(request);
  if (status != SQ_OK) std::ofstream(r["out"].get<std::string>() + "/" + r["name"].get<std::string>() + ".safetensors") << "half";
  return status;
}

void expect_format_mutant_killed(const std::string& killer, const std::function<void(sq_format_group&)>& change) {
  GateOptions options;
  options.backend = "reference";
  options.format = format_implementation();
  EXPECT_EQ(run_one(options, killer).second["status"], "pass");
  sq_format_group group = *format_implementation()->format;
  sq_implementation table = *format_implementation();
  change(group);
  table.format = &group;
  options.format = &table;
  const auto [status, line] = run_one(options, killer);
  EXPECT_EQ(line["status"], "fail");
  EXPECT_EQ(status, 1);
  std::printf("killed by gate 0 case %s: %s\n", killer.c_str(), line["message"].get<std::string>().c_str());
}

TEST(mutants, mutant_format_accepts_everything) {
  expect_format_mutant_killed("format.bad.dt_scale_zero_in_one_row", [](sq_format_group& g) { g.validate = accept_everything; });
}
TEST(mutants, mutant_format_reports_one_problem) {
  expect_format_mutant_killed("format.bad.several_faults", [](sq_format_group& g) { g.validate = first_problem_only; });
}
TEST(mutants, mutant_format_ends_manifest_with_newline) {
  expect_format_mutant_killed("format.build.three_layers", [](sq_format_group& g) { g.build = newline_at_the_end; });
}
TEST(mutants, mutant_format_leaves_a_file) {
  expect_format_mutant_killed("format.build.refused.nan", [](sq_format_group& g) { g.build = file_left_behind; });
}

}  // namespace
}  // namespace squareq::gates
