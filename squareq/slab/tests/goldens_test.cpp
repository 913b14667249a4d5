// The V2 pair, byte for byte, against the Python builder's goldens. SQ-FMT-031 to 036, 040, 050.

#include <gtest/gtest.h>

#include "squareq/slab/digest.hpp"
#include "squareq/slab/manifest.hpp"
#include "squareq/slab/signature.hpp"
#include "squareq/slab/slab.hpp"
#include "squareq/slab/tests/scratch.hpp"
#include "squareq/slab/writer.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

using test::Scratch;

std::vector<LinearTopology> linears_of(const nlohmann::json& list) {
  std::vector<LinearTopology> linears;
  for (const auto& l : list) linears.push_back({l.at("name"), l.at("in"), l.at("out"), l.at("bias")});
  return linears;
}

TEST(Goldens, EverySignature) {
  const auto golden = test::golden_pairs();
  ASSERT_GE(golden["signatures"].size(), 8u);
  for (const auto& s : golden["signatures"]) EXPECT_EQ(model_signature(linears_of(s["linears"])), s["signature"]) << s["name"];
  EXPECT_EQ(model_signature(std::vector<LinearTopology>{{"a", 2, 1, true}}), "cae82acdd4ca58f8");
}

// The manifest is rebuilt from names and shapes alone; the slab from its tensors' bytes, handed over in reverse order.
TEST(Goldens, EveryPairIsWrittenByteForByte) {  // SQ-FMT-036
  const auto golden = test::golden_pairs();
  ASSERT_EQ(golden["pairs"].size(), 4u);
  for (const auto& pair : golden["pairs"]) {
    SCOPED_TRACE(pair["name"].get<std::string>());
    const Scratch scratch;
    const std::string wanted = test::base64(pair["safetensors_base64"].get<std::string>());
    const std::string text = pair["manifest_text"].get<std::string>();
    ASSERT_EQ(sha256_hex(wanted), pair["safetensors_sha256"]);

    Manifest manifest;
    manifest.model_signature = model_signature(linears_of(pair["linears"]));
    manifest.architecture_id = pair["architecture_id"];
    std::vector<TensorSpec> specs;
    for (const auto& l : pair["linears"]) {
      const std::string name = l["name"];
      if (text.find("\"canonical_name\": " + nlohmann::json(name).dump(-1, ' ', true)) == std::string::npos) continue;  // filtered by prefix
      manifest.layers.push_back(make_layer(name, l["out"], l["in"], pair["pack_k"], l["bias"]));
      const ManifestLayer& layer = manifest.layers.back();
      specs.push_back({layer.qweight_key, FileDtype::I8, {layer.packed_shape[0], layer.packed_shape[1]}});
      specs.push_back({layer.scale_key, FileDtype::F32, {layer.orig_shape[0]}});
      specs.push_back({layer.zero_point_key, FileDtype::F32, {layer.orig_shape[0]}});
      if (layer.bias_key) specs.push_back({*layer.bias_key, FileDtype::F32, {layer.orig_shape[0]}});
    }
    sort_layers(manifest);
    EXPECT_EQ(manifest_text(manifest), text);
    EXPECT_EQ(sha256_hex(manifest_text(manifest)), pair["manifest_sha256"]);

    test::write_file(scratch / "golden.safetensors", wanted);
    const SafetensorsFile source = SafetensorsFile::open(scratch / "golden.safetensors");
    SafetensorsWriter writer(scratch / "written.safetensors", specs);
    EXPECT_EQ(writer.layout().prefix, wanted.substr(0, writer.layout().prefix.size()));
    const auto& tensors = source.header().tensors;
    for (auto t = tensors.rbegin(); t != tensors.rend(); ++t) {
      const auto bytes = source.read_all(t->name);
      writer.write(t->name, 0, bytes.data(), bytes.size());
    }
    writer.commit();
    EXPECT_EQ(test::read_file(scratch / "written.safetensors"), wanted);
  }
}

// Readers of zero layers report MF_EMPTY; every other golden pair is good as it stands, and its manifest reads back to itself.
TEST(Goldens, EveryPairIsReadAndVerified) {
  const auto golden = test::golden_pairs();
  for (const auto& pair : golden["pairs"]) {
    SCOPED_TRACE(pair["name"].get<std::string>());
    const Scratch scratch;
    test::write_file(scratch / "g.safetensors", test::base64(pair["safetensors_base64"].get<std::string>()));
    test::write_file(scratch / "g.manifest.json", pair["manifest_text"].get<std::string>());
    const Report report = validate(SlabPaths::resolve(scratch / "g"));
    if (pair["linears"].empty()) {
      ASSERT_EQ(report.problems.size(), 1u);
      EXPECT_EQ(report.problems[0].code, Code::MF_EMPTY);
      continue;
    }
    EXPECT_TRUE(report.ok()) << report.problems[0].message;
    EXPECT_TRUE(report.has(Code::DT_UNVERIFIED));
    EXPECT_EQ(report.warnings.size(), 1u);
    const Slab slab = Slab::open(scratch / "g.manifest.json");
    EXPECT_EQ(manifest_text(slab.manifest()), pair["manifest_text"]);
    EXPECT_EQ(slab.manifest().layers.size(), slab.layer_count());
    EXPECT_EQ(make_layout(slab.file().header()).prefix, test::base64(pair["safetensors_base64"].get<std::string>()).substr(0, slab.file().header().data_start));
  }
}

