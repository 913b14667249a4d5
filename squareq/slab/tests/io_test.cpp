// Files that are not files, files that change, and the writer's promises under kill, full disks and refused renames.
// SQ-FMT-090 to 096; situations of spec/70-errors.md.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <atomic>
#include <cerrno>
#include <thread>

#include "squareq/slab/contained_open.hpp"
#include "squareq/slab/tests/pair.hpp"

namespace squareq {
namespace {

namespace fs = std::filesystem;
using test::code_set;
using test::Pair;
using test::Scratch;

template <typename Action>
std::string code_of(Action action) {
  try {
    action();
  } catch (const Error& e) {
    return std::string(code_name(e.code()));
  }
  return "OK";
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(InputFile, WhatIsNotARegularFile) {
  const Scratch scratch;
  const auto open = [](const fs::path& path) { return code_of([&] { InputFile::open(path); }); };
  EXPECT_EQ(open(scratch / "absent"), "IO_MISSING");
  EXPECT_EQ(open(scratch.path()), "IO_NOT_REGULAR");
  ASSERT_EQ(mkfifo((scratch / "fifo").c_str(), 0600), 0);
  EXPECT_EQ(open(scratch / "fifo"), "IO_NOT_REGULAR");  // and does not block
  EXPECT_EQ(open("/dev/null"), "IO_NOT_REGULAR");
  fs::create_symlink("loop_b", scratch / "loop_a");
  fs::create_symlink("loop_a", scratch / "loop_b");
  EXPECT_EQ(open(scratch / "loop_a"), "IO_LOOP");
  test::write_file(scratch / "file", "x");
  EXPECT_EQ(open(scratch / "file" / "below"), "IO_MISSING");
  fs::create_symlink("file", scratch / "link");
  EXPECT_EQ(open(scratch / "link"), "OK");  // a path that the user gave is followed
  const int socket_fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "%s", (scratch / "socket").c_str());
  ASSERT_EQ(bind(socket_fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(open(scratch / "socket"), "IO_NOT_REGULAR");
  close(socket_fd);
}

TEST(InputFile, NoPermission) {
  if (geteuid() == 0) GTEST_SKIP() << "the superuser may read everything";
  const Scratch scratch;
  test::write_file(scratch / "secret", "x");
  chmod((scratch / "secret").c_str(), 0);
  EXPECT_EQ(code_of([&] { InputFile::open(scratch / "secret"); }), "IO_PERM");
}

TEST(InputFile, ErrnoBecomesTheRightCode) {
  EXPECT_EQ(code_of_errno(EACCES), Code::IO_PERM);
  EXPECT_EQ(code_of_errno(EROFS), Code::IO_PERM);
  EXPECT_EQ(code_of_errno(ENOSPC), Code::IO_NO_SPACE);
  EXPECT_EQ(code_of_errno(EFBIG), Code::IO_NO_SPACE);
  EXPECT_EQ(code_of_errno(EDQUOT), Code::IO_NO_SPACE);
  EXPECT_EQ(code_of_errno(EIO), Code::IO_ERROR);
  EXPECT_EQ(code_of_errno(ENOMEM), Code::HOST_OOM);
}

TEST(InputFile, TruncatedOrOverwrittenAfterOpen) {  // SQ-FMT-091
  const Scratch scratch;
  const SlabPaths paths = Pair{}.write(scratch);
  const Slab slab = Slab::open(paths.slab);
  std::vector<char> bytes(8);
  EXPECT_EQ(code_of([&] { slab.file().check_unchanged(); }), "OK");
  fs::resize_file(paths.slab, slab.file().header().data_start + 4);
  EXPECT_EQ(code_of([&] { slab.file().read(*slab.tensors(0).qweight, 0, bytes.data(), 8); }), "IO_CHANGED");
  EXPECT_EQ(code_of([&] { slab.file().check_unchanged(); }), "IO_CHANGED");

  Pair{}.write(scratch, "two");
  const Slab two = Slab::open(scratch / "two");
  const timespec times[2] = {{1, 0}, {1, 0}};
  utimensat(AT_FDCWD, (scratch / "two.safetensors").c_str(), times, 0);
  EXPECT_EQ(code_of([&] { two.file().check_unchanged(); }), "IO_CHANGED");
}

TEST(InputFile, PastTheEndIsAShortRead) {  // SQ-FMT-091
  const Scratch scratch;
  test::write_file(scratch / "file", "12345");
  const InputFile file = InputFile::open(scratch / "file");
  char bytes[8];
  EXPECT_EQ(code_of([&] { file.read(2, bytes, 3); }), "OK");
  EXPECT_EQ(code_of([&] { file.read(2, bytes, 4); }), "IO_SHORT_READ");
}

TEST(InputFile, ReplacedByRenameServesTheOldBytes) {
  const Scratch scratch;
  const SlabPaths paths = Pair{}.write(scratch);
  const Slab slab = Slab::open(paths.slab);
  Pair other;
  other.tensors["a.scale"].bytes = test::floats({9, 9});
  other.write(scratch);
  float scales[2];
  slab.file().read(*slab.tensors(0).scale, 0, scales, sizeof scales);
  EXPECT_EQ(scales[0], 0.5f);
  EXPECT_EQ(code_of([&] { slab.file().check_unchanged(); }), "OK");
}

TEST(ContainedOpen, NamesStayInTheirFolder) {
  const Scratch scratch;
  fs::create_directories(scratch / "model");
  test::write_file(scratch / "outside", "x");
  test::write_file(scratch / "model/inside", "x");
  const auto open = [&](std::string_view name, const char* folder = "model") { return code_of([&] { contained_open(scratch / folder, name); }); };
  EXPECT_EQ(open("inside"), "OK");
  EXPECT_EQ(open("absent"), "IO_MISSING");
  for (const std::string_view name : {std::string_view(""), std::string_view("."), std::string_view(".."), std::string_view("../outside"), std::string_view("/etc/passwd"), std::string_view("a\\b"),
                                      std::string_view("C:x"), std::string_view("inside\0x", 8), std::string_view("./inside")})
    EXPECT_EQ(open(name), "IO_ESCAPE") << name;
  fs::create_symlink("inside", scratch / "model/near");
  EXPECT_EQ(open("near"), "OK");
  fs::create_symlink("../outside", scratch / "model/far");
  EXPECT_EQ(open("far"), "IO_ESCAPE");
  fs::create_symlink("/etc/hostname", scratch / "model/absolute");
  EXPECT_EQ(open("absolute"), "IO_ESCAPE");
  fs::create_directories(scratch / "model_other");
  test::write_file(scratch / "model_other/x", "x");
  fs::create_symlink("../model_other/x", scratch / "model/prefix");
  EXPECT_EQ(open("prefix"), "IO_ESCAPE");  // a sibling whose name begins with the folder's
}

TEST(ContainedOpen, HuggingFaceCachesAreLinks) {
  const Scratch scratch;
  fs::create_directories(scratch / "hub/models--org--m/blobs");
  fs::create_directories(scratch / "hub/models--org--m/snapshots/rev/transformer");
  fs::create_directories(scratch / "hub/models--org--other/blobs");
  test::write_file(scratch / "hub/models--org--m/blobs/sha", "x");
  test::write_file(scratch / "hub/models--org--other/blobs/sha", "x");
  const fs::path folder = scratch / "hub/models--org--m/snapshots/rev/transformer";
  fs::create_symlink("../../../blobs/sha", folder / "good");
  fs::create_symlink("../../../../models--org--other/blobs/sha", folder / "bad");
  EXPECT_EQ(code_of([&] { contained_open(folder, "good"); }), "OK");
  EXPECT_EQ(code_of([&] { contained_open(folder, "bad"); }), "IO_ESCAPE");
}

TEST(Writer, LeavesNothingBehindWhenAbandoned) {
  const Scratch scratch;
  {
    SafetensorsWriter writer(scratch / "x.safetensors", {{"a", FileDtype::U8, {4}}});
    EXPECT_EQ(names_in(scratch.path()).size(), 1u);
    EXPECT_EQ(names_in(scratch.path())[0].substr(0, 15), ".x.safetensors.");
  }
  EXPECT_TRUE(names_in(scratch.path()).empty());
}

TEST(Writer, RefusesWhatItCannotWrite) {
  const Scratch scratch;
  const auto make = [&](std::vector<TensorSpec> specs, Metadata metadata = {}) { return code_of([&] { make_layout(std::move(specs), metadata); }); };
  EXPECT_EQ(make({{"a", FileDtype::U8, {1}}, {"a", FileDtype::F32, {1}}}), "CALL_VALUE");
  EXPECT_EQ(make({{"__metadata__", FileDtype::U8, {1}}}), "CALL_VALUE");
  EXPECT_EQ(make({{"\xff", FileDtype::U8, {1}}}), "CALL_VALUE");
  EXPECT_EQ(make({{"a", FileDtype::F4, {3}}}), "CALL_VALUE");
  EXPECT_EQ(make({{"a", FileDtype::U8, {1ull << 40, 1ull << 40}}}), "CALL_VALUE");
  EXPECT_EQ(make({{"a", FileDtype::U8, {(1ull << 61) - 1}}, {"b", FileDtype::U8, {(1ull << 61) - 1}}}), "OK");
  EXPECT_EQ(make({}, {{"k", "1"}, {"k", "2"}}), "CALL_VALUE");
  SafetensorsWriter writer(scratch / "x.safetensors", {{"a", FileDtype::U8, {4}}});
  EXPECT_EQ(code_of([&] { writer.write("b", 0, "x", 1); }), "CALL_VALUE");
  EXPECT_EQ(code_of([&] { writer.write("a", 3, "xx", 2); }), "CALL_VALUE");
  EXPECT_EQ(code_of([&] { writer.replace_metadata({{"longer", "header"}}); }), "CALL_VALUE");
  EXPECT_EQ(code_of([&] { SafetensorsWriter(scratch / "nowhere/x.safetensors", {}); }), "IO_MISSING");
  test::write_file(scratch / "file", "x");
  EXPECT_EQ(code_of([&] { SafetensorsWriter(scratch / "file/x.safetensors", {}); }), "IO_NOT_REGULAR");
}

TEST(Writer, PartialFileContinuesOrStartsAgain) {
  const Scratch scratch;
  SafetensorsWriter::Options options;
  options.partial_name = ".x.partial";
  const std::vector<TensorSpec> specs = {{"a", FileDtype::U8, {4}}, {"b", FileDtype::U8, {4}}};
  {
    SafetensorsWriter writer(scratch / "x.safetensors", specs, {}, options);
    EXPECT_FALSE(writer.resumed());
    writer.write("a", 0, "1234", 4);
    EXPECT_EQ(code_of([&] { SafetensorsWriter(scratch / "x.safetensors", specs, {}, options); }), "IO_LOCKED");
  }
  EXPECT_EQ(names_in(scratch.path()), std::vector<std::string>{".x.partial"});
  {
    // Same size, other names: not the same build.
    SafetensorsWriter writer(scratch / "x.safetensors", {{"c", FileDtype::U8, {4}}, {"d", FileDtype::U8, {4}}}, {}, options);
    EXPECT_FALSE(writer.resumed());
    writer.file().discard();
  }
  {
    SafetensorsWriter writer(scratch / "x.safetensors", specs, {}, options);
    EXPECT_FALSE(writer.resumed());
    writer.write("a", 0, "1234", 4);
    writer.sync();
  }
  SafetensorsWriter writer(scratch / "x.safetensors", specs, {}, options);
  EXPECT_TRUE(writer.resumed());
  char found[4];
  writer.read(0, 0, found, 4);
  EXPECT_EQ(std::string_view(found, 4), "1234");
  writer.write("b", 0, "5678", 4);
  writer.commit();
  EXPECT_EQ(names_in(scratch.path()), std::vector<std::string>{"x.safetensors"});
  EXPECT_EQ(SafetensorsFile::open(scratch / "x.safetensors").read_all("b").size(), 4u);
}

TEST(Writer, ThreadsWriteAnywhere) {
  const Scratch scratch;
  std::vector<TensorSpec> specs;
  for (int i = 0; i < 64; ++i) specs.push_back({"t" + std::to_string(i), FileDtype::U8, {1000}});
  SafetensorsWriter writer(scratch / "x.safetensors", specs);
  std::vector<std::thread> pool;
  for (int t = 0; t < 4; ++t)
    pool.emplace_back([&, t] {
      for (int i = t; i < 64; i += 4)
        for (std::uint64_t at = 0; at < 1000; at += 100) writer.write("t" + std::to_string(i), at, std::string(100, static_cast<char>('0' + i)).data(), 100);
    });
  for (std::thread& thread : pool) thread.join();
  writer.commit();
  const SafetensorsFile file = SafetensorsFile::open(scratch / "x.safetensors");
  for (int i = 0; i < 64; ++i)
    for (const std::byte b : file.read_all("t" + std::to_string(i))) ASSERT_EQ(static_cast<int>(b), '0' + i);
}

TEST(Writer, RenameRefusedKeepsAndNamesTheTemporary) {  // SQ-FMT-096
  for (const int error : {EXDEV, ENOSYS}) {
    const Scratch scratch;
    SafetensorsWriter::Options options;
    options.seams.rename = [error](const std::string&, const std::string&) { return error; };
    std::string message;
    {
      SafetensorsWriter writer(scratch / "x.safetensors", {{"a", FileDtype::U8, {0}}}, {}, options);
      try {
        writer.commit();
        FAIL();
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), Code::IO_RENAME);
        message = e.what();
      }
    }
    const auto names = names_in(scratch.path());
    ASSERT_EQ(names.size(), 1u);
    EXPECT_NE(message.find(names[0]), std::string::npos);
  }
}

TEST(Writer, SpaceIsReservedBeforeTheWork) {  // SQ-FMT-093
  const Scratch scratch;
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1 << 20, 1 << 20};
    setrlimit(RLIMIT_FSIZE, &limit);
    const std::string code = code_of([&] { SafetensorsWriter(scratch / "x.safetensors", {{"a", FileDtype::U8, {2u << 20}}}); });
    _exit(code == "IO_NO_SPACE" ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(names_in(scratch.path()).empty());
}

TEST(Publish, TwoWritersOfOneFolderWait) {
  const Scratch scratch;
  const FolderLock held(scratch.path(), std::chrono::milliseconds(0));
  PublishOptions options;
  options.lock_timeout = std::chrono::milliseconds(50);
  EXPECT_EQ(code_of([&] { Pair{}.publish(scratch, options); }), "IO_LOCKED");
  EXPECT_TRUE(names_in(scratch.path()).empty());
}

TEST(Publish, OrderOfSteps) {  // SQ-FMT-094
  const Scratch scratch;
  std::vector<std::string> renames;
  PublishOptions options;
  options.seams.step = [&](std::string_view step, const fs::path& target) {
    if (step == "rename" || step == "remove manifest") renames.push_back(std::string(step) + " " + target.filename().string());
  };
  Pair{}.publish(scratch, options);
  EXPECT_EQ(renames, (std::vector<std::string>{"remove manifest pair.manifest.json", "rename pair.safetensors", "rename pair.companion.safetensors", "rename pair.manifest.json"}));
}

// Kill -9 before every single step of replacing one slab by another: what is left is the old triple, the new one, or a slab that is
// refused because its manifest is missing; never a mixture. The next run clears the temporaries.
TEST(Publish, KilledAtEveryStep) {  // SQ-FMT-095
  Pair old_pair, new_pair;
  new_pair.tensors["a.scale"].bytes = test::floats({3, 4});
  int step_count = 0, refused = 0, complete = 0;
  for (bool finished = false; !finished; ++step_count) {
    const Scratch scratch;
    const SlabPaths paths = old_pair.publish(scratch);
    const std::string old_slab = test::read_file(paths.slab);
    const pid_t child = fork();
    if (child == 0) {
      int at = 0;
      PublishOptions options;
      options.seams.step = [&](std::string_view, const fs::path&) {
        if (at++ == step_count) kill(getpid(), SIGKILL);
      };
      new_pair.publish(scratch, options);
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    finished = WIFEXITED(status);
    const Report report = validate(paths);
    if (report.ok()) {
      ++complete;
      EXPECT_EQ(test::read_file(paths.slab) == old_slab, !finished && test::read_file(paths.slab) == old_slab);
    } else {
      ++refused;
      EXPECT_TRUE(report.has(Code::MF_MISSING)) << step_count;
      EXPECT_EQ(code_of([&] { Slab::open(paths.slab); }).substr(0, 3), "MF_");
    }
    new_pair.publish(scratch);
    EXPECT_TRUE(validate(paths).ok());
    EXPECT_EQ(names_in(scratch.path()).size(), 3u) << step_count;
  }
  EXPECT_GT(step_count, 15);
  EXPECT_GT(refused, 2);
  EXPECT_GT(complete, 10);
}

TEST(Publish, BarePairRemovesAnOldCompanion) {
  const Scratch scratch;
  const SlabPaths paths = Pair{}.publish(scratch);
  const Pair pair;
  SafetensorsWriter writer(paths.slab, pair.specs());
  for (const auto& [name, t] : pair.tensors) writer.write(name, 0, t.bytes.data(), t.bytes.size());
  publish_slab(paths, writer, nullptr, pair.text);
  EXPECT_EQ(names_in(scratch.path()), (std::vector<std::string>{"pair.manifest.json", "pair.safetensors"}));
  EXPECT_TRUE(validate(paths).ok());
}

TEST(Publish, StaleTemporariesGoLivingOnesStay) {
  const Scratch scratch;
  test::write_file(scratch / ".x.safetensors.123.0123456789abcdef.tmp", "");
  test::write_file(scratch / ".x.safetensors.more.123.0123456789abcdef.tmp", "");
  test::write_file(scratch / ".x.safetensors.tmp", "");
  SafetensorsWriter living(scratch / "x.safetensors", {});
  EXPECT_EQ(remove_stale_temporaries(scratch.path(), "x.safetensors"), 1);
  EXPECT_EQ(names_in(scratch.path()).size(), 3u);
  living.commit();
}

}  // namespace
}  // namespace squareq
