// The harness judged: crafted data that must come out pass, mistrusted and fail, buffers that must notice, verdicts, reports.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "gates/harness/bounds.hpp"
#include "gates/harness/compare.hpp"
#include "gates/harness/filter.hpp"
#include "gates/harness/half.hpp"
#include "gates/harness/memory.hpp"
#include "gates/harness/profile.hpp"
#include "gates/harness/registry.hpp"
#include "gates/harness/report.hpp"

namespace squareq::gates {
namespace {

Status outcome(const std::vector<double>& actual, const Expected& expected) {
  try {
    compare("data", actual, expected);
    return Status::pass;
  } catch (const Ended& end) {
    return end.status;
  }
}

Expected around(const std::vector<double>& values, double bound) { return {values, std::vector<double>(values.size(), bound)}; }

TEST(Compare, crafted_pass_mistrusted_fail) {  // SQ-CNF-010, SQ-CNF-011, SQ-CNF-012
  const std::vector<double> expected = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  EXPECT_EQ(outcome(expected, around(expected, 0)), Status::pass);
  std::vector<double> near = expected;
  near[3] += 0.5;
  EXPECT_EQ(outcome(near, around(expected, 0.5)), Status::pass);
  EXPECT_EQ(outcome(near, around(expected, 0.49)), Status::fail);
  // Within a loose bound, but 40 % of the result is zero and the expectation is not.
  const std::vector<double> lazy = {0, 0, 0, 0, 5, 6, 7, 8, 9, 10};
  EXPECT_EQ(outcome(lazy, around(expected, 100)), Status::mistrusted);
  const std::vector<double> zeros(10, 0.0);
  EXPECT_EQ(outcome(zeros, around(zeros, 0)), Status::pass);
  EXPECT_DOUBLE_EQ(compare("data", near, around(expected, 2)), 0.25);
}

TEST(Compare, nan_and_infinity_must_agree) {  // SQ-CNF-012
  EXPECT_EQ(outcome({NAN, 1}, around({NAN, 1}, 0)), Status::pass);
  EXPECT_EQ(outcome({NAN, 1}, around({0, 1}, 1e9)), Status::fail);
  EXPECT_EQ(outcome({0, 1}, around({NAN, 1}, 1e9)), Status::fail);
  EXPECT_EQ(outcome({INFINITY}, around({INFINITY}, 0)), Status::pass);
  EXPECT_EQ(outcome({-INFINITY}, around({INFINITY}, 1e9)), Status::fail);
  EXPECT_EQ(outcome({3e38}, around({INFINITY}, 1e300)), Status::fail);
}

TEST(Guarded, notices_what_a_call_must_not_do) {  // SQ-CNF-013
  Guarded y("y", Role::out, SQ_F32, {3, 4}, 6);
  const auto element = [&](std::int64_t row, std::int64_t column) { return static_cast<float*>(y.tensor()->data) + row * 6 + column; };
  y.arm();
  EXPECT_NE(y.damage_after_success().find("[0, 0] was not written"), std::string::npos);
  y.fill(1.0);
  EXPECT_EQ(y.damage_after_success(), "");
  EXPECT_NE(y.damage_after_refusal(), "");
  const float saved = *element(1, 4);
  *element(1, 4) = 0;  // the gap between rows
  EXPECT_NE(y.damage_after_success().find("outside"), std::string::npos);
  std::memcpy(element(1, 4), &saved, 4);
  *element(2, 4) = 0;  // past the end
  EXPECT_NE(y.damage_after_success().find("outside"), std::string::npos);
  *element(0, -1) = 0;  // before the start
  EXPECT_NE(y.damage_after_success().find("-4"), std::string::npos);

  Guarded x("x", Role::in, SQ_BF16, {2, 3});
  x.fill(2.0);
  x.arm();
  EXPECT_EQ(x.damage_after_success(), "");
  x.set(1, 2, 2.5);
  EXPECT_NE(x.damage_after_success().find("input changed"), std::string::npos);
}

TEST(Guarded, gaps_read_as_nan) {
  Guarded x("x", Role::in, SQ_F32, {2, 3}, 5);
  x.fill(1.0);
  EXPECT_TRUE(std::isnan(static_cast<const float*>(x.tensor()->data)[3]));
}

TEST(Meter, measures_and_notices_misuse) {  // SQ-CNF-014
  Meter meter;
  const sq_allocator& a = *meter.table();
  void* p = a.allocate(a.user, SQ_MEM_DEVICE, 100, 256, nullptr, "slot");
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % 256, 0u);
  EXPECT_EQ(meter.held(SQ_MEM_DEVICE), 100u);
  void* q = a.allocate(a.user, SQ_MEM_SCRATCH, 50, 64, nullptr, "work");
  EXPECT_EQ(meter.peak(), 150u);
  a.release(a.user, q, SQ_MEM_SCRATCH, 50, nullptr);
  EXPECT_EQ(meter.held(), 100u);
  EXPECT_EQ(meter.misuse(), "");
  static_cast<char*>(p)[100] = 1;
  a.release(a.user, p, SQ_MEM_DEVICE, 100, nullptr);
  EXPECT_NE(meter.misuse().find("slot"), std::string::npos);
  Meter other;
  other.table()->release(other.table()->user, &meter, SQ_MEM_HOST, 1, nullptr);
  EXPECT_NE(other.misuse(), "");
  other.refuse_from(1);
  void* first = other.table()->allocate(other.table()->user, SQ_MEM_HOST, 8, 8, nullptr, "a");
  EXPECT_NE(first, nullptr);
  EXPECT_EQ(other.table()->allocate(other.table()->user, SQ_MEM_HOST, 8, 8, nullptr, "b"), nullptr);
}

TEST(Half, rounds_to_nearest_even) {
  EXPECT_EQ(from_bf16(to_bf16(1.00390625f)), 1.0f);                  // tie, even below
  EXPECT_EQ(from_bf16(to_bf16(1.01171875f)), 1.015625f);             // tie, even above
  EXPECT_EQ(to_f16(1.0), 0x3C00);
  EXPECT_EQ(to_f16(65504.0), 0x7BFF);
  EXPECT_EQ(to_f16(65520.0), 0x7C00);
  EXPECT_EQ(to_f16(std::ldexp(1.0, -24)), 0x0001);
  EXPECT_EQ(to_f16(std::ldexp(1.0, -25)), 0x0000);                   // tie to zero
  EXPECT_EQ(to_f16(std::ldexp(1.0, -14)), 0x0400);
  EXPECT_EQ(to_f16(2049.0), 0x6800);                                 // tie, even below
  for (int bits = 0; bits < 0x7C00; ++bits) EXPECT_EQ(to_f16(from_f16(static_cast<std::uint16_t>(bits))), bits);
}

/// Three cases and a profile that demands the first two.
struct Crafted {
  Case a, b, c;
  Run run;
  Crafted() {
    const std::string ids[] = {"crafted.a", "crafted.b", "crafted.c"};
    Case* cases[] = {&a, &b, &c};
    for (int i = 0; i < 3; ++i) {
      cases[i]->gate = 5;
      cases[i]->id = ids[i];
      cases[i]->requirements = {"SQ-CNF-001"};
      run.results.push_back({cases[i], {}, repro_line("cpu", ids[i], 7)});
      run.results.back().verdict.status = Status::pass;
    }
    run.backend = "cpu";
    run.description.name = "crafted";
    run.description.json = "{}";
    run.seed = 7;
    run.profiles = {{"crafted", "", {}, {"crafted.a", "crafted.b"}}};
  }
  void set(int i, Status s) { run.results[static_cast<std::size_t>(i)].verdict.status = s; }
};

TEST(Judge, verdicts) {  // SQ-CNF-020, SQ-CNF-021, SQ-CNF-023, SQ-CNF-024
  Crafted all_pass;
  judge(all_pass.run);
  EXPECT_TRUE(all_pass.run.conformant && all_pass.run.good);
  for (const Status s : {Status::fail, Status::mistrusted, Status::crash, Status::timeout, Status::not_supported, Status::not_run}) {
    Crafted mandatory;
    mandatory.set(0, s);
    judge(mandatory.run);
    EXPECT_FALSE(mandatory.run.conformant) << name_of(s);
    ASSERT_EQ(mandatory.run.unmet.size(), 1u) << name_of(s);
    EXPECT_EQ(mandatory.run.unmet[0].case_id, "crafted.a");
  }
  Crafted optional;
  optional.set(2, Status::not_supported);
  judge(optional.run);
  EXPECT_TRUE(optional.run.conformant) << "an optional case may be unsupported";
  optional.set(2, Status::fail);
  judge(optional.run);
  EXPECT_FALSE(optional.run.conformant) << "but what is offered must be right";
  Crafted waived;
  waived.set(0, Status::waived);
  judge(waived.run);
  EXPECT_TRUE(waived.run.conformant);
  Crafted nothing;
  for (int i = 0; i < 3; ++i) nothing.set(i, Status::not_supported);
  nothing.run.profiles.clear();
  judge(nothing.run);
  EXPECT_FALSE(nothing.run.good) << "zero cases never pass";
  Crafted no_profile;
  no_profile.run.profiles.clear();
  judge(no_profile.run);
  EXPECT_FALSE(no_profile.run.good) << "no profile, no verdict";
}

TEST(Judge, partial_runs_never_conform) {  // SQ-CNF-026
  Crafted partial;
  partial.run.partial = true;
  partial.set(1, Status::not_run);
  judge(partial.run);
  EXPECT_TRUE(partial.run.good);
  EXPECT_FALSE(partial.run.conformant);
}

TEST(Report, lines_follow_the_schema) {  // SQ-CNF-030, SQ-CNF-031
  Crafted crafted;
  crafted.run.results[0].verdict.margin = 0.25;
  crafted.set(2, Status::fail);
  judge(crafted.run);
  std::ostringstream out;
  write_jsonl(crafted.run, out);
  std::istringstream in(out.str());
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(lines.size(), 4u);
  for (int i = 0; i < 3; ++i)
    for (const char* key : {"gate", "case", "requirement", "status", "margin", "repro"}) EXPECT_TRUE(lines[static_cast<std::size_t>(i)].contains(key)) << key;
  EXPECT_EQ(lines[0]["margin"], 0.25);
  EXPECT_TRUE(lines[1]["margin"].is_null());
  EXPECT_EQ(lines[3]["summary"], true);
  EXPECT_EQ(lines[3]["counts"]["fail"], 1);
  EXPECT_EQ(lines[3]["conformant"], false);
}

TEST(Report, junit_escapes_and_counts) {  // SQ-CNF-032
  Crafted crafted;
  crafted.set(1, Status::crash);
  crafted.set(2, Status::fail);
  crafted.run.results[2].verdict.message = "<&\"\x01";
  std::ostringstream out;
  write_junit(crafted.run, out);
  EXPECT_NE(out.str().find("failures=\"1\" errors=\"1\""), std::string::npos);
  EXPECT_NE(out.str().find("&lt;&amp;&quot;\\u0001"), std::string::npos);
}

TEST(Report, repro_line_selects_exactly_its_case) {  // SQ-CNF-033
  for (const Case& c : all_cases()) {
    const std::string line = repro_line("cpu", c.id, 42);
    const std::string before = "squareq gates --backend cpu --filter '", after = "' --seed 42";
    ASSERT_TRUE(line.starts_with(before) && line.ends_with(after)) << line;
    const Filter filter(line.substr(before.size(), line.size() - before.size() - after.size()));
    int hits = 0;
    for (const Case& other : all_cases()) hits += filter.matches(other.id);
    EXPECT_EQ(hits, 1) << line;
  }
}

TEST(Registry, cases_are_well_formed) {  // SQ-CNF-001, SQ-CNF-002
  const Filter slug("^[a-zA-Z0-9_-]+(\\.[a-zA-Z0-9_-]+)*$"), requirement("^SQ-[A-Z]{3}-[0-9]{3}$");
  for (const Case& c : all_cases()) {
    EXPECT_TRUE(slug.matches(c.id)) << c.id;
    EXPECT_FALSE(c.hunts.empty()) << c.id;
    EXPECT_FALSE(c.needs.empty()) << c.id;
    for (const std::string& r : c.requirements) EXPECT_TRUE(requirement.matches(r)) << c.id << " " << r;
  }
  EXPECT_GE(all_cases().size(), 400u);
}

TEST(Profiles, demand_what_they_need) {  // SQ-CNF-022
  ASSERT_EQ(all_profiles().size(), 6u);
  Description none;
  EXPECT_TRUE(choose_profiles({}, none).empty());
  Description linear;
  linear.groups = {"linear"};
  const auto chosen = choose_profiles({}, linear);
  ASSERT_EQ(chosen.size(), 1u);
  EXPECT_EQ(chosen[0].name, "linear");
  EXPECT_THROW(choose_profiles({"lineer"}, linear), Error);
  EXPECT_EQ(choose_profiles({"streaming"}, linear).size(), 1u) << "insisting is possible without the groups";
}

TEST(Bounds, worked_values) {
  EXPECT_DOUBLE_EQ(quantization_bound(2), 1 + 0x1p-14);
  EXPECT_NEAR(gamma(1000), 1000 * 0x1p-24, 1e-8);
  EXPECT_GT(gamma(1000), 1000 * 0x1p-24);
  EXPECT_DOUBLE_EQ(with_output_rounding(1.0, 0, SQ_BF16), 0x1p-8 + 0x1p-133);
}

}  // namespace
}  // namespace squareq::gates
