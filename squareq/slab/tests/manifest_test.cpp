// Every manifest rule with an input that breaks it. SQ-FMT-041 to 057.

#include <gtest/gtest.h>

#include "squareq/slab/manifest.hpp"
#include "squareq/slab/tests/pair.hpp"

namespace squareq {
namespace {

using test::code_set;
using test::Pair;

std::string parse_codes(std::string_view text) {
  Report report;
  parse_manifest(text, report);
  return code_set(report);
}

std::string with(const std::string& from, const std::string& to) {
  Pair pair;
  pair.replace(from, to);
  return parse_codes(pair.text);
}

TEST(Manifest, ReadsWhatItWrites) {
  const Pair pair;
  Report report;
  auto parsed = parse_manifest(pair.text, report);
  ASSERT_TRUE(report.ok() && report.warnings.empty());
  EXPECT_EQ(to_manifest(std::move(*parsed)), pair.manifest);
}

TEST(Manifest, TextLevel) {
  const Pair pair;
  const std::string good = pair.text;
  EXPECT_EQ(parse_codes(""), "MF_JSON");
  EXPECT_EQ(parse_codes(good.substr(0, good.size() / 2)), "MF_JSON");
  EXPECT_EQ(parse_codes("\xEF\xBB\xBF" + good), "MF_JSON");
  EXPECT_EQ(parse_codes(good + std::string(1, '\0')), "MF_JSON");
  EXPECT_EQ(parse_codes(std::string("{\0\"\0a\0", 6)), "MF_JSON");  // UTF-16
  EXPECT_EQ(parse_codes(good + "{}"), "MF_JSON");
  EXPECT_EQ(with("\"pad_k\": 4", "\"pad_k\": NaN"), "MF_JSON");
  EXPECT_EQ(with("\"pad_k\": 4", "\"pad_k\": 1e999"), "MF_JSON");
  EXPECT_EQ(with("\"block_id\": null", "\"block_id\": " + std::string(70, '[') + std::string(70, ']')), "MF_JSON");
  EXPECT_EQ(parse_codes(std::string(100'000, '[')), "MF_JSON");
  EXPECT_EQ(parse_codes(std::string((64u << 20) + 1, ' ')), "MF_JSON");
  EXPECT_EQ(parse_codes("{\"\xC0\xAF\": 1}"), "MF_JSON");
  EXPECT_EQ(parse_codes("[]"), "MF_TYPE");
  EXPECT_EQ(parse_codes("null"), "MF_TYPE");
  std::string crlf;
  for (const char c : good) crlf += c == '\n' ? "\r\n" : std::string(1, c);
  EXPECT_EQ(parse_codes(crlf), "");
  EXPECT_EQ(parse_codes(" \n" + good + "\n"), "");
}

TEST(Manifest, TopLevel) {
  for (const char* key : {"model_signature", "architecture_id", "quant_version", "kernel_abi_version", "min_runtime_version", "layer_count", "total_qweight_bytes"}) {
    EXPECT_EQ(with("\"" + std::string(key) + "\"", "\"renamed\""), "MF_MISSING w:MF_UNKNOWN_FIELD") << key;
  }
  EXPECT_EQ(with("\"layers\"", "\"renamed\""), "MF_MISSING w:MF_UNKNOWN_FIELD");
  EXPECT_EQ(parse_codes("{}"), "MF_MISSING");
  EXPECT_EQ(with("0123456789abcdef", "0123456789ABCDEF"), "MF_SIGNATURE");
  EXPECT_EQ(with("0123456789abcdef", "0123456789abcde"), "MF_SIGNATURE");
  EXPECT_EQ(with("\"0123456789abcdef\"", "17"), "MF_TYPE");
  EXPECT_EQ(with("\"test\"", "\"\""), "MF_ARCH");
  EXPECT_EQ(with("\"test\"", "\"" + std::string(257, 'x') + "\""), "MF_ARCH");
  EXPECT_EQ(with("\"test\"", "\"" + std::string(256, 'x') + "\""), "");
  EXPECT_EQ(with("squareq_bp8_v2", "squareq_bp8_v3"), "MF_VERSION");
  for (const char* abi : {"0", "-1", "2", "9223372036854775807", "18446744073709551615", "-0"}) EXPECT_EQ(with("\"kernel_abi_version\": 1", std::string("\"kernel_abi_version\": ") + abi), "MF_ABI") << abi;
  for (const char* not_an_integer : {"1.0", "true", "\"1\"", "null", "1e0", "18446744073709551616", "[1]", "{}"})
    EXPECT_EQ(with("\"kernel_abi_version\": 1", std::string("\"kernel_abi_version\": ") + not_an_integer), "MF_TYPE") << not_an_integer;
  for (const char* version : {"0.1.1", "0.10.0", "1.0.0", "0.1", "0.1.0.0", "", "a.b.c", "0.1.x", "v0.1.0", "0..0", "-0.1.0", "0.1.0 ", "99999999999999999999.0.0"})
    EXPECT_EQ(with("\"0.1.0\"", "\"" + std::string(version) + "\""), "MF_RUNTIME") << version;
  for (const char* version : {"0.0.9", "0.1.0", "0.0.99999999999999999999", "0.01.0"}) EXPECT_EQ(with("\"0.1.0\"", "\"" + std::string(version) + "\""), "") << version;
  for (const char* count : {"1", "3", "-2", "18446744073709551615"}) EXPECT_EQ(with("\"layer_count\": 2", std::string("\"layer_count\": ") + count), "MF_COUNT") << count;
  for (const char* bytes : {"11", "0", "-12", "18446744073709551615"}) EXPECT_EQ(with("\"total_qweight_bytes\": 12", std::string("\"total_qweight_bytes\": ") + bytes), "MF_BYTES") << bytes;
  EXPECT_EQ(with("\"layer_count\"", "\"layer_count\": 2,\n  \"layer_count\""), "MF_DUP_KEY");
  EXPECT_EQ(with("\"layer_count\"", "\"l\\u0061yer_count\": 2,\n  \"layer_count\""), "MF_DUP_KEY");
  EXPECT_EQ(with("\"layer_count\"", "\"extra\": {\"x\": [1, 2.5, null]},\n  \"layer_count\""), "w:MF_UNKNOWN_FIELD");
  EXPECT_EQ(with("\"layer_count\"", "\"extra\": {\"x\": 1, \"x\": 2},\n  \"layer_count\""), "MF_DUP_KEY w:MF_UNKNOWN_FIELD");
  Pair empty;
  empty.manifest.layers.clear();
  EXPECT_EQ(parse_codes(manifest_text(empty.manifest)), "MF_EMPTY");
  std::string not_array = manifest_text(empty.manifest);
  not_array.replace(not_array.find("[]"), 2, "{}");
  EXPECT_EQ(parse_codes(not_array), "MF_TYPE");
  EXPECT_EQ(with("\"layers\": [", "\"layers\": [\n    17,"), "MF_COUNT MF_TYPE");
}

TEST(Manifest, LayerKeys) {
  for (const char* key : {"canonical_name", "qweight_key", "scale_key", "zero_point_key", "bias_key", "orig_shape", "packed_shape", "pad_k", "quant_bits", "quant_scheme", "quant_axis",
                          "dtype_qweight", "dtype_scale", "dtype_zero_point", "block_id"})
    EXPECT_EQ(with("\"" + std::string(key) + "\"", "\"renamed\""), "MF_MISSING w:MF_UNKNOWN_FIELD") << key;
  for (const char* key : {"canonical_name", "qweight_key", "scale_key", "zero_point_key"}) {
    const std::string from = "\"" + std::string(key) + "\": \"a";
    for (const char* name : {"..x", "a..b", ".a", "x/", "x\\\\", "\\u0000", "\\u001b", "\\u007f", "\\u0085", "\\u202e", "\\u200f"})
      EXPECT_EQ(with(from, "\"" + std::string(key) + "\": \"" + name), "MF_NAME") << key << " " << name;
    EXPECT_EQ(with(from, "\"" + std::string(key) + "\": \"" + std::string(513, 'x')), "MF_NAME");
    EXPECT_EQ(with(from, "\"" + std::string(key) + "\": 1, \"x\": \"a"), "MF_TYPE w:MF_UNKNOWN_FIELD");
  }
  for (const char* name : {"a:b", "quote\\\"", "\\u00e9", "\\ud83d\\ude00", "with space"}) EXPECT_EQ(with("\"canonical_name\": \"a\"", "\"canonical_name\": \"" + std::string(name) + "\""), "") << name;
  EXPECT_EQ(with("\"canonical_name\": \"a\"", "\"canonical_name\": \"\""), "MF_NAME");
  EXPECT_EQ(with("\"canonical_name\": \"a\"", "\"canonical_name\": \"" + std::string(512, 'x') + "\""), "");
  EXPECT_EQ(with("\"canonical_name\": \"a\"", "\"canonical_name\": \"b.c\""), "MF_LAYER_DUP");
  EXPECT_EQ(with("\"scale_key\": \"a.scale\"", "\"scale_key\": \"b.c.scale\""), "MF_KEY_ALIAS");
  EXPECT_EQ(with("\"scale_key\": \"a.scale\"", "\"scale_key\": \"a.zero_point\""), "MF_KEY_ALIAS");
  EXPECT_EQ(with("\"bias_key\": \"a.bias\"", "\"bias_key\": \"a.scale\""), "MF_KEY_ALIAS");
  EXPECT_EQ(with("\"bias_key\": \"a.bias\"", "\"bias_key\": 0"), "MF_TYPE");
  EXPECT_EQ(with("\"bias_key\": \"a.bias\"", "\"bias_key\": \"\""), "MF_NAME");
  EXPECT_EQ(with("\"block_id\": null", "\"block_id\": \"double.0\""), "");
  EXPECT_EQ(with("\"block_id\": null", "\"block_id\": 3"), "MF_TYPE");
  EXPECT_EQ(with("\"pad_k\": 4", "\"pad_k\": 4, \"pad_k\": 4"), "MF_DUP_KEY");
  EXPECT_EQ(with("\"pad_k\": 4", "\"pad_k\": 4, \"note\": \"x\""), "w:MF_UNKNOWN_FIELD");
}

TEST(Manifest, QuantFields) {
  for (const char* bits : {"4", "0", "-8", "16"}) EXPECT_EQ(with("\"quant_bits\": 8", std::string("\"quant_bits\": ") + bits), "MF_QUANT") << bits;
  EXPECT_EQ(with("\"quant_bits\": 8", "\"quant_bits\": \"8\""), "MF_TYPE");
  EXPECT_EQ(with("\"quant_bits\": 8", "\"quant_bits\": 8.0"), "MF_TYPE");
  EXPECT_EQ(with("per_row_symmetric", "per_tensor"), "MF_QUANT");
  EXPECT_EQ(with("\"quant_axis\": 0", "\"quant_axis\": 1"), "MF_QUANT");
  EXPECT_EQ(with("\"quant_axis\": 0", "\"quant_axis\": false"), "MF_TYPE");
  EXPECT_EQ(with("\"int8\"", "\"uint8\""), "MF_QUANT");
  EXPECT_EQ(with("\"dtype_scale\": \"float32\"", "\"dtype_scale\": \"float16\""), "MF_QUANT");
  EXPECT_EQ(with("\"dtype_zero_point\": \"float32\"", "\"dtype_zero_point\": \"unheard of\""), "MF_QUANT");
  EXPECT_EQ(with("\"dtype_zero_point\": \"float32\"", "\"dtype_zero_point\": null"), "MF_TYPE");
}

// Shapes of layer `a`: orig [2, 3], packed [2, 4], pad_k 4.
std::string shapes(const std::string& orig, const std::string& packed, const std::string& pad_k = "4") {
  Pair pair;
  pair.replace("\"orig_shape\": [\n        2,\n        3\n      ]", "\"orig_shape\": " + orig);
  pair.replace("\"packed_shape\": [\n        2,\n        4\n      ]", "\"packed_shape\": " + packed);
  pair.replace("\"pad_k\": 4", "\"pad_k\": " + pad_k);
  return parse_codes(pair.text);
}

TEST(Manifest, ShapesAndPacking) {
  EXPECT_EQ(shapes("[2,3]", "[2,4]"), "");
  EXPECT_EQ(shapes("[2,3]", "[2,3]", "1"), "MF_BYTES");  // legal by itself, but the total is another
  for (const char* bad : {"[0,3]", "[-2,3]", "[2]", "[2,3,1]", "[]", "[2,-0]", "[4294967296,4294967296]"}) EXPECT_EQ(shapes(bad, "[2,4]"), "MF_SHAPE") << bad;
  for (const char* bad : {"[2.0,3]", "[\"2\",3]", "[true,3]", "[null,3]", "[[2],3]", "[18446744073709551616,3]", "\"[2,3]\"", "{}", "6"}) EXPECT_EQ(shapes(bad, "[2,4]"), "MF_TYPE") << bad;
  for (const char* bad : {"[2,0]", "[2,-4]", "[2]", "[4294967296,4294967296]"}) EXPECT_EQ(shapes("[2,3]", bad), "MF_SHAPE") << bad;
  EXPECT_EQ(shapes("[1,3]", "[2,4]"), "MF_SHAPE");
  EXPECT_EQ(shapes("[2,5]", "[2,4]"), "MF_PACK");
  EXPECT_EQ(shapes("[2,3]", "[2,8]"), "MF_BYTES MF_PACK");
  EXPECT_EQ(shapes("[2,3]", "[2,3]"), "MF_BYTES MF_PACK");
  for (const char* bad : {"0", "-4", "3", "8", "18446744073709551615"}) EXPECT_EQ(shapes("[2,3]", "[2,4]", bad), "MF_PACK") << bad;
  EXPECT_EQ(shapes("[2,3]", "[2,4]", "4.0"), "MF_TYPE");
  EXPECT_EQ(shapes("[1,3]", "[1,18446744073709551612]"), "MF_BYTES MF_PACK");
}

// Gate 10 asks for all faults of a manifest at once.
TEST(Manifest, ReportsIndependentFaultsTogether) {
  Pair pair;
  pair.replace("squareq_bp8_v2", "x");
  pair.replace("\"kernel_abi_version\": 1", "\"kernel_abi_version\": 9");
  pair.replace("\"quant_bits\": 8", "\"quant_bits\": 4");
  pair.replace("\"layer_count\": 2", "\"layer_count\": 5");
  pair.replace("per_row_symmetric", "x");
  EXPECT_EQ(parse_codes(pair.text), "MF_ABI MF_COUNT MF_QUANT MF_VERSION");
}

TEST(Manifest, RefusalsNameBothVersions) {
  Pair pair;
  pair.replace("\"kernel_abi_version\": 1", "\"kernel_abi_version\": 9");
  Report report;
  parse_manifest(pair.text, report);
  EXPECT_NE(report.problems.at(0).message.find('9'), std::string::npos);
  EXPECT_NE(report.problems.at(0).message.find("supports 1"), std::string::npos);
}

TEST(Manifest, MakeLayerFollowsThePaddingRule) {
  EXPECT_EQ(make_layer("x", 3, 5, 8, true).packed_shape[1], 8u);
  EXPECT_EQ(make_layer("x", 3, 8, 8, true).packed_shape[1], 8u);
  EXPECT_EQ(make_layer("x", 3, 5, 1, true).packed_shape[1], 5u);
  EXPECT_EQ(make_layer("x", 3, 5, 0, true).packed_shape[1], 5u);
  EXPECT_FALSE(make_layer("x", 3, 5, 8, false).bias_key);
  EXPECT_THROW(make_layer("x", 3, ~0ull, 64, false), Error);
  EXPECT_THROW(make_layer("x", ~0ull, 64, 64, false), Error);
}

}  // namespace
}  // namespace squareq
