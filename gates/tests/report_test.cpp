// Waivers, the HTML page, profiles as data, and the verdict in plain words.
#include <gtest/gtest.h>

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "gates/gates.hpp"
#include "gates/harness/embedded.hpp"
#include "gates/harness/html.hpp"
#include "gates/harness/profile.hpp"
#include "gates/harness/registry.hpp"
#include "gates/harness/report.hpp"
#include "gates/harness/waiver.hpp"

namespace squareq::gates {
namespace {

using nlohmann::ordered_json;

Code refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.code();
  }
  return Code::OK;
}

std::string some_case(std::size_t i = 0) { return all_cases()[i].id; }

std::string waiver_text(const std::string& more, const std::string& id = some_case()) { return R"([{"case": ")" + id + "\"" + more + "}]"; }

constexpr const char* good = R"(, "reason": "known fault", "expires": "2026-12-31")";

std::chrono::year_month_day day(const char* text) { return parse_day(text).value(); }

TEST(Waivers, days) {
  EXPECT_EQ(day_text(day("2028-02-29")), "2028-02-29");
  for (const char* bad :
       {"2026-02-29", "2026-13-01", "2026-00-10", "2026-1-1", "26-01-01", "2026/01/01", "2026-01-0x", "", "2026-01-01 ", "-026-01-01"})
    EXPECT_FALSE(parse_day(bad)) << bad;
}