TEST(Goldens, OneLayerOf270Bytes) {
  const Scratch scratch;
  SafetensorsWriter writer(scratch / "one.safetensors",
                           {{"a.qweight", FileDtype::I8, {1, 2}}, {"a.scale", FileDtype::F32, {1}}, {"a.zero_point", FileDtype::F32, {1}}, {"a.bias", FileDtype::F32, {1}}});
  const float scale = 0.5f, zero = 0.0f, bias = -1.0f;
  const std::int8_t codes[] = {127, -127};
  writer.write("a.qweight", 0, codes, 2);
  writer.write("a.scale", 0, &scale, 4);
  writer.write("a.zero_point", 0, &zero, 4);
  writer.write("a.bias", 0, &bias, 4);
  EXPECT_EQ(digest_hex(writer.digest(writer.index("a.bias"))), "fa8676a94087f05a");
  EXPECT_EQ(digest_hex(writer.digest(writer.index("a.scale"))), "c98dd7ed5d5dfd9b");
  EXPECT_EQ(digest_hex(writer.digest(writer.index("a.zero_point"))), "48b2c92616fc193d");
  EXPECT_EQ(digest_hex(writer.digest(writer.index("a.qweight"))), "9f94ec5a6dec224b");
  writer.commit();
  const std::string file = test::read_file(scratch / "one.safetensors");
  EXPECT_EQ(file.size(), 270u);
  EXPECT_EQ(sha256_hex(file), "ac31f3471ca7631850c4d68628fe74958f381cb43458a482cba47594b885c221");
  EXPECT_EQ(digest_hex(SafetensorsFile::open(scratch / "one.safetensors").header_xxh3()), "9260e4d7aaa98307");
}

TEST(Digests, Xxh3Goldens) {
  std::string all_bytes, mebibyte;
  for (int i = 0; i < 256; ++i) all_bytes += static_cast<char>(i);
  for (int i = 0; i < 4096; ++i) mebibyte += all_bytes;
  const std::pair<std::string, std::string_view> goldens[] = {
      {"", "2d06800538d394c2"}, {"abc", "78af5f94892f3950"}, {"123456789", "72dcb18b67a17dff"},
      {all_bytes, "9408a4433b952d71"}, {std::string(4096, '\0'), "93d76fe148c689ba"}, {mebibyte, "d36c0e13a3df139e"}};
  for (const auto& [input, digest] : goldens) {
    EXPECT_EQ(digest_hex(xxh3(input.data(), input.size())), digest);
    Xxh3 pieces;
    for (std::size_t at = 0; at < input.size(); at += 1000) pieces.update(input.data() + at, std::min<std::size_t>(1000, input.size() - at));
    EXPECT_EQ(digest_hex(pieces.digest()), digest);
    EXPECT_EQ(parse_digest(digest), pieces.digest());
  }
  for (const char* bad : {"", "123", "2D06800538D394C2", "2d06800538d394c", "2d06800538d394c22", "2d06800538d394cg", " d06800538d394c2"}) EXPECT_FALSE(parse_digest(bad)) << bad;
}

TEST(Printable, EscapesWhatTerminalsExecute) {
  EXPECT_EQ(printable("plain \xC3\xA9 name"), "plain \xC3\xA9 name");
  EXPECT_EQ(printable("\x1b[31m\x07"), "\\u001b[31m\\u0007");
  EXPECT_EQ(printable(std::string_view("a\0b", 3)), "a\\u0000b");
  EXPECT_EQ(printable("\x7f"), "\\u007f");
  EXPECT_EQ(printable("\xE2\x80\xAE"), "\\u202e");
  EXPECT_EQ(printable("\xD8\x9C"), "\\u061c");
  EXPECT_EQ(printable("\xC0\xAF"), "\\xc0\\xaf");
  EXPECT_EQ(printable("\xED\xA0\x80"), "\\xed\\xa0\\x80");
  EXPECT_EQ(printable(std::string(300, 'x')), std::string(200, 'x') + "...");
}

TEST(Dtypes, NamesBitsAndOrder) {
  // The order that the writer sorts by, descending, as the reference declares it.
  const std::pair<std::string_view, std::uint32_t> wanted[] = {
      {"BOOL", 8}, {"F4", 4}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8}, {"I8", 8}, {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
      {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16}, {"I32", 32}, {"U32", 32}, {"F32", 32}, {"C64", 64}, {"F64", 64}, {"I64", 64}, {"U64", 64}};
  ASSERT_EQ(std::size(wanted), static_cast<std::size_t>(file_dtype_count));
  for (std::size_t i = 0; i < std::size(wanted); ++i) {
    EXPECT_EQ(parse_dtype(wanted[i].first), static_cast<FileDtype>(i));
    EXPECT_EQ(dtype_name(static_cast<FileDtype>(i)), wanted[i].first);
    EXPECT_EQ(dtype_bits(static_cast<FileDtype>(i)), wanted[i].second);
  }
  for (const char* unknown : {"f32", "I4", "U4", "", "F32 ", "FLOAT32"}) EXPECT_FALSE(parse_dtype(unknown)) << unknown;
  for (const sq_dtype dtype : {SQ_F32, SQ_F16, SQ_BF16, SQ_F64, SQ_I8, SQ_U8, SQ_I32, SQ_I64}) EXPECT_EQ(to_sq_dtype(from_sq_dtype(dtype)), dtype);
  EXPECT_FALSE(to_sq_dtype(FileDtype::F8_E4M3));
}

}  // namespace
}  // namespace squareq
