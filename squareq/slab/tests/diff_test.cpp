// How two slabs differ (squareq diff): every count and norm against numbers worked out by hand from the small pair of pair.hpp.
#include <gtest/gtest.h>

#include <cmath>

#include "squareq/slab/diff.hpp"
#include "squareq/slab/tests/outcome.hpp"
#include "squareq/slab/tests/pair.hpp"

namespace squareq {
namespace {

using test::codes_of;
using test::floats;
using test::Pair;
using test::problem_of;
using test::Scratch;

struct Two {
  Scratch scratch;
  Pair a, b;
  bool companions = true;

  SlabDiff diff(const DiffOptions& options = {}) const {
    const SlabPaths at_a = companions ? a.publish(scratch, {}, "a") : a.write(scratch, "a");
    const SlabPaths at_b = companions ? b.publish(scratch, {}, "b") : b.write(scratch, "b");
    return diff_slabs(Slab::open(at_a.slab), Slab::open(at_b.slab), options);
  }
};

/// The layers of the pair in another manifest.
void set_layers(Pair& pair, std::vector<ManifestLayer> layers) {
  pair.manifest.layers = std::move(layers);
  pair.text = manifest_text(pair.manifest);
}

TEST(Diff, TwoBuildsOfTheSameDifferInNothing) {
  Two two;
  std::uint64_t last = 0, whole = 0;
  DiffOptions options;
  options.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view) { last = done, whole = total; };
  const SlabDiff diff = two.diff(options);
  EXPECT_TRUE(diff.same());
  EXPECT_TRUE(diff.fields.empty());
  ASSERT_EQ(diff.layers.size(), 2u);
  EXPECT_EQ(diff.layers[0].name, "a");
  EXPECT_EQ(diff.layers[1].name, "b.c");
  EXPECT_EQ(diff.layers[0].codes, 6u);  // [2, 3], the padding column is no code
  EXPECT_EQ(diff.layers[1].codes, 4u);
  for (const LayerDiff& l : diff.layers) {
    EXPECT_TRUE(l.same && l.compared && l.where == Where::both) << l.name;
    EXPECT_EQ(l.codes_changed + l.scales_changed + l.zero_points_changed + l.biases_changed, 0u) << l.name;
    EXPECT_EQ(l.scale_ratio, 1) << l.name;
    EXPECT_EQ(l.relative_l2, 0) << l.name;
  }
  ASSERT_EQ(diff.companion.size(), 1u);
  EXPECT_TRUE(diff.companion[0].same);
  EXPECT_EQ(whole, 12u);  // padded codes of the first slab: 2 x 4 and 1 x 4
  EXPECT_EQ(last, 12u);
}

TEST(Diff, CodesScalesAndBiasesAreCountedAndMeasured) {
  Two two;
  two.b.tensors.at("a.qweight").bytes = codes_of({127, 2, 4, 0, -126, 0, 1, 0});  // -3 -> 2 and -127 -> -126
  two.b.tensors.at("a.scale").bytes = floats({0.5f, 0.5f});                      // 0.25 -> 0.5
  two.b.tensors.at("a.bias").bytes = floats({1, 3});                             // -1 -> 3
  const SlabDiff diff = two.diff();
  EXPECT_FALSE(diff.same());
  EXPECT_TRUE(diff.fields.empty());
  const LayerDiff& l = diff.layers.at(0);
  EXPECT_FALSE(l.same);
  EXPECT_TRUE(diff.layers.at(1).same);
  EXPECT_EQ(l.codes_changed, 2u);
  EXPECT_EQ(l.max_code_difference, 5);
  EXPECT_EQ(l.scales_changed, 1u);
  EXPECT_EQ(l.scale_ratio, 2);
  EXPECT_EQ(l.zero_points_changed, 0u);
  EXPECT_EQ(l.biases_changed, 1u);
  EXPECT_EQ(l.max_bias_difference, 4);
  // Wa = (63.5, -1.5, 2; -31.75, 0, 0.25), Wb = (63.5, 1, 2; -63, 0, 0.5).
  const double difference = 2.5 * 2.5 + 31.25 * 31.25 + 0.25 * 0.25, size = 63.5 * 63.5 + 1 + 4 + 63 * 63 + 0.25;
  EXPECT_DOUBLE_EQ(l.relative_l2, std::sqrt(difference / size));
}

TEST(Diff, AScaleMovesEveryNumberOfItsRow) {
  Two two;
  two.b.tensors.at("b.c.scale").bytes = floats({4});  // W = (1, 2, 3, 127) and 4 W: 3/4 of the latter
  EXPECT_EQ(two.diff().layers.at(1).relative_l2, 0.75);
  EXPECT_EQ(two.diff().layers.at(1).codes_changed, 0u);
}

TEST(Diff, OneChangeOfEachKindIsADifference) {
  const auto changed = [](const char* tensor, const std::string& bytes) {
    Two two;
    two.b.tensors.at(tensor).bytes = bytes;
    return two.diff();
  };
  EXPECT_EQ(changed("b.c.qweight", codes_of({1, 2, 3, 126})).layers.at(1).codes_changed, 1u);
  EXPECT_EQ(changed("b.c.scale", floats({4})).layers.at(1).scale_ratio, 4);
  EXPECT_EQ(changed("b.c.scale", floats({0.125f})).layers.at(1).scale_ratio, 8);  // the larger of a/b and b/a
  EXPECT_EQ(changed("b.c.zero_point", floats({-0.0f})).layers.at(1).zero_points_changed, 1u);  // bit for bit
  EXPECT_EQ(changed("a.bias", floats({1, -1.5f})).layers.at(0).max_bias_difference, 0.5);
  for (const auto& [tensor, bytes] : {std::pair("b.c.qweight", codes_of({1, 2, 3, 126})), std::pair("b.c.scale", floats({4})),
                                      std::pair("b.c.zero_point", floats({-0.0f})), std::pair("a.bias", floats({1, -1.5f}))})
    EXPECT_FALSE(changed(tensor, bytes).same()) << tensor;
}

TEST(Diff, NothingToMeasureAgainstIsEndless) {
  Two two;
  two.b.tensors.at("b.c.qweight").bytes = codes_of({0, 0, 0, 0});
  const SlabDiff diff = two.diff();
  EXPECT_TRUE(std::isinf(diff.layers.at(1).relative_l2));
  EXPECT_EQ(diff_json(diff).at("layers").at(0).at("relative_l2"), "Infinity");
  std::swap(two.a, two.b);
  EXPECT_EQ(two.diff().layers.at(1).relative_l2, 1);
  two.b = two.a;
  EXPECT_EQ(two.diff().layers.at(1).relative_l2, 0);  // 0 against 0
}

TEST(Diff, OtherPaddingIsAnotherLayerWithTheSameNumbers) {
  Two two;
  set_layers(two.b, {make_layer("a", 2, 3, 1, true), make_layer("b.c", 1, 4, 4, false)});
  two.b.tensors.at("a.qweight") = {FileDtype::I8, {2, 3}, codes_of({127, -3, 4, -127, 0, 1})};
  const SlabDiff diff = two.diff();
  const LayerDiff& l = diff.layers.at(0);
  EXPECT_FALSE(diff.same() || l.same);
  EXPECT_TRUE(l.compared);
  EXPECT_EQ(l.pad_k_a, 4u);
  EXPECT_EQ(l.pad_k_b, 1u);
  EXPECT_EQ(l.codes_changed, 0u);
  EXPECT_EQ(l.relative_l2, 0);
}

TEST(Diff, LayersOfOneSlabAndLayersOfOtherShapesAreNotCompared) {
  Two two;
  for (const char* part : {".qweight", ".scale", ".zero_point"}) {
    two.b.tensors[std::string("d") + part] = two.b.tensors.at(std::string("b.c") + part);
    two.b.tensors.erase(std::string("b.c") + part);
  }
  two.b.tensors.erase("a.bias");
  set_layers(two.b, {make_layer("a", 2, 4, 4, false), make_layer("d", 1, 4, 4, false)});
  const SlabDiff diff = two.diff();
  EXPECT_FALSE(diff.same());
  ASSERT_EQ(diff.layers.size(), 3u);
  EXPECT_TRUE(diff.layers[0].where == Where::both && !diff.layers[0].compared && !diff.layers[0].same);
  EXPECT_EQ(diff.layers[0].shape_a, (std::array<std::uint64_t, 2>{2, 3}));
  EXPECT_EQ(diff.layers[0].shape_b, (std::array<std::uint64_t, 2>{2, 4}));
  EXPECT_TRUE(diff.layers[0].bias_a && !diff.layers[0].bias_b);
  EXPECT_TRUE(diff.layers[1].name == "b.c" && diff.layers[1].where == Where::only_a);
  EXPECT_TRUE(diff.layers[2].name == "d" && diff.layers[2].where == Where::only_b);
  const auto json = diff_json(diff);
  EXPECT_EQ(json.at("layers").at(0).at("shape").dump(), "[[2,3],[2,4]]");
  EXPECT_EQ(json.at("layers").at(0).at("compared"), false);
  EXPECT_EQ(json.at("layers").at(1).at("only_in"), "a");
  EXPECT_EQ(json.at("layers").at(2).at("only_in"), "b");
  EXPECT_EQ(json.at("layers").at(2).at("shape").dump(), "[1,4]");
}

TEST(Diff, ABiasOfOneSlabIsADifference) {
  Two two;
  two.b.tensors.erase("a.bias");
  set_layers(two.b, {make_layer("a", 2, 3, 4, false), make_layer("b.c", 1, 4, 4, false)});
  const SlabDiff diff = two.diff();
  EXPECT_TRUE(diff.layers.at(0).compared && diff.layers.at(0).bias_a);
  EXPECT_FALSE(diff.layers.at(0).same || diff.layers.at(0).bias_b);
}

TEST(Diff, FieldsAreNamedWithBothValues) {
  Two two;
  two.b.manifest.model_signature = "fedcba9876543210";
  two.b.manifest.architecture_id = "other";
  two.b.text = manifest_text(two.b.manifest);
  two.b.architecture = R"({"id":"other"})";
  two.b.source = R"({"files":["x"]})";
  const SlabDiff diff = two.diff();
  EXPECT_FALSE(diff.same());
  ASSERT_EQ(diff.fields.size(), 4u);
  const std::vector<std::array<std::string, 3>> expected = {{"model_signature", "0123456789abcdef", "fedcba9876543210"},
                                                            {"architecture_id", "test", "other"},
                                                            {"squareq.architecture", two.a.architecture, two.b.architecture},
                                                            {"squareq.source", two.a.source, two.b.source}};
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ((std::array<std::string, 3>{diff.fields[i].name, diff.fields[i].a, diff.fields[i].b}), expected[i]);
    EXPECT_EQ(diff.fields[i].counts, i != 3) << "where numbers came from is no difference of numbers";
    const auto json = diff_json(diff).at("fields").at(i);
    EXPECT_EQ(json.at("name"), expected[i][0]);
    EXPECT_EQ(json.at("b"), expected[i][2]);
  }
}