TEST(Waivers, files_are_read_strictly) {  // SQ-CNF-051
  EXPECT_TRUE(parse_waivers("[]", "w").empty());
  const auto read = parse_waivers(waiver_text(std::string(good) + R"(, "issue": "#12")"), "w");
  ASSERT_EQ(read.size(), 1u);
  EXPECT_EQ(read[0].issue, "#12");
  const std::pair<std::string, Code> bad[] = {{"", Code::CFG_JSON},
                                              {"[", Code::CFG_JSON},
                                              {"{}", Code::CFG_TYPE},
                                              {"[1]", Code::CFG_TYPE},
                                              {std::string("[]\0x", 4), Code::CFG_JSON},
                                              {"[1e400]", Code::CFG_JSON},
                                              {waiver_text(R"(, "expires": "2026-12-31")"), Code::CFG_TYPE},
                                              {waiver_text(R"(, "reason": "x")"), Code::CFG_TYPE},
                                              {waiver_text(R"(, "reason": " \t", "expires": "2026-12-31")"), Code::CFG_VALUE},
                                              {waiver_text(R"(, "reason": 3, "expires": "2026-12-31")"), Code::CFG_TYPE},
                                              {waiver_text(R"(, "reason": "x", "expires": "2026-02-30")"), Code::CFG_VALUE},
                                              {waiver_text(R"(, "reason": "x", "expires": "never")"), Code::CFG_VALUE},
                                              {waiver_text(std::string(good) + R"(, "until": "2027-01-01")"), Code::CFG_KEY},
                                              {waiver_text(std::string(good) + R"(, "reason": "another")"), Code::CFG_KEY},
                                              {waiver_text(good, "no.such.case"), Code::CFG_VALUE},
                                              {R"([{"reason": "x", "expires": "2026-12-31"}])", Code::CFG_TYPE}};
  for (const auto& [text, code] : bad) EXPECT_EQ(refusal([&] { parse_waivers(text, "w"); }), code) << text;
  const std::string one = waiver_text(good);
  EXPECT_EQ(refusal([&] { parse_waivers(one.substr(0, one.size() - 1) + "," + one.substr(1), "w"); }), Code::CFG_VALUE) << "one case twice";
  EXPECT_EQ(refusal([] { read_waivers("/no/such/file.json"); }), Code::IO_MISSING);
  EXPECT_EQ(refusal([] { read_waivers("/tmp"); }), Code::IO_NOT_REGULAR);
}

TEST(Waivers, excuse_until_their_last_day) {  // SQ-CNF-050, SQ-CNF-052, SQ-CNF-053
  using State = WaiverOutcome::State;
  const std::vector<Waiver> list = parse_waivers(waiver_text(good), "w");
  const Waivers on_the_day(list, day("2026-12-31")), after(list, day("2027-01-01"));
  for (const Status s : {Status::fail, Status::mistrusted, Status::crash, Status::timeout, Status::not_supported}) {
    Verdict v;
    v.status = s;
    v.message = "what went wrong";
    EXPECT_FALSE(after.excuse(some_case(), v));
    EXPECT_EQ(v.status, s);
    EXPECT_FALSE(on_the_day.excuse(some_case(1), v)) << "another case";
    const auto used = on_the_day.excuse(some_case(), v);
    ASSERT_TRUE(used);
    EXPECT_EQ(used->instead_of, s);
    EXPECT_EQ(v.status, Status::waived);
    for (const char* part : {"known fault", "2026-12-31", "what went wrong"})
      EXPECT_NE(v.message.find(part), std::string::npos) << v.message;
  }
  for (const Status s : {Status::pass, Status::not_run}) {
    Verdict v;
    v.status = s;
    EXPECT_FALSE(on_the_day.excuse(some_case(), v));
    EXPECT_EQ(v.status, s);
  }
  EXPECT_EQ(on_the_day.outcome(list[0], Status::waived).state, State::applied);
  EXPECT_EQ(on_the_day.outcome(list[0], Status::pass).state, State::unneeded);
  EXPECT_EQ(on_the_day.outcome(list[0], Status::not_run).state, State::idle);
  EXPECT_EQ(after.outcome(list[0], Status::fail).state, State::expired);
}

/// A run with one result per given status, all in gate 5, and a profile that demands the first.
struct Crafted {
  std::vector<Case> cases;
  Run run;
  explicit Crafted(const std::vector<Status>& statuses, int gate = 5) : cases(statuses.size()) {
    for (std::size_t i = 0; i < statuses.size(); ++i) {
      Case& c = cases[i];
      c.gate = gate;
      c.id = "crafted." + std::to_string(i);
      c.requirements = {"SQ-CNF-001"};
      c.hunts = "nothing";
      run.results.push_back({&c, {}, repro_line("cpu", c.id, 7)});
      run.results.back().verdict.status = statuses[i];
    }
    run.backend = "cpu";
    run.description.name = "crafted";
    run.description.version = "1";
    run.description.json = "{}";
    run.profiles = {{"crafted", "", {}, {"crafted.0"}}};
  }
  std::string sentence() {
    judge(run);
    return verdict_sentence(summary_line(run));
  }
};

std::string page_of(Crafted& crafted) {
  judge(crafted.run);
  std::ostringstream out;
  write_html(report_lines(crafted.run), out);
  return out.str();
}

std::string data_of(const std::string& page) {
  const std::string begin = R"(<script type="application/json" id="data">)";
  const auto at = page.find(begin);
  EXPECT_NE(at, std::string::npos);
  return page.substr(at + begin.size(), page.find("</script>", at) - at - begin.size());
}

TEST(Waivers, stand_in_every_report) {  // SQ-CNF-050, SQ-CNF-052, SQ-CNF-053
  Crafted crafted({Status::fail, Status::pass, Status::fail});
  const Waiver w{"crafted.0", "known fault", day("2026-12-31"), "#12"};
  const Waivers waivers({w}, day("2026-11-28"));
  crafted.run.results[0].verdict.message = "off by one";
  crafted.run.results[0].waived = waivers.excuse("crafted.0", crafted.run.results[0].verdict);
  crafted.run.waivers = {{w, WaiverOutcome::State::applied},
                         {{"crafted.1", "no longer", day("2026-12-31"), ""}, WaiverOutcome::State::unneeded},
                         {{"crafted.2", "too old", day("2026-01-01"), ""}, WaiverOutcome::State::expired}};
  const std::string page = page_of(crafted);
  EXPECT_FALSE(crafted.run.good) << "the expired waiver does not count";
  const ordered_json line = result_line(crafted.run, crafted.run.results[0]), summary = summary_line(crafted.run);
  EXPECT_EQ(line["status"], "waived");
  EXPECT_EQ(line["waiver"]["reason"], "known fault");
  EXPECT_EQ(line["waiver"]["instead_of"], "fail");
  EXPECT_EQ(summary["counts"]["waived"], 1);
  EXPECT_EQ(summary["waivers"][0]["state"], "applied");
  EXPECT_EQ(summary["waivers"][1]["state"], "unneeded");
  EXPECT_EQ(summary["waivers"][2]["state"], "expired");
  const std::string table = summary_table(crafted.run);
  EXPECT_NE(table.find("waived until 2026-12-31: crafted.0: known fault"), std::string::npos) << table;
  EXPECT_NE(table.find("waiver to be removed, the case passes: crafted.1"), std::string::npos) << table;
  EXPECT_NE(table.find("waiver expired on 2026-01-01 and does not count: crafted.2"), std::string::npos) << table;
  std::ostringstream junit;
  write_junit(crafted.run, junit);
  EXPECT_NE(junit.str().find("<skipped message=\"waived until 2026-12-31: known fault, #12 (fail: off by one)\"/>"), std::string::npos)
      << junit.str();
  EXPECT_NE(junit.str().find("failures=\"1\" errors=\"0\" skipped=\"1\""), std::string::npos);
  EXPECT_EQ(ordered_json::parse(data_of(page))["cases"][0]["waiver"]["issue"], "#12");
}

TEST(Verdict, in_plain_words) {  // SQ-CNF-034
  EXPECT_TRUE(
      Crafted({Status::pass, Status::pass}).sentence().starts_with("Conformant: every case that the profile crafted demands passed"));
  EXPECT_NE(Crafted({Status::waived, Status::pass}).sentence().find("1 case is excused by a waiver"), std::string::npos);
  const std::string bad =
      Crafted({Status::fail, Status::pass, Status::crash, Status::timeout, Status::mistrusted, Status::not_supported}).sentence();
  EXPECT_EQ(bad,
            "Not conformant: of 5 cases that ran, 1 failed, 1 gave a result too trivial to trust, 1 crashed, 1 hung; 1 demand of the "
            "profile crafted is not met.");
  EXPECT_EQ(Crafted({Status::not_supported, Status::not_supported}).sentence(),
            "Not conformant: 1 demand of the profile crafted is not met; no case passed.");
  Crafted nothing({Status::not_supported});
  nothing.run.profiles.clear();
  EXPECT_EQ(nothing.sentence(), "Not conformant: the implementation describes none of the groups that a profile needs; no case passed.");
  Crafted partial({Status::pass, Status::not_run});
  partial.run.partial = true;
  EXPECT_TRUE(partial.sentence().starts_with("Partial run, no failure"));
  partial.run.results[0].verdict.status = Status::fail;
  EXPECT_EQ(partial.sentence(), "Partial run, not good: of the selected cases, 1 failed.");
}

TEST(Html, holds_every_case_and_nothing_from_outside) {  // SQ-CNF-034
  Crafted crafted(std::vector<Status>(1000, Status::pass));
  const std::string page = page_of(crafted);
  const ordered_json data = ordered_json::parse(data_of(page));
  ASSERT_EQ(data["cases"].size(), 1000u);
  for (std::size_t i = 0; i < 1000; ++i) EXPECT_EQ(data["cases"][i]["case"], crafted.cases[i].id);
  EXPECT_EQ(data["summary"]["counts"]["pass"], 1000);
  EXPECT_EQ(data["gates"]["5"], "forward");
  EXPECT_NE(page.find("<p>Conformant: every case"), std::string::npos);
  EXPECT_NE(page.find("<header class=\"card verdict conformant\">"), std::string::npos);
  for (const char* outside : {"http:", "https:", "src=", "url(", "@import", "<link", "@TITLE@", "@VERDICT@", "@SENTENCE@", "@DATA@"})
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
}

TEST(Html, text_never_becomes_markup) {  // SQ-CNF-035
  Crafted crafted({Status::fail});
  const std::string evil = "</script><script>alert(1)</script><!--<b>&amp;\"'\x01\xff\xe2\x80\xa8@DATA@@TITLE@";
  crafted.run.results[0].verdict.message = evil;
  crafted.run.results[0].repro = evil;
  crafted.cases[0].hunts = evil;
  crafted.run.description.name = evil;
  crafted.run.description.json = ordered_json{{"device", "<img src=x onerror=alert(1)>"}}.dump();
  crafted.run.backend = evil;
  crafted.run.profiles[0].name = evil;
  const std::string page = page_of(crafted);
  const std::string data = data_of(page);
  for (const char c : {'<', '>', '&'}) EXPECT_EQ(data.find(c), std::string::npos) << c;
  const ordered_json parsed = ordered_json::parse(data);
  EXPECT_TRUE(parsed["cases"][0]["message"].get<std::string>().starts_with(
      "</script><script>alert(1)</script><!--<b>&amp;\"'\\u0001\\xff\\u2028@DATA@@TITLE@"));
  // Two scripts are the page's own; the words of the report appear outside the data as escaped text only.
  std::size_t scripts = 0;
  for (std::size_t at = page.find("<script"); at != std::string::npos; at = page.find("<script", at + 1)) ++scripts;
  EXPECT_EQ(scripts, 2u);
  EXPECT_EQ(page.find("<!--"), std::string::npos);
  EXPECT_EQ(page.find("<img"), std::string::npos);
  EXPECT_NE(page.find("<title>&lt;/script&gt;"), std::string::npos);
  // Inserted text is not searched for places again: the data stands once.
  EXPECT_EQ(page.find("id=\"data\">"), page.rfind("id=\"data\">"));
  EXPECT_NE(page.find("@DATA@@TITLE@ 1</h1>"), std::string::npos);
}

/// A folder of this test, and files in it.
struct Files {
  std::filesystem::path folder = std::filesystem::temp_directory_path() / ("squareq-report-test-" + std::to_string(::getpid()));
  Files() { std::filesystem::create_directories(folder); }
  ~Files() { std::filesystem::remove_all(folder); }
  std::filesystem::path write(const char* name, const std::string& text) const {
    std::ofstream(folder / name, std::ios::binary) << text;
    return folder / name;
  }
  static std::string read(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }
};

TEST(Html, from_a_finished_run_is_the_same_page) {  // SQ-CNF-034, SQ-CNF-036
  const Files files;
  Crafted crafted({Status::pass, Status::fail, Status::not_run});
  crafted.run.results[1].verdict.margin = INFINITY;
  const std::string direct = page_of(crafted);
  std::ostringstream lines;
  write_jsonl(crafted.run, lines);
  const auto report = files.write("run.jsonl", lines.str());
  write_html_of_report(report, files.folder / "run.html");
  EXPECT_EQ(Files::read(files.folder / "run.html"), direct);

  const std::string text = lines.str();
  const std::string first = text.substr(0, text.find('\n') + 1), summary = text.substr(text.rfind('\n', text.size() - 2) + 1);
  const auto refused = [&](const std::string& content) {
    return refusal([&] { write_html_of_report(files.write("bad.jsonl", content), files.folder / "bad.html"); });
  };
  EXPECT_EQ(refused(""), Code::CFG_VALUE);
  EXPECT_EQ(refused(first), Code::CFG_VALUE) << "no summary: the run did not finish";
  EXPECT_EQ(refused(summary + first), Code::CFG_VALUE) << "the summary is last";
  EXPECT_EQ(refused("not json\n" + summary), Code::CFG_JSON);
  EXPECT_EQ(refused("[]\n" + summary), Code::CFG_JSON);
  EXPECT_EQ(refused("{}\n" + summary), Code::CFG_TYPE);
  const auto changed = [&](const char* key, const ordered_json& value) {
    ordered_json line = ordered_json::parse(first);
    line[key] = value;
    return refused(line.dump() + "\n" + summary);
  };
  EXPECT_EQ(changed("seconds", 1), Code::OK);
  EXPECT_EQ(changed("gate", "five"), Code::CFG_TYPE);
  EXPECT_EQ(changed("margin", "small"), Code::CFG_TYPE);
  EXPECT_EQ(changed("status", "good"), Code::CFG_VALUE);
  EXPECT_EQ(changed("requirements", 3), Code::CFG_TYPE);
  EXPECT_EQ(changed("waiver", 3), Code::CFG_TYPE);
  ordered_json other = ordered_json::parse(summary);
  other["unmet"] = {1};
  EXPECT_EQ(refused(first + other.dump()), Code::CFG_TYPE);
  EXPECT_EQ(refusal([&] { write_html_of_report("/no/such/run.jsonl", files.folder / "x.html"); }), Code::IO_MISSING);
  EXPECT_EQ(refusal([&] { write_html_of_report(report, "/no/such/folder/x.html"); }), Code::IO_ERROR);
}

TEST(Profiles, demand_existing_cases_and_at_least_one) {  // SQ-CNF-029
  for (const Profile& p : all_profiles()) EXPECT_FALSE(p.mandatory.empty()) << p.name;
  const auto parse = [](const std::string& rest) {
    return parse_profile(R"({"profile": "p", "purpose": "", "needs": ["linear"], )" + rest + "}",
                         [](const std::string& name) { return embedded("profiles/" + name + ".json"); });
  };
  EXPECT_EQ(parse(R"("mandatory": [")" + some_case() + "\"]").mandatory.size(), 1u);
  EXPECT_EQ(refusal([&] { parse(R"("mandatory": [])"); }), Code::INTERNAL);
  EXPECT_EQ(refusal([&] { parse(R"("mandatory": ["no.such.case"])"); }), Code::INTERNAL);
  EXPECT_EQ(refusal([&] { parse(R"("mandatory": 3)"); }), Code::INTERNAL);
  EXPECT_EQ(refusal([&] { parse(R"("includes": ["no_such_profile"], "mandatory": [])"); }), Code::INTERNAL);
  EXPECT_EQ(refusal([&] { parse(R"("includes": ["cuda"], "mandatory": [])"); }), Code::INTERNAL) << "no chains";
  EXPECT_GT(parse(R"("includes": ["linear"], "mandatory": [])").mandatory.size(), 100u);
}

TEST(Profiles, cuda_is_the_rest_on_a_device) {  // SQ-CNF-022, SQ-CNF-028
  const auto find = [](const std::string& name) {
    for (const Profile& p : all_profiles())
      if (p.name == name) return p;
    throw std::runtime_error("no profile " + name);
  };
  std::set<std::string> rest;
  for (const char* name : {"linear", "lora-training", "streaming"}) rest.merge(find(name).mandatory);
  std::set<std::string> cuda;
  for (const std::string& id : find("cuda").mandatory)
    if (id.find("rms_norm_rope") == std::string::npos) cuda.insert(id);  // what it alone demands
  EXPECT_EQ(cuda, rest);
  Description d;
  d.groups = {"linear", "lora", "stream"};
  const auto chosen = [&] {
    std::set<std::string> names;
    for (const Profile& p : choose_profiles({}, d)) names.insert(p.name);
    return names;
  };
  EXPECT_FALSE(chosen().contains("cuda"));
  d.device = "cuda";
  EXPECT_TRUE(chosen().contains("cuda"));
  // Insisting on it for an implementation of another device fails, although every case passes.
  Crafted crafted({Status::pass});
  crafted.run.profiles = {{"cuda", "", {"device:cuda"}, {"crafted.0"}}};
  judge(crafted.run);
  EXPECT_FALSE(crafted.run.good);
  ASSERT_EQ(crafted.run.unmet.size(), 1u);
  EXPECT_EQ(crafted.run.unmet[0].case_id, "describe offers device:cuda");
  crafted.run.description.device = "cuda";
  judge(crafted.run);
  EXPECT_TRUE(crafted.run.conformant);
}

}  // namespace
}  // namespace squareq::gates
