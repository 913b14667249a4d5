// The program as a user starts it: exit statuses, and what stands on standard output (spec/70-errors.md).
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include <sys/wait.h>
#include <unistd.h>

#include "fixtures/places.hpp"
#include "squareq/error.hpp"

namespace squareq {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class Program : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "squareq_cli_XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
    program = fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "bin" / "squareq";
    ASSERT_TRUE(fs::exists(program)) << program;
  }
  void TearDown() override { fs::remove_all(folder); }

  struct Ran {
    int status = -1;
    std::string out;
  };
  /// Runs the program by the shell; standard error goes to a file of its own.
  Ran run(const std::string& arguments) const {
    const std::string line = program.string() + " " + arguments + " 2>" + (folder / "stderr").string();
    Ran ran;
    FILE* pipe = ::popen(line.c_str(), "r");
    if (!pipe) return ran;
    for (char buffer[4096]; const std::size_t n = std::fread(buffer, 1, sizeof buffer, pipe);) ran.out.append(buffer, n);
    const int raw = ::pclose(pipe);
    ran.status = WIFEXITED(raw) ? WEXITSTATUS(raw) : -1;
    return ran;
  }
  /// A golden pair of fixtures/slab as files; returns the slab's path.
  std::string good_pair() const {
    std::ifstream file(test::fixtures() / "slab/v2_pairs.json");
    const json all = json::parse(file);
    const json& pair = all.at("pairs").at(0);
    const std::string text = pair.at("safetensors_base64").get<std::string>();
    std::string bytes;
    unsigned bits = 0;
    int count = 0;
    const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (const char c : text) {
      if (c == '=') break;
      bits = bits << 6 | static_cast<unsigned>(alphabet.find(c));
      if ((count += 6) >= 8) bytes += static_cast<char>(bits >> (count -= 8) & 0xFF);
    }
    std::ofstream(folder / "good.safetensors", std::ios::binary) << bytes;
    std::ofstream(folder / "good.manifest.json", std::ios::binary) << pair.at("manifest_text").get<std::string>();
    return (folder / "good.safetensors").string();
  }

  fs::path folder, program;
};

TEST_F(Program, ExitStatusesAreThoseOfTheCodesClass) {  // SQ-ERR-002
  const std::string slab = good_pair();
  EXPECT_EQ(run("--version").status, 0);
  EXPECT_EQ(run("verify " + slab).status, 0);
  EXPECT_EQ(run("gates --list").status, 0);
  std::ofstream(folder / "cut.safetensors") << "short";
  fs::copy_file(folder / "good.manifest.json", folder / "cut.manifest.json");
  EXPECT_EQ(run("verify " + (folder / "cut.safetensors").string()).status, 1);
  EXPECT_EQ(run("frobnicate").status, 2);
  EXPECT_EQ(run("verify").status, 2);
  EXPECT_EQ(run("gates --gate 16").status, 2);
  EXPECT_EQ(run("gates --profile no_such_profile").status, 2);
  EXPECT_EQ(run("build --model " + (folder / "absent").string() + " --out " + folder.string() + " --name n").status, 3);
}

TEST_F(Program, GatesRefuseFlagsThatContradictEachOther) {  // SQ-ADP-052
  EXPECT_EQ(run("gates --adapter true --backend cpu").status, 2);
  EXPECT_EQ(run("gates --smoke").status, 2);
}

TEST(ExitStatus, FollowsTheClassOfTheCode) {  // SQ-ERR-002
  EXPECT_EQ(exit_status(Code::OK), 0);
  EXPECT_EQ(exit_status(Code::DT_UNVERIFIED), 0);
  EXPECT_EQ(exit_status(Code::MF_COUNT), 1);
  EXPECT_EQ(exit_status(Code::CK_MISMATCH), 1);
  EXPECT_EQ(exit_status(Code::CFG_VALUE), 2);
  EXPECT_EQ(exit_status(Code::CALL_SHAPE), 2);
  EXPECT_EQ(exit_status(Code::GPU_OOM), 3);
  EXPECT_EQ(exit_status(Code::IO_MISSING), 3);
  EXPECT_EQ(exit_status(Code::IO_INTERRUPTED), 130);
}

TEST_F(Program, JsonIsOneObjectAndNothingElse) {  // SQ-ERR-004
  const std::string slab = good_pair();
  for (const auto& [arguments, status] : {std::pair<std::string, int>{"verify " + slab + " --json", 0}, {"inspect " + slab + " --json", 0}, {"gates --list --json", 0},
                                          {"verify " + (folder / "absent").string() + " --json", 3},
                                          {"gates --backend no_such_backend --json", 2}}) {
    const Ran ran = run(arguments);
    EXPECT_EQ(ran.status, status) << arguments;
    const json object = json::parse(ran.out, nullptr, false);
    EXPECT_TRUE(object.is_object()) << arguments << ": " << ran.out.substr(0, 200);
    if (status && object.is_object()) {
      ASSERT_TRUE(object.contains("problems") && object["problems"].is_array() && !object["problems"].empty()) << arguments << ": " << ran.out;
      EXPECT_FALSE(object["problems"][0]["code"].get<std::string>().empty());
    }
  }
}

TEST_F(Program, ANamedBackendIsNeverReplaced) {  // SQ-ERR-006
  const Ran ran = run("gates --backend no_such_backend --gate 5 --json");
  EXPECT_EQ(ran.status, 2);
  EXPECT_EQ(json::parse(ran.out).at("problems").at(0).at("code"), "CFG_BACKEND");
  EXPECT_EQ(run("build --model " + (test::fixtures() / "emoji/transformer").string() + " --out " + folder.string() + " --name n --backend no_such_backend").status, 2);
  EXPECT_FALSE(fs::exists(folder / "n.safetensors"));
}

}  // namespace
}  // namespace squareq