TEST(Diff, ASourceAloneIsNoDifference) {
  Two two;
  two.b.source = R"({"files":["x"]})";
  const SlabDiff diff = two.diff();
  EXPECT_EQ(diff.fields.size(), 1u);
  EXPECT_TRUE(diff.same());
  EXPECT_EQ(diff_json(diff).at("ok"), true);
}

TEST(Diff, CompanionsAreComparedBitForBit) {
  Two two;
  two.b.norm.bytes = std::string("\x80\x3f\x80\x3f\x81\x3f", 6);  // bf16 1 + 2^-7 instead of 1
  const SlabDiff diff = two.diff();
  EXPECT_FALSE(diff.same());
  ASSERT_EQ(diff.companion.size(), 1u);
  EXPECT_EQ(diff.companion[0].name, "norm.weight");
  EXPECT_EQ(diff.companion[0].beyond, 1u);
  EXPECT_EQ(diff.companion[0].max_abs, 0x1p-7);
  EXPECT_EQ(diff.companion[0].worst, std::vector<std::uint64_t>{2});
  EXPECT_EQ(diff_json(diff).at("companion_same"), 0);
  EXPECT_EQ(diff_json(diff).at("layers_same"), 2);
  EXPECT_TRUE(diff_json(diff).at("layers").empty());
}

