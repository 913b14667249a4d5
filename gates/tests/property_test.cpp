// The property engine judged: what it draws, what it finds, how small, and whether it finds it again (SQ-CNF-003, SQ-CNF-004, SQ-CNF-005).
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "gates/harness/property.hpp"
#include "gates/harness/run_case.hpp"

namespace squareq::gates {
namespace {

GateOptions options() {
  GateOptions o;
  o.backend = "reference";
  return o;
}

struct Outcome {
  Verdict verdict;
  std::vector<std::string> noted;
};

Outcome run(const std::function<void(Trial&)>& body, std::uint64_t seed = 1, const std::string& example = "") {
  static const Subject subject = Subject::open(options());
  static const Description description = subject.describe();
  Case c;
  c.id = "crafted.property";
  c.run = body;
  Outcome outcome;
  ExampleOptions examples;
  if (!example.empty()) examples.given = parse_example(example);
  examples.note = [&](const std::string& text) { outcome.noted.push_back(text); };
  outcome.verdict = run_here(c, subject, description, seed, examples);
  return outcome;
}

/// Fails from k = 17 on.
void needs_small_k(Trial& trial) {
  check_property(trial, 30, [](Draws& draws) {
    draws.integer("m", 1, 50);
    const std::int64_t k = draws.integer("k", 1, 300);
    draws.choose("pack", {1, 8, 64});
    require(k < 17, "k is " + std::to_string(k));
  });
}

TEST(Property, shrinks_to_the_smallest_counterexample) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const Verdict v = run(needs_small_k, seed).verdict;
    EXPECT_EQ(v.status, Status::fail);
    EXPECT_EQ(v.example, "m=1,k=17,pack=1") << seed;
    EXPECT_TRUE(v.message.starts_with("k is 17 [smallest counterexample")) << v.message;
  }
}

TEST(Property, the_counterexample_alone_fails_again) {
  EXPECT_EQ(run(needs_small_k, 1, "m=1,k=17,pack=1").verdict.message, "k is 17 [the given example: m=1,k=17,pack=1]");
  EXPECT_EQ(run(needs_small_k, 1, "m=9,k=16,pack=64").verdict.status, Status::pass);
  // An example that the case cannot draw is never run as something else.
  for (const char* bad : {"m=1,k=5", "m=1,k=301,pack=1", "m=1,k=5,pack=2", "m=1,k=5,pack=1,n=3"}) {
    const Verdict v = run(needs_small_k, 1, bad).verdict;
    EXPECT_EQ(v.status, Status::fail) << bad;
    EXPECT_NE(v.message.find("--example"), std::string::npos) << v.message;
  }
  const Verdict none = run([](Trial&) {}, 1, "m=1").verdict;
  EXPECT_EQ(none.status, Status::fail);
  EXPECT_NE(none.message.find("draws no examples"), std::string::npos);
}

TEST(Property, examples_depend_on_the_seed_only) {
  const auto quiet = [](Trial& trial) {
    check_property(trial, 20, [](Draws& draws) {
      draws.integer("a", -7, 90);
      draws.coin("b");
      draws.random("data");
    });
  };
  const Outcome first = run(quiet, 3);
  EXPECT_EQ(first.verdict.status, Status::pass);
  EXPECT_EQ(first.noted, run(quiet, 3).noted);
  EXPECT_NE(first.noted, run(quiet, 4).noted);
  ::setenv("RC_PARAMS", "seed=1 max_success=1", 1);
  EXPECT_EQ(first.noted, run(quiet, 3).noted) << "the library's own variable has no say";
  ::unsetenv("RC_PARAMS");
}

