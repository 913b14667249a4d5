// A slab from the bytes of others (SlabAssembly, behind convert and splice): rows land where they are sent, what was read is checked, and a
// refusal leaves the folder as it was.
#include <gtest/gtest.h>

#include "squareq/slab/assemble.hpp"
#include "squareq/slab/tests/outcome.hpp"
#include "squareq/slab/tests/pair.hpp"

namespace squareq {
namespace {

using test::codes_of;
using test::files_of;
using test::floats;
using test::holds;
using test::Pair;
using test::problem_of;
using test::Scratch;
using test::tensor_bytes;
using Part = SlabAssembly::Part;

constexpr const char* layer_parts[] = {".qweight", ".scale", ".zero_point", ".bias"};

const TensorRecord& record(const Slab& slab, const std::string& name) { return *slab.file().header().find(name); }

/// Everything of the pair, but what `left_out` names.
SlabAssembly whole(const Slab& slab, const std::string& left_out = {}) {
  SlabAssembly assembly(slab.manifest());
  for (const TensorRecord& t : slab.file().header().tensors)
    if (t.name != left_out) assembly.take(slab, Part::slab, t, t.name);
  if (slab.companion()) {
    assembly.with_companion({{"norm.weight", FileDtype::BF16, {3}}}, slab.companion()->architecture_json, slab.companion()->source_json);
    if (left_out != "norm.weight") assembly.take(slab, Part::companion, *slab.companion()->file.header().find("norm.weight"), "norm.weight");
  }
  return assembly;
}

TEST(Assemble, AllTensorsTogetherAreTheSourceByteForByte) {
  for (const unsigned threads : {1u, 4u}) {
    const Scratch scratch;
    const SlabPaths from = Pair{}.publish(scratch, {}, "from"), to = SlabPaths::resolve(scratch / "to");
    const Slab slab = Slab::open(from.slab);
    std::uint64_t last = 0, all = 0;
    AssembleOptions options;
    options.threads = threads;
    options.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view) { last = done, all = total; };
    const AssembleResult result = whole(slab).write(to, options);
    EXPECT_EQ(test::read_file(to.slab), test::read_file(from.slab));
    EXPECT_EQ(test::read_file(to.manifest), test::read_file(from.manifest));
    EXPECT_EQ(test::read_file(to.companion), test::read_file(from.companion));
    EXPECT_EQ(result.id_sha256, slab.companion()->integrity.id_sha256);
    EXPECT_EQ(result.slab_bytes, std::filesystem::file_size(to.slab));
    EXPECT_EQ(result.companion_bytes, std::filesystem::file_size(to.companion));
    EXPECT_EQ(result.paths.companion, to.companion);
    EXPECT_EQ(all, 12u + 4 * (2 + 2 + 2 + 1 + 1) + 6);  // codes, the fp32 parts, one bf16 norm of 3
    EXPECT_EQ(last, all);
    EXPECT_TRUE(validate(to).ok());
    EXPECT_EQ(files_of(scratch.path()).size(), 6u);
  }
}

TEST(Assemble, ABarePairLeavesNoCompanionNotEvenAnOldOne) {
  const Scratch scratch;
  const SlabPaths from = Pair{}.write(scratch, "from"), to = Pair{}.publish(scratch, {}, "to");
  ASSERT_TRUE(std::filesystem::exists(to.companion));
  const AssembleResult result = whole(Slab::open(from.slab)).write(to, {});
  EXPECT_FALSE(std::filesystem::exists(to.companion));
  EXPECT_TRUE(result.paths.companion.empty());
  EXPECT_EQ(result.companion_bytes, 0u);
  EXPECT_EQ(test::read_file(to.slab), test::read_file(from.slab));
  EXPECT_TRUE(validate(SlabPaths::resolve(to.slab)).ok());
}

TEST(Assemble, RowsOfTwoSlabsLandWhereTheyAreSent) {
  const Scratch scratch;
  Pair other;
  other.tensors.at("a.qweight").bytes = codes_of({11, 12, 13, 0, 21, 22, 23, 0});
  other.tensors.at("a.scale").bytes = floats({8, 16});
  other.tensors.at("a.bias").bytes = floats({100, 200});
  const Slab a = Slab::open(Pair{}.publish(scratch, {}, "a").slab), b = Slab::open(other.publish(scratch, {}, "b").slab);
  // A layer of three rows: the first slab's second row, then the other's first, then the first slab's first.
  Manifest manifest = a.manifest();
  manifest.layers = {make_layer("joined", 3, 3, 4, true)};
  SlabAssembly assembly(manifest);
  const std::vector<std::pair<const Slab*, std::uint64_t>> rows = {{&a, 1}, {&b, 0}, {&a, 0}};
  for (std::uint64_t to = 0; to < rows.size(); ++to)
    for (const char* part : layer_parts) {
      const std::uint64_t row = part == layer_parts[0] ? 4 : sizeof(float);
      assembly.take(*rows[to].first, Part::slab, record(*rows[to].first, std::string("a") + part), rows[to].second * row, std::string("joined") + part, to * row, row);
    }
  const SlabPaths to = SlabPaths::resolve(scratch / "to");
  assembly.write(to, {});
  EXPECT_EQ(tensor_bytes(to.slab, "joined.qweight"), codes_of({-127, 0, 1, 0, 11, 12, 13, 0, 127, -3, 4, 0}));
  EXPECT_EQ(tensor_bytes(to.slab, "joined.scale"), floats({0.25f, 8, 0.5f}));
  EXPECT_EQ(tensor_bytes(to.slab, "joined.zero_point"), floats({0, 0, 0}));
  EXPECT_EQ(tensor_bytes(to.slab, "joined.bias"), floats({-1, 100, 1}));
  EXPECT_TRUE(validate(to).ok());
}

/// A refused write: its problem; the folder holds what it held.
Problem refused(const Scratch& scratch, const SlabAssembly& planned, const AssembleOptions& options = {}) {
  SlabAssembly assembly = planned;
  const std::vector<std::string> before = files_of(scratch.path());
  const Problem problem = problem_of([&] { assembly.write(SlabPaths::resolve(scratch / "to"), options); });
  EXPECT_EQ(files_of(scratch.path()), before) << problem.message;
  return problem;
}

TEST(Assemble, PiecesMustCoverEveryTargetExactlyOnce) {
  const Scratch scratch;
  const Slab slab = Slab::open(Pair{}.publish(scratch, {}, "from").slab);
  const TensorRecord& codes = record(slab, "a.qweight");
  struct Wrong {
    const char* what;
    const char* tensor;
    std::vector<std::string> says;
    std::function<void(SlabAssembly&)> pieces;
  };
  const auto piece = [&](std::uint64_t from, std::uint64_t to, std::uint64_t bytes) {
    return [&, from, to, bytes](SlabAssembly& a) { a.take(slab, Part::slab, codes, from, "a.qweight", to, bytes); };
  };
  const auto both = [](auto first, auto second) { return [=](SlabAssembly& a) { first(a), second(a); }; };
  const std::vector<Wrong> all = {
      {"nothing at all", "a.qweight", {"8 bytes", "byte 0"}, [](SlabAssembly&) {}},
      {"a missing end", "a.qweight", {"8 bytes", "byte 4"}, piece(0, 0, 4)},
      {"a missing start", "a.qweight", {"8 bytes", "byte 0", "byte 4"}, piece(4, 4, 4)},
      {"a gap", "a.qweight", {"byte 3", "byte 4"}, both(piece(0, 0, 3), piece(4, 4, 4))},
      {"an overlap", "a.qweight", {"byte 5", "byte 4"}, both(piece(0, 0, 5), piece(4, 4, 4))},
      {"an overlap that adds up", "a.qweight", {"byte 5", "3 bytes at byte 4"}, both(piece(0, 0, 5), piece(4, 4, 3))},
      {"a part given twice", "a.qweight", {"byte 8", "byte 2"}, both(piece(0, 0, 8), piece(2, 2, 2))},
      {"a piece past the target's end", "a.qweight", {"byte 4", "5 bytes at byte 4"}, both(piece(0, 0, 4), piece(3, 4, 5))},
      {"a piece past the source's end", "a.qweight", {"has 8 bytes", "8 from byte 4"}, piece(4, 0, 8)},
      {"a piece from far outside", "a.qweight", {"has 8 bytes", "from byte 18446744073709551615"}, piece(~0ull, 0, 8)},
      {"a tensor that the result does not have", "c.qweight", {"not in the result"}, both(piece(0, 0, 8), [&](SlabAssembly& a) { a.take(slab, Part::slab, codes, "c.qweight"); })},
  };
  for (const Wrong& w : all) {
    SlabAssembly assembly = whole(slab, "a.qweight");
    w.pieces(assembly);
    const Problem p = refused(scratch, assembly);
    EXPECT_EQ(p.code, Code::INTERNAL) << w.what;
    EXPECT_EQ(p.tensor, w.tensor) << w.what << ": " << p.message;
    EXPECT_TRUE(holds(p.message, w.says)) << w.what << ": " << p.message;
  }
  EXPECT_EQ(refused(scratch, whole(slab, "norm.weight")).tensor, "norm.weight");
  // A companion's tensor for a result that has none.
  SlabAssembly bare(slab.manifest());
  for (const TensorRecord& t : slab.file().header().tensors) bare.take(slab, Part::slab, t, t.name);
  bare.take(slab, Part::companion, *slab.companion()->file.header().find("norm.weight"), "norm.weight");
  const Problem p = refused(scratch, bare);
  EXPECT_EQ(p.code, Code::INTERNAL);
  EXPECT_EQ(p.tensor, "norm.weight");
}

TEST(Assemble, AChangedByteOfAnyTensorIsFound) {
  const Scratch scratch;
  const SlabPaths from = Pair{}.publish(scratch, {}, "from");
  const std::string slab_bytes = test::read_file(from.slab), companion_bytes = test::read_file(from.companion);
  const auto changed = [&](const std::filesystem::path& file, const std::string& tensor, std::size_t at, char value) {
    test::write_file(from.slab, slab_bytes);
    test::write_file(from.companion, companion_bytes);
    test::change_byte(file, tensor, at, value);
    const Slab slab = Slab::open(from.slab);
    const Problem p = refused(scratch, whole(slab));
    EXPECT_EQ(p.code, Code::DT_CHECKSUM) << tensor << ": " << p.message;
    EXPECT_EQ(p.tensor, tensor);
    EXPECT_EQ(p.file, file.string());
    return p;
  };
  const Problem p = changed(from.slab, "a.qweight", 1, 5);
  EXPECT_EQ(p.layer, "a");
  // Both digests: the companion's, and that of the bytes as they are now.
  const auto record = nlohmann::json::parse(test::header_of(companion_bytes).at("__metadata__").at("squareq.integrity").get<std::string>());
  const std::string now = codes_of({127, 5, 4, 0, -127, 0, 1, 0});
  Xxh3 hash;
  hash.update(now.data(), now.size());
  EXPECT_TRUE(holds(p.message, {"a.qweight", digest_hex(hash.digest()), record.at("tensors").at("a.qweight").get<std::string>()})) << p.message;
  changed(from.slab, "b.c.qweight", 3, 126);
  changed(from.slab, "a.scale", 0, 1);
  changed(from.slab, "a.bias", 4, 1);
  changed(from.companion, "norm.weight", 5, 0x40);
}

TEST(Assemble, ABarePairIsCheckedForWhatNoCodeMayBe) {
  for (const auto& [at, value, code] : {std::tuple(5, static_cast<char>(-128), Code::DT_Q_MIN128), std::tuple(7, static_cast<char>(1), Code::DT_PAD_NONZERO)}) {
    const Scratch scratch;
    const SlabPaths from = Pair{}.write(scratch, "from");
    test::change_byte(from.slab, "a.qweight", static_cast<std::size_t>(at), value);
    const Problem p = refused(scratch, whole(Slab::open(from.slab)));
    EXPECT_EQ(p.code, code) << p.message;
    EXPECT_EQ(p.layer, "a");
    EXPECT_TRUE(holds(p.message, {"row 1"})) << p.message;
  }
}

TEST(Assemble, ASourceThatChangesUnderwayIsNamed) {
  const Scratch scratch;
  const Slab slab = Slab::open(Pair{}.write(scratch, "from").slab);
  const SlabAssembly assembly = whole(slab);
  std::filesystem::resize_file(slab.paths().slab, std::filesystem::file_size(slab.paths().slab) + 1);
  const Problem p = refused(scratch, assembly);
  EXPECT_EQ(p.code, Code::IO_CHANGED);
  EXPECT_EQ(p.file, slab.paths().slab.string());
}

TEST(Assemble, InterruptedItLeavesNothingAndTheOldSlabStays) {
  const Scratch scratch;
  const Slab slab = Slab::open(Pair{}.publish(scratch, {}, "from").slab);
  Pair old;
  old.tensors.at("a.scale").bytes = floats({2, 4});
  const SlabPaths to = old.publish(scratch, {}, "to");
  const std::string before = test::read_file(to.slab);
  const std::atomic<bool> cancelled{true};
  AssembleOptions options;
  options.cancelled = &cancelled;
  EXPECT_EQ(refused(scratch, whole(slab), options).code, Code::IO_INTERRUPTED);
  EXPECT_EQ(test::read_file(to.slab), before);
  EXPECT_TRUE(validate(to).ok());
}

TEST(Assemble, AFolderThatIsNotThereIsNamed) {
  const Scratch scratch;
  const Slab slab = Slab::open(Pair{}.write(scratch, "from").slab);
  SlabAssembly assembly = whole(slab);
  const Problem p = problem_of([&] { assembly.write(SlabPaths::resolve(scratch / "none/to"), {}); });
  EXPECT_EQ(p.code, Code::IO_MISSING);
  EXPECT_TRUE(holds(p.message + p.file, {(scratch / "none").string()})) << p.message;
}

TEST(Assemble, ALayerOfSeveralPiecesHasNoSeam) {  // 9 MiB of codes: two pieces of at most 8 MiB, and rows in reverse order
  const Scratch scratch;
  constexpr std::uint64_t rows = 9, columns = 1 << 20;
  std::string codes(rows * columns, 0);
  for (std::uint64_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<char>(i * 2654435761u >> 24 & 63);
  Pair pair;
  pair.tensors = {{"w.qweight", {FileDtype::I8, {rows, columns}, codes}},
                  {"w.scale", {FileDtype::F32, {rows}, floats(std::vector<float>(rows, 0.5f))}},
                  {"w.zero_point", {FileDtype::F32, {rows}, floats(std::vector<float>(rows, 0.0f))}}};
  pair.manifest.layers = {make_layer("w", rows, columns, 64, false)};
  pair.text = manifest_text(pair.manifest);
  const Slab slab = Slab::open(pair.publish(scratch, {}, "from").slab);
  SlabAssembly assembly(slab.manifest());
  std::string expected;
  for (std::uint64_t r = 0; r < rows; ++r) {
    assembly.take(slab, Part::slab, record(slab, "w.qweight"), (rows - 1 - r) * columns, "w.qweight", r * columns, columns);
    expected += codes.substr((rows - 1 - r) * columns, columns);
  }
  for (const char* part : {"w.scale", "w.zero_point"}) assembly.take(slab, Part::slab, record(slab, part), part);
  const SlabPaths to = SlabPaths::resolve(scratch / "to");
  assembly.write(to, {});
  EXPECT_TRUE(tensor_bytes(to.slab, "w.qweight") == expected);
  // A code that may not be, in a row of the second piece: named by its row in the layer.
  pair.tensors.at("w.qweight").bytes[8 * columns + 5] = static_cast<char>(-128);
  const Slab bad = Slab::open(pair.write(scratch, "bad").slab);
  const Problem p = problem_of([&] { whole(bad).write(to, {}); });
  EXPECT_EQ(p.code, Code::DT_Q_MIN128);
  EXPECT_TRUE(holds(p.message, {"row 8"})) << p.message;
}

}  // namespace
}  // namespace squareq
