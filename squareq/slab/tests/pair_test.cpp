// Tensors against manifest, numbers, and the companion. SQ-FMT-060 to 072.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "squareq/slab/check.hpp"
#include "squareq/slab/tests/pair.hpp"

namespace squareq {
namespace {

using test::code_set;
using test::codes_of;
using test::floats;
using test::Pair;
using test::Scratch;

// Codes of a bare pair, without the remark that a bare pair has no checksums.
std::string codes(const Pair& pair, bool quick = false) {
  const Scratch scratch;
  ValidateOptions options;
  options.quick = quick;
  Report report = validate(pair.write(scratch), options);
  std::erase_if(report.warnings, [](const Problem& p) { return p.code == Code::DT_UNVERIFIED; });
  return code_set(report);
}

float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

TEST(Pair, GoodPairIsGood) { EXPECT_EQ(codes(Pair{}), ""); }

TEST(Pair, TensorsAgainstManifest) {
  for (const char* name : {"a.qweight", "a.scale", "a.zero_point", "a.bias"}) {
    Pair absent;
    absent.tensors.erase(name);
    EXPECT_EQ(codes(absent), "MF_KEY_ABSENT") << name;
  }
  Pair u8;
  u8.tensors["a.qweight"].dtype = FileDtype::U8;
  EXPECT_EQ(codes(u8), "MF_DTYPE");
  for (const char* name : {"a.scale", "a.zero_point", "a.bias"}) {
    Pair half;
    half.tensors[name] = {FileDtype::F16, {2}, std::string(4, '\0')};
    EXPECT_EQ(codes(half), "MF_DTYPE") << name;
    Pair broadcast;
    broadcast.tensors[name] = {FileDtype::F32, {1}, floats({1})};
    EXPECT_EQ(codes(broadcast), "MF_SHAPE") << name;
    Pair column;
    column.tensors[name] = {FileDtype::F32, {2, 1}, floats({1, 1})};
    EXPECT_EQ(codes(column), "MF_SHAPE") << name;
  }
  Pair unpadded;
  unpadded.tensors["a.qweight"] = {FileDtype::I8, {2, 3}, codes_of({127, 0, 0, 0, 0, 127})};
  EXPECT_EQ(codes(unpadded), "MF_PACK MF_SHAPE");
  Pair transposed;
  transposed.tensors["a.qweight"].shape = {4, 2};
  EXPECT_EQ(codes(transposed), "MF_SHAPE");
  Pair flat;
  flat.tensors["a.qweight"].shape = {8};
  EXPECT_EQ(codes(flat), "MF_SHAPE");
}

TEST(Pair, Orphans) {
  Pair bias;
  bias.replace("\"bias_key\": \"a.bias\"", "\"bias_key\": null");
  EXPECT_EQ(codes(bias), "MF_ORPHAN");
  for (const char* suffix : {".qweight", ".scale", ".zero_point", ".bias"}) {
    Pair extra;
    extra.tensors[std::string("lost") + suffix] = {FileDtype::F32, {1}, floats({1})};
    EXPECT_EQ(codes(extra), "MF_ORPHAN") << suffix;
  }
  Pair marker;
  marker.tensors["scaled_fp8"] = {FileDtype::F8_E4M3, {0}, ""};
  EXPECT_EQ(codes(marker), "w:MF_ORPHAN");
  // A key that is missing is told once; its tensor is not an orphan as well.
  Pair missing;
  missing.replace("\"scale_key\": \"a.scale\",", "");
  EXPECT_EQ(codes(missing), "MF_MISSING");
}

TEST(Pair, NamesAndRanks) {
  for (const std::string& name : {std::string("x/y"), std::string("x\\y"), std::string("x..y"), std::string("\x1b"), std::string(513, 'x'), std::string("\xE2\x80\xAE")}) {
    Pair pair;
    pair.tensors[name] = {FileDtype::U8, {1}, "x"};
    EXPECT_EQ(codes(pair), "MF_NAME w:MF_ORPHAN");
  }
  Pair rank;
  rank.tensors["marker"] = {FileDtype::U8, {1, 1, 1, 1, 1, 1, 1, 1, 1}, "x"};
  EXPECT_EQ(codes(rank), "ST_RANK w:MF_ORPHAN");
  rank.tensors["marker"].shape.pop_back();
  EXPECT_EQ(codes(rank), "w:MF_ORPHAN");
}

TEST(Pair, Scales) {
  const auto with_scale = [](float s) {
    Pair pair;
    pair.tensors["a.scale"].bytes = floats({0.5f, s});
    return codes(pair, true);
  };
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float s : {infinity, -infinity, std::nanf("")}) EXPECT_EQ(with_scale(s), "DT_SCALE_NONFINITE");
  for (const float s : {0.0f, -0.0f, -1.0f, -1e-40f}) EXPECT_EQ(with_scale(s), "DT_SCALE_NONPOS") << s;
  EXPECT_EQ(with_scale(from_bits(0x322bcc77)), "");            // 1e-8, the builder's floor
  EXPECT_EQ(with_scale(from_bits(0x7c010204)), "DT_SCALE_RANGE");  // FLT_MAX / 127 rounded up: 127 times it is infinite
  EXPECT_EQ(with_scale(from_bits(0x7c010203)), "w:DT_SCALE_RANGE");
  EXPECT_EQ(with_scale(515.78f), "w:DT_SCALE_RANGE");
  EXPECT_EQ(with_scale(515.0f), "");
  EXPECT_EQ(with_scale(1e-39f), "w:DT_SCALE_SUBNORMAL");
  EXPECT_EQ(with_scale(std::numeric_limits<float>::min()), "");
}

TEST(Pair, ZeroPointsAndBiases) {
  const auto with = [](const char* name, float value) {
    Pair pair;
    pair.tensors[name].bytes = floats({0, value});
    return codes(pair, true);
  };
  EXPECT_EQ(with("a.zero_point", -0.0f), "");
  for (const float z : {1.0f, -1e-45f, std::nanf(""), std::numeric_limits<float>::infinity()}) EXPECT_EQ(with("a.zero_point", z), "DT_ZP_NONZERO") << z;
  EXPECT_EQ(with("a.bias", 3e38f), "");
  for (const float b : {std::nanf(""), std::numeric_limits<float>::infinity()}) EXPECT_EQ(with("a.bias", b), "DT_BIAS_NONFINITE");
}

TEST(Pair, CodesAndPadding) {
  Pair minimum;
  minimum.tensors["a.qweight"].bytes = codes_of({127, -3, 4, 0, -128, 0, 1, 0});
  EXPECT_EQ(codes(minimum), "DT_Q_MIN128");
  EXPECT_EQ(codes(minimum, true), "");  // codes are not read at open
  Pair padding;
  padding.tensors["a.qweight"].bytes = codes_of({127, -3, 4, 0, -127, 0, 1, 5});
  EXPECT_EQ(codes(padding), "DT_PAD_NONZERO");
  Pair both;
  both.tensors["a.qweight"].bytes = codes_of({127, -3, 4, 0, -127, 0, 1, -128});
  EXPECT_EQ(codes(both), "DT_PAD_NONZERO DT_Q_MIN128");
  Pair zero_row;
  zero_row.tensors["a.qweight"].bytes = codes_of({0, 0, 0, 0, 1, 2, 3, 0});
  EXPECT_EQ(codes(zero_row), "");
}

// The scan says the same whatever the pieces; rows are counted from the tensor's start.
TEST(Pair, CodesInPieces) {
  const ManifestLayer layer = make_layer("x", 50, 61, 64, false);
  std::vector<std::int8_t> codes(50 * 64, 1);
  for (std::size_t i = 0; i < codes.size(); ++i)
    if (i % 64 >= 61) codes[i] = 0;
  codes[7 * 64 + 63] = 9;
  codes[31 * 64 + 2] = -128;
  for (const std::size_t piece : {std::size_t{1}, std::size_t{7}, std::size_t{64}, std::size_t{100}, codes.size()}) {
    CodeScan scan(layer);
    for (std::size_t at = 0; at < codes.size(); at += piece) scan.feed(at, codes.data() + at, std::min(piece, codes.size() - at));
    Report report;
    scan.tell(layer, "f", report);
    ASSERT_EQ(code_set(report), "DT_PAD_NONZERO DT_Q_MIN128");
    EXPECT_NE(report.problems[0].message.find("row 31, column 2"), std::string::npos);
    EXPECT_NE(report.problems[1].message.find("row 7, column 63"), std::string::npos);
  }
  Report report;
  check_codes(layer, 7, 1, codes.data() + 7 * 64, "f", report);
  ASSERT_EQ(code_set(report), "DT_PAD_NONZERO");
  EXPECT_NE(report.problems[0].message.find("row 7,"), std::string::npos);
}

TEST(Pair, FaultsOfBothFilesAreReportedTogether) {
  const Scratch scratch;
  Pair pair;
  pair.tensors["b.c.scale"].bytes = floats({0});
  pair.tensors["a.qweight"].bytes[3] = 1;
  pair.tensors.erase("a.bias");
  pair.replace("squareq_bp8_v2", "x");
  pair.replace("\"layer_count\": 2", "\"layer_count\": 3");
  const Report report = validate(pair.write(scratch));
  EXPECT_EQ(code_set(report), "DT_PAD_NONZERO DT_SCALE_NONPOS MF_COUNT MF_KEY_ABSENT MF_VERSION w:DT_UNVERIFIED");
  const auto scale = std::find_if(report.problems.begin(), report.problems.end(), [](const Problem& p) { return p.code == Code::DT_SCALE_NONPOS; });
  ASSERT_NE(scale, report.problems.end());
  EXPECT_TRUE(scale->layer == "b.c" && scale->tensor == "b.c.scale" && scale->message.find("row 0") != std::string::npos) << scale->message;
  EXPECT_EQ(report.exit_status(), 1);
}

TEST(Pair, OneBadFileDoesNotHideTheOther) {
  const Scratch scratch;
  Pair pair;
  pair.replace("squareq_bp8_v2", "x");
  const SlabPaths paths = pair.write(scratch);
  const std::string slab = test::read_file(paths.slab);
  test::write_file(paths.slab, slab.substr(0, slab.size() - 1));
  EXPECT_EQ(code_set(validate(paths)), "MF_VERSION ST_TRUNCATED w:DT_UNVERIFIED");
  test::write_file(paths.manifest, "{");
  EXPECT_EQ(code_set(validate(paths)), "MF_JSON ST_TRUNCATED w:DT_UNVERIFIED");
}

TEST(Pair, MissingFiles) {
  const Scratch scratch;
  const SlabPaths paths = Pair{}.write(scratch);
  std::filesystem::remove(paths.manifest);
  Report report = validate(paths);
  EXPECT_EQ(code_set(report), "MF_MISSING w:DT_UNVERIFIED");
  EXPECT_EQ(report.exit_status(), 1);
  std::filesystem::remove(paths.slab);
  report = validate(paths);
  EXPECT_EQ(code_set(report), "IO_MISSING MF_MISSING w:DT_UNVERIFIED");
  EXPECT_EQ(report.exit_status(), 3);
}

TEST(Pair, ExpectedModel) {
  const Scratch scratch;
  const SlabPaths paths = Pair{}.write(scratch);
  ValidateOptions options;
  options.expected_signature = "0123456789abcdef";
  options.expected_architecture = "test";
  EXPECT_TRUE(validate(paths, options).ok());
  options.expected_signature = "1123456789abcdef";
  EXPECT_TRUE(validate(paths, options).has(Code::MF_SIGNATURE));
  options.expected_architecture = "other";
  EXPECT_TRUE(validate(paths, options).has(Code::MF_ARCH));
}

TEST(Pair, PathsFromAnyName) {
  for (const char* name : {"d/x.v1", "d/x.v1.safetensors", "d/x.v1.manifest.json", "d/x.v1.companion.safetensors"}) {
    const SlabPaths paths = SlabPaths::resolve(name);
    EXPECT_EQ(paths.slab, "d/x.v1.safetensors");
    EXPECT_EQ(paths.manifest, "d/x.v1.manifest.json");
    EXPECT_EQ(paths.companion, "d/x.v1.companion.safetensors");
  }
}

TEST(Pair, OpenGivesLayersAndTensors) {
  const Scratch scratch;
  const SlabPaths paths = Pair{}.publish(scratch);
  const Slab slab = Slab::open(paths.manifest);
  ASSERT_EQ(slab.layer_count(), 2u);
  EXPECT_EQ(slab.find_layer("b.c"), 1u);
  EXPECT_FALSE(slab.find_layer("b"));
  EXPECT_EQ(slab.tensors(0).bias->name, "a.bias");
  EXPECT_EQ(slab.tensors(1).bias, nullptr);
  ASSERT_NE(slab.companion(), nullptr);
  EXPECT_TRUE(slab.warnings().empty());
  EXPECT_EQ(slab.companion()->file.read_all("norm.weight").size(), 6u);
  EXPECT_EQ(slab.companion()->architecture_json, R"({"id":"test","config":{}})");
  EXPECT_EQ(slab.expected_digest("a.scale"), tensor_digest(slab.file(), *slab.tensors(0).scale));
  // The identity of the bare pair is the one that the companion recorded.
  const std::string id = slab.id_sha256();
  std::filesystem::remove(paths.companion);
  EXPECT_EQ(Slab::open(paths.slab).id_sha256(), id);
}

TEST(Pair, OpenThrowsTheFirstProblemAndCountsTheRest) {
  const Scratch scratch;
  Pair pair;
  pair.tensors.erase("a.bias");
  pair.tensors.erase("a.scale");
  pair.write(scratch);
  try {
    Slab::open(scratch / "pair");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::MF_KEY_ABSENT);
    EXPECT_NE(std::string(e.what()).find("1 more problem"), std::string::npos);
  }
}

}  // namespace
}  // namespace squareq