TEST(Property, draws_reach_both_ends_and_stay_inside) {
  std::set<std::int64_t> seen, chosen, above;
  const auto body = [&](Trial& trial) {
    check_property(trial, 400, [&](Draws& draws) {
      seen.insert(draws.integer("a", -3, 6));
      chosen.insert(draws.choose("b", {5, 1, 9}));
      above.insert(draws.integer("c", 4, 7));
    });
  };
  run(body);
  EXPECT_EQ(seen, (std::set<std::int64_t>{-3, -2, -1, 0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(chosen, (std::set<std::int64_t>{1, 5, 9}));
  EXPECT_EQ(above, (std::set<std::int64_t>{4, 5, 6, 7}));
  const auto negative = [](Trial& trial) {
    check_property(trial, 50, [](Draws& draws) { require(draws.integer("a", -90, 3) > -20, "low"); });
  };
  EXPECT_EQ(run(negative).verdict.example, "a=-20") << "shrinks towards 0";
}

TEST(Property, margins_above_one_fail_and_the_largest_good_one_is_kept) {
  const auto body = [](double scale) {
    return [scale](Trial& trial) {
      check_property(trial, 40, [&](Draws& draws) { trial.margin(static_cast<double>(draws.integer("k", 0, 100)) * scale); });
    };
  };
  const Verdict bad = run(body(1 / 16.0)).verdict;
  EXPECT_EQ(bad.status, Status::fail);
  EXPECT_EQ(bad.example, "k=17");
  EXPECT_DOUBLE_EQ(bad.margin.value(), 17 / 16.0);
  const Verdict good = run(body(1 / 128.0)).verdict;
  EXPECT_EQ(good.status, Status::pass);
  EXPECT_GT(good.margin.value(), 0.3);
  EXPECT_LE(good.margin.value(), 100 / 128.0);
}

TEST(Property, other_ways_to_end_keep_their_status) {
  const auto ends = [](const std::function<void()>& how) {
    return run([&](Trial& trial) {
             check_property(trial, 20, [&](Draws& draws) {
               if (draws.integer("k", 0, 9) > 3) how();
             });
           })
        .verdict;
  };
  EXPECT_EQ(ends([] { mistrust("too trivial"); }).status, Status::mistrusted);
  EXPECT_EQ(ends([] { mistrust("too trivial"); }).example, "k=4");
  EXPECT_EQ(ends([] { not_supported("no"); }).status, Status::not_supported);
  const Verdict error = ends([] { throw Error(Code::CALL_SHAPE, "wrong"); });
  EXPECT_EQ(error.status, Status::fail);
  EXPECT_TRUE(error.message.starts_with("CALL_SHAPE: wrong")) << error.message;
  EXPECT_EQ(ends([] { throw std::runtime_error("lost"); }).example, "k=4");
  const Verdict twice = run([](Trial& trial) { check_property(trial, 5, [](Draws& draws) { draws.coin("a"), draws.coin("a"); }); }).verdict;
  EXPECT_EQ(twice.status, Status::fail) << "two inputs of one name could not be given back";
}

TEST(Property, a_crash_or_hang_names_its_example) {
  Case c;
  c.id = "crafted.property";
  c.timeout_s = 20;
  c.run = [](Trial& trial) {
    check_property(trial, 30, [](Draws& draws) {
      if (draws.integer("k", 1, 300) >= 17) std::_Exit(3);
    });
  };
  const Subject subject = Subject::open(options());
  const Description description = subject.describe();
  const Verdict crash = run_in_child(c, options(), description, [&] { return Subject::open(options()); });
  EXPECT_EQ(crash.status, Status::crash);
  ASSERT_TRUE(crash.example.starts_with("k=")) << crash.message;
  EXPECT_GE(std::stoi(crash.example.substr(2)), 17);
  EXPECT_NE(crash.message.find(" during k="), std::string::npos) << crash.message;
  c.timeout_s = 1;
  c.run = [](Trial& trial) {
    check_property(trial, 1, [](Draws& draws) {
      for (draws.integer("k", 1, 300);;) ::usleep(1000);
    });
  };
  const Verdict hang = run_in_child(c, options(), description, [&] { return Subject::open(options()); });
  EXPECT_EQ(hang.status, Status::timeout);
  EXPECT_EQ(hang.example, "k=1");
}

TEST(Property, examples_as_text) {
  EXPECT_EQ(parse_example("m=3,k=-17"), (std::map<std::string, std::int64_t>{{"m", 3}, {"k", -17}}));
  EXPECT_EQ(example_text({{"m", 3}, {"k", -17}}), "m=3,k=-17");
  for (const char* bad : {"m", "m=", "=3", "m=3,", ",m=3", "m=3,m=4", "m=3x", "m=3, k=4", "m=99999999999999999999", "m=1.5"})
    EXPECT_THROW(parse_example(bad), Error) << bad;
}

}  // namespace
}  // namespace squareq::gates