TEST(Diff, ABarePairDiffersFromOneWithACompanion) {
  Two two;
  const SlabPaths a = two.a.publish(two.scratch, {}, "a"), b = two.b.write(two.scratch, "b");
  const SlabDiff diff = diff_slabs(Slab::open(a.slab), Slab::open(b.slab));
  EXPECT_FALSE(diff.same());
  ASSERT_EQ(diff.fields.size(), 1u);
  EXPECT_EQ(diff.fields[0].name, "companion");
  EXPECT_EQ(diff.fields[0].a + " " + diff.fields[0].b, "present absent");
  EXPECT_TRUE(diff.companion.empty());
  Two bare;
  bare.companions = false;
  EXPECT_TRUE(bare.diff().same());
}

TEST(Diff, ALargeLayerIsReadInPiecesWithoutASeam) {  // 9 MiB of codes: three pieces of at most 4 MiB
  Two two;
  constexpr std::uint64_t rows = 2304, columns = 4096;
  for (Pair* pair : {&two.a, &two.b}) {
    pair->tensors = {{"w.qweight", {FileDtype::I8, {rows, columns}, std::string(rows * columns, 1)}},
                     {"w.scale", {FileDtype::F32, {rows}, floats(std::vector<float>(rows, 0.5f))}},
                     {"w.zero_point", {FileDtype::F32, {rows}, floats(std::vector<float>(rows, 0.0f))}}};
    set_layers(*pair, {make_layer("w", rows, columns, 64, false)});
  }
  for (const std::uint64_t row : {std::uint64_t{0}, std::uint64_t{1023}, std::uint64_t{1024}, rows - 1}) two.b.tensors.at("w.qweight").bytes[row * columns] = 3;
  const SlabDiff diff = two.diff();
  EXPECT_EQ(diff.layers.at(0).codes, rows * columns);
  EXPECT_EQ(diff.layers.at(0).codes_changed, 4u);
  EXPECT_EQ(diff.layers.at(0).max_code_difference, 2);
  EXPECT_DOUBLE_EQ(diff.layers.at(0).relative_l2, std::sqrt(4 * 4 / (rows * columns + 4 * 8.0)));
}

TEST(Diff, StopsWhenAsked) {
  Two two;
  const std::atomic<bool> cancelled{true};
  DiffOptions options;
  options.cancelled = &cancelled;
  EXPECT_EQ(problem_of([&] { two.diff(options); }).code, Code::IO_INTERRUPTED);
}

TEST(Diff, AFileThatChangedUnderwayIsNamed) {
  Two two;
  const Slab a = Slab::open(two.a.write(two.scratch, "a").slab), b = Slab::open(two.b.write(two.scratch, "b").slab);
  std::filesystem::resize_file(b.paths().slab, std::filesystem::file_size(b.paths().slab) + 1);
  const Problem p = problem_of([&] { diff_slabs(a, b); });
  EXPECT_EQ(p.code, Code::IO_CHANGED);
  EXPECT_EQ(p.file, b.paths().slab.string());
}

}  // namespace
}  // namespace squareq
