// kill -9 at every point of a build, then the same command: the same bytes, finished layers reused (facts: bad-input 7.1, 8).
#include <sys/wait.h>

#include <csignal>
#include <thread>

#include "squareq/builder/journal.hpp"
#include "support.hpp"

namespace squareq::builder_test {
namespace {

std::vector<SourceTensor> model() {
  std::vector<SourceTensor> tensors;
  for (std::uint32_t i = 0; i < 6; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".proj";
    tensors.push_back({name + ".weight", "BF16", {96, 130}, bf16_noise(96 * 130, i)});
    tensors.push_back({name + ".bias", "BF16", {96}, bf16_noise(96, 100 + i)});
    tensors.push_back({"blocks." + std::to_string(i) + ".norm.weight", "BF16", {130}, bf16_noise(130, 200 + i)});
  }
  return tensors;
}

struct Triple {
  std::string slab, manifest, companion;
  bool operator==(const Triple&) const = default;
};

Triple read(const SlabPaths& paths) { return {slurp(paths.slab), slurp(paths.manifest), slurp(paths.companion)}; }

/// Runs a build in a child that kills itself at the n-th `point`. True when it was killed, false when it finished first.
bool killed_at(BuildOptions options, const std::string& point, int n) {
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> seen{0};
    options.at_point = [&](std::string_view p) {
      if (p == point && ++seen == n) kill(getpid(), SIGKILL);
    };
    try {
      build(options);
    } catch (...) {
      _exit(3);
    }
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
  return WIFSIGNALED(status);
}

TEST(Resume, KillAtEveryPointThenTheSameBytes) {
  Scratch s;
  spit(s / "m.safetensors", container(model()));
  const Triple expected = read(build(options_for(s / "m.safetensors", s.folder("whole"))).paths);
  int kills = 0;
  for (const char* point : {"create", "reserve", "write", "layer", "rest", "publish", "fsync", "remove manifest", "rename", "fsync folder"})
    for (int n = 1;; ++n) {
      const fs::path out = s.folder("out");
      const BuildOptions o = options_for(s / "m.safetensors", out);
      const bool killed = killed_at(o, point, n);
      kills += killed;
      const BuildResult r = build(o);
      EXPECT_EQ(read(r.paths), expected) << point << " " << n;
      EXPECT_EQ(files_in(out), 3u) << "nothing is left over: " << point << " " << n;
      const std::size_t finished = std::string(point) == "layer" ? static_cast<std::size_t>(n) : std::string(point) == "publish" ? 6 : 0;
      EXPECT_GE(r.reused_layers, killed ? finished : 0) << point << " " << n;
      fs::remove_all(out);
      if (!killed || n == 12) break;
    }
  EXPECT_GT(kills, 30);
}

TEST(Resume, KilledAfterTheSlabWasRenamedReusesEveryLayer) {
  Scratch s;
  spit(s / "m.safetensors", container(model()));
  const Triple expected = read(build(options_for(s / "m.safetensors", s.folder("whole"))).paths);
  const BuildOptions o = options_for(s / "m.safetensors", s.folder("out"));
  ASSERT_TRUE(killed_at(o, "fsync folder", 1));
  EXPECT_TRUE(fs::exists(s / "out/slab.safetensors"));
  EXPECT_TRUE(validate(SlabPaths::resolve(s / "out/slab.safetensors")).has(Code::MF_MISSING)) << "refused until it is whole";
  const BuildResult r = build(o);
  EXPECT_EQ(r.reused_layers, 6u);
  EXPECT_EQ(read(r.paths), expected);
}

TEST(Resume, KilledAtRandomTimes) {
  Scratch s;
  std::vector<SourceTensor> tensors = model();
  for (std::uint32_t i = 0; i < 24; ++i)
    tensors.push_back({"big." + std::to_string(i) + ".weight", "BF16", {512, 1024}, bf16_noise(512 * 1024, 300 + i)});
  spit(s / "m.safetensors", container(tensors));
  const Triple expected = read(build(options_for(s / "m.safetensors", s.folder("whole"))).paths);
  const BuildOptions o = options_for(s / "m.safetensors", s.folder("out"));
  for (int round = 0; round < 8; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      try {
        build(o);
      } catch (...) {
      }
      _exit(0);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2 + 11 * round));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
  EXPECT_EQ(read(build(o).paths), expected);
  EXPECT_EQ(files_in(o.out), 3u);
}

TEST(Resume, DamagedPartialIsNotTrusted) {
  Scratch s;
  spit(s / "m.safetensors", container(model()));
  const Triple expected = read(build(options_for(s / "m.safetensors", s.folder("whole"))).paths);
  const BuildOptions o = options_for(s / "m.safetensors", s.folder("out"));
  ASSERT_TRUE(killed_at(o, "publish", 1));
  for (const auto& entry : fs::directory_iterator(o.out))
    if (entry.path().extension() == ".partial") {
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(-5, std::ios::end);
      file.put('\x55');
    }
  const BuildResult r = build(o);
  EXPECT_EQ(r.reused_layers, 5u);
  EXPECT_EQ(read(r.paths), expected);
}

TEST(Resume, AnotherBuildLeavesThePartialAloneAndSaysSo) {
  Scratch s;
  spit(s / "m.safetensors", container(model()));
  BuildOptions o = options_for(s / "m.safetensors", s.folder("out"));
  ASSERT_TRUE(killed_at(o, "layer", 3));
  BuildOptions other = o;
  other.pack_k = 1;
  const BuildResult r = build(other);
  EXPECT_EQ(r.reused_layers, 0u);
  ASSERT_TRUE(r.report.has(Code::IO_PARTIAL));
  EXPECT_EQ(files_in(o.out), 5u) << "the triple, the other build's partial file and its journal";
  EXPECT_GE(build(o).reused_layers, 3u);
  EXPECT_EQ(files_in(o.out), 3u);
}

TEST(Resume, AChangedSourceIsAnotherBuild) {
  Scratch s;
  spit(s / "m.safetensors", container(model()));
  const BuildOptions o = options_for(s / "m.safetensors", s.folder("out"));
  ASSERT_TRUE(killed_at(o, "layer", 4));
  std::vector<SourceTensor> changed = model();
  changed[0].data = bf16_noise(96 * 130, 77);
  fs::remove(s / "m.safetensors");
  spit(s / "m.safetensors", container(changed));
  const BuildResult r = build(o);
  EXPECT_EQ(r.reused_layers, 0u);
  const BuildResult clean = build(options_for(s / "m.safetensors", s.folder("clean")));
  EXPECT_EQ(slurp(r.paths.slab), slurp(clean.paths.slab));
}

TEST(Resume, InterruptionKeepsThePartialAndStops) {
  Scratch s;
  spit(s / "m.safetensors", container(model()));
  BuildOptions o = options_for(s / "m.safetensors", s.folder("out"));
  std::atomic<bool> cancelled{true};
  o.cancelled = &cancelled;
  o.threads = 1;
  o.at_point = [](std::string_view point) {
    if (point == "layer") std::this_thread::sleep_for(std::chrono::milliseconds(150));
  };
  EXPECT_EQ(problem_of(o).code, Code::IO_INTERRUPTED);
  EXPECT_EQ(files_in(o.out), 2u);
  o.cancelled = nullptr;
  o.at_point = nullptr;
  const BuildResult r = build(o);
  EXPECT_GE(r.reused_layers, 1u);
  EXPECT_EQ(files_in(o.out), 3u);
}

TEST(JournalFile, IgnoresACutLineAndAForeignIdentity) {
  Scratch s;
  const fs::path path = s / "j";
  const JournalEntry one{{1, 2, 3}, 0}, two{{4, 5, 6, 7}, 9};
  {
    Journal j(path, "me");
    j.append(0, one);
    j.append(5, two);
  }
  EXPECT_EQ(Journal(path, "me").entries(), (std::map<std::size_t, JournalEntry>{{0, one}, {5, two}}));
  const std::string text = slurp(path);
  spit(path, text.substr(0, text.size() - 4));
  {
    Journal j(path, "me");
    EXPECT_EQ(j.entries(), (std::map<std::size_t, JournalEntry>{{0, one}}));
    j.append(5, two);
  }
  EXPECT_EQ(slurp(path), text);
  EXPECT_TRUE(Journal(path, "you").entries().empty());
  spit(path, std::string(1000, '\xff'));
  EXPECT_TRUE(Journal(path, "me").entries().empty());
}

}  // namespace
}  // namespace squareq::builder_test
