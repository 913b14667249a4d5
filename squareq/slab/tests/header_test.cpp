// One malformed input per check of the container, and the legal oddities beside them. SQ-FMT-010 to 030.

#include <gtest/gtest.h>

#include <algorithm>

#include "squareq/slab/checked.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/slab/slab.hpp"
#include "squareq/slab/tests/scratch.hpp"

namespace squareq {
namespace {

using test::raw_file;
using test::Scratch;

Report check(std::string_view bytes) {
  const Scratch scratch;
  test::write_file(scratch / "x.safetensors", bytes);
  Report report;
  SafetensorsFile::open(scratch / "x.safetensors", report);
  return report;
}

std::string codes(const Report& report) {
  std::string text;
  for (const Problem& p : report.problems) text += std::string(text.empty() ? "" : " ") + std::string(code_name(p.code));
  for (const Problem& p : report.warnings) text += std::string(text.empty() ? "w:" : " w:") + std::string(code_name(p.code));
  return text;
}

const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";

struct Case {
  const char* name;
  std::string bytes;
  const char* wanted;  // every code, in order of report; "" = accepted
};

std::string record(const std::string& fields, std::size_t data = 8) { return raw_file("{\"a\":{" + fields + "}}", data); }
std::string length_only(std::uint64_t n, std::size_t rest = 0) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>((n >> (8 * i)) & 0xFF);
  return bytes + std::string(rest, ' ');
}
std::string nested(int levels) { return "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":" + std::string(static_cast<std::size_t>(levels), '[') + std::string(static_cast<std::size_t>(levels), ']') + "}}"; }

std::vector<Case> cases() {
  const std::string nul(1, '\0');
  return {
      {"good", raw_file(good, 8), ""},
      {"empty object", raw_file("{}      "), ""},
      {"empty file", "", "ST_TOO_SMALL"},
      {"seven bytes", "1234567", "ST_TOO_SMALL"},
      {"header over the cap", length_only(100'000'001, 64), "ST_HEADER_TOO_LARGE"},
      {"header of 2^64 - 1", length_only(~0ull, 64), "ST_HEADER_TOO_LARGE"},
      {"header of 2^64 - 8 wraps when 8 is added", length_only(~0ull - 7, 64), "ST_HEADER_TOO_LARGE"},
      {"header at the cap, file ends", length_only(100'000'000, 64), "ST_HEADER_PAST_EOF"},
      {"header one byte past the end", length_only(65, 64), "ST_HEADER_PAST_EOF"},
      {"empty header", length_only(0), "ST_JSON"},
      {"byte order mark", raw_file("\xEF\xBB\xBF" + good, 8), "ST_BAD_START"},
      {"leading space", raw_file(" " + good, 8), "ST_BAD_START"},
      {"leading newline", raw_file("\n" + good, 8), "ST_BAD_START"},
      {"leading tab", raw_file("\t" + good, 8), "ST_BAD_START"},
      {"leading CR", raw_file("\r" + good, 8), "ST_BAD_START"},
      {"root array", raw_file("[1,2]"), "ST_ROOT"},
      {"root string", raw_file("\"a\""), "ST_ROOT"},
      {"root number", raw_file("17"), "ST_ROOT"},
      {"NUL after the object", raw_file(good + nul + nul, 8), "ST_CONTROL_BYTES"},
      {"NUL ends the text for a careless parser", raw_file(good + nul + "{\"b\":", 8), "ST_CONTROL_BYTES"},
      {"vertical tab", raw_file(good + "\x0b", 8), "ST_CONTROL_BYTES"},
      {"overlong UTF-8", raw_file("{\"\xC0\xAF\":{}}"), "ST_UTF8"},
      {"UTF-8 surrogate", raw_file("{\"\xED\xA0\x80\":{}}"), "ST_UTF8"},
      {"UTF-8 beyond U+10FFFF", raw_file("{\"\xF4\x90\x80\x80\":{}}"), "ST_UTF8"},
      {"cut UTF-8", raw_file("{}\xE2\x82"), "ST_UTF8"},
      {"cut JSON", raw_file(good.substr(0, good.size() - 1), 8), "ST_JSON"},
      {"second value", raw_file(good + "{}", 8), "ST_JSON"},
      {"trailing comma", raw_file("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],}}", 8), "ST_JSON"},
      {"comment", raw_file("{/**/}"), "ST_JSON"},
      {"NaN literal", record(R"("dtype":"F32","shape":[NaN],"data_offsets":[0,8])"), "ST_JSON"},
      {"lone surrogate escape", raw_file("{\"\\ud800\":{}}"), "ST_JSON"},
      {"raw tab in a string", raw_file("{\"a\tb\":{}}"), "ST_JSON"},
      {"1e400 in an ignored field", record(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1e400)"), "ST_JSON"},
      {"1e400 in a shape", record(R"("dtype":"F32","shape":[1e400],"data_offsets":[0,8])"), "ST_JSON ST_INT"},
      {"64 levels", raw_file(nested(62), 8), "w:ST_FIELD_UNKNOWN"},
      {"65 levels", raw_file(nested(63), 8), "ST_DEPTH"},
      {"200,000 levels", raw_file(nested(200'000), 8), "ST_DEPTH"},
      {"unclosed nesting", raw_file("{\"a\":" + std::string(300, '[')), "ST_JSON ST_DEPTH"},
      {"tensor twice", raw_file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8), "ST_DUP"},
      {"tensor twice, one escaped", raw_file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"\u0061":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8), "ST_DUP"},
      {"duplicate wins over layout", raw_file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})", 16), "ST_DUP"},
      {"field twice", record(R"("dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8])"), "ST_DUP"},
      {"metadata key twice", raw_file(R"({"__metadata__":{"k":"1","k":"2"},)" + good.substr(1), 8), "ST_DUP"},
      {"metadata twice", raw_file(R"({"__metadata__":{},"__metadata__":{},)" + good.substr(1), 8), "ST_DUP"},
      {"key twice in an ignored field", record(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"x":{"k":1,"k":2})"), "ST_DUP w:ST_FIELD_UNKNOWN"},
      {"same key three times is told once", record(R"("dtype":"F32","dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8])"), "ST_DUP"},
      {"metadata of strings", raw_file(R"({"__metadata__":{"format":"pt"},)" + good.substr(1), 8), ""},
      {"metadata null", raw_file(R"({"__metadata__":null,)" + good.substr(1), 8), "ST_META_TYPE"},
      {"metadata array", raw_file(R"({"__metadata__":["x",["y"]],)" + good.substr(1), 8), "ST_META_TYPE"},
      {"metadata number", raw_file(R"({"__metadata__":{"k":1},)" + good.substr(1), 8), "ST_META_TYPE"},
      {"metadata nested", raw_file(R"({"__metadata__":{"k":{"l":"m"}},)" + good.substr(1), 8), "ST_META_TYPE"},
      {"metadata is a tensor record", raw_file(R"({"__metadata__":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8), "ST_META_TYPE ST_TRAILING"},
      {"escaped spelling of metadata", raw_file(R"({"\u005f_metadata__":{"k":1},)" + good.substr(1), 8), "ST_META_TYPE"},
      {"record is an array", raw_file(R"({"a":["F32",[2],[0,8]]})", 8), "ST_FIELD_TYPE"},
      {"record is null", raw_file(R"({"a":null})"), "ST_FIELD_TYPE"},
      {"dtype is an object", record(R"("dtype":{"F32":null},"shape":[2],"data_offsets":[0,8])"), "ST_FIELD_TYPE"},
      {"dtype is a number", record(R"("dtype":32,"shape":[2],"data_offsets":[0,8])"), "ST_FIELD_TYPE"},
      {"shape is a number", record(R"("dtype":"F32","shape":2,"data_offsets":[0,8])"), "ST_FIELD_TYPE"},
      {"shape holds a string", record(R"("dtype":"F32","shape":["2"],"data_offsets":[0,8])"), "ST_FIELD_TYPE"},
      {"shape holds an array", record(R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])"), "ST_FIELD_TYPE"},
      {"shape holds a bool", record(R"("dtype":"F32","shape":[true],"data_offsets":[0,8])"), "ST_FIELD_TYPE"},
      {"offsets object", record(R"("dtype":"F32","shape":[2],"data_offsets":{"0":0})"), "ST_FIELD_TYPE"},
      {"one offset", record(R"("dtype":"F32","shape":[2],"data_offsets":[8])"), "ST_FIELD_TYPE"},
      {"three offsets", record(R"("dtype":"F32","shape":[2],"data_offsets":[0,8,16])"), "ST_FIELD_TYPE"},
      {"no dtype", record(R"("shape":[2],"data_offsets":[0,8])"), "ST_FIELD_MISSING"},
      {"no shape", record(R"("dtype":"F32","data_offsets":[0,8])"), "ST_FIELD_MISSING"},
      {"no offsets", record(R"("dtype":"F32","shape":[2])"), "ST_FIELD_MISSING"},
      {"empty record", record(""), "ST_FIELD_MISSING ST_FIELD_MISSING ST_FIELD_MISSING"},
      {"lower-case dtype", record(R"("dtype":"f32","shape":[2],"data_offsets":[0,8])"), "ST_DTYPE"},
      {"unknown dtype", record(R"("dtype":"I4","shape":[16],"data_offsets":[0,8])"), "ST_DTYPE"},
      {"negative dimension", record(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), "ST_INT"},
      {"minus zero", record(R"("dtype":"F32","shape":[2],"data_offsets":[-0,8])"), "ST_INT"},
      {"fraction", record(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"), "ST_INT"},
      {"exponent", record(R"("dtype":"F32","shape":[2e0],"data_offsets":[0,8])"), "ST_INT"},
      {"2^64", record(R"("dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8])"), "ST_INT"},
      {"collected over records", raw_file(R"({"a":{"dtype":"f32","shape":[-1],"data_offsets":[0,8]},"b":{"shape":[1],"data_offsets":[8]}})", 8), "ST_FIELD_TYPE ST_FIELD_MISSING ST_DTYPE ST_INT"},
      {"first range does not begin at 0", record(R"("dtype":"F32","shape":[2],"data_offsets":[8,16])", 16), "ST_OFFSETS"},
      {"hole", raw_file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}})", 20), "ST_OFFSETS"},
      {"overlap", raw_file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12), "ST_OFFSETS"},
      {"two names for the same bytes", raw_file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8), "ST_OFFSETS"},
      {"reversed", record(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])", 8), "ST_OFFSETS"},
      {"product overflows", record(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8])"), "ST_OVERFLOW"},
      {"product times bits overflows", record(R"("dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,8])"), "ST_OVERFLOW"},
      {"zero before a huge dimension", record(R"("dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0])", 0), "ST_OVERFLOW"},
      {"zero after a huge dimension", record(R"("dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0])", 0), "ST_OVERFLOW"},
      {"half a byte", record(R"("dtype":"F4","shape":[3],"data_offsets":[0,2])", 2), "ST_SIZE"},
      {"whole bytes of F4", record(R"("dtype":"F4","shape":[4],"data_offsets":[0,2])", 2), ""},
      {"F6 in four elements", record(R"("dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3])", 3), ""},
      {"range too short", record(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"), "ST_SIZE"},
      {"range too long", record(R"("dtype":"F32","shape":[1],"data_offsets":[0,8])"), "ST_SIZE"},
      {"bytes in an empty tensor", record(R"("dtype":"F32","shape":[0],"data_offsets":[0,8])"), "ST_SIZE"},
      {"rank 0", record(R"("dtype":"F64","shape":[],"data_offsets":[0,8])"), ""},
      {"zero-size marker", record(R"("dtype":"F8_E4M3","shape":[0],"data_offsets":[0,0])", 0), ""},
      {"trailing bytes", raw_file(good, 9), "ST_TRAILING"},
      {"bytes without tensors", raw_file("{}", 1), "ST_TRAILING"},
      {"one byte short", raw_file(good, 7), "ST_TRUNCATED"},
      {"huge end", record(R"("dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615])"), "ST_OVERFLOW ST_TRUNCATED"},
      {"end near 2^61", record(R"("dtype":"U8","shape":[2305843009213693951],"data_offsets":[0,2305843009213693951])"), "ST_TRUNCATED"},
      {"unknown field", record(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"note":"x")"), "w:ST_FIELD_UNKNOWN"},
      {"trailing white space of all kinds", raw_file(good + " \t\r\n", 8), ""},
      {"out of offset order", raw_file(R"({"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 16), ""},
      {"insignificant white space", raw_file("{ \"a\" : {\n\"dtype\":\t\"F32\", \"shape\":[ 2 ],\"data_offsets\":[0 , 8]}}", 8), ""},
      {"empty name", raw_file(R"({"":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8), ""},
      {"rank 9 outside a slab", record(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8])"), ""},
  };
}

TEST(Header, EveryCheckHasItsCode) {
  for (const Case& c : cases()) EXPECT_EQ(codes(check(c.bytes)), c.wanted) << c.name;
}

// SQ-FMT-030: the verdict does not depend on the order of keys inside a record.
TEST(Header, KeyOrderDoesNotMatter) {
  const std::vector<std::string> fields = {R"("dtype":"F32")", R"("shape":[2])", R"("data_offsets":[0,8])"};
  std::vector<std::size_t> order = {0, 1, 2};
  do {
    EXPECT_EQ(codes(check(record(fields[order[0]] + "," + fields[order[1]] + "," + fields[order[2]]))), "");
    EXPECT_EQ(codes(check(record(fields[order[0]] + "," + fields[order[1]] + "," + fields[order[2]], 7))), "ST_TRUNCATED");
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(Header, ShowsWhatAForeignFileProbablyIs) {
  const auto message = [](std::string_view start) {
    const Report report = check(std::string(start) + std::string(64, '\xff'));
    return report.problems.empty() ? std::string() : report.problems[0].message;
  };
  EXPECT_NE(message("PK\x03\x04").find("zip"), std::string::npos);
  EXPECT_NE(message("\x80\x02").find("pickle"), std::string::npos);
  EXPECT_NE(message("GGUF").find("GGUF"), std::string::npos);
  EXPECT_NE(message("version https://git-lfs").find("git-lfs"), std::string::npos);
  EXPECT_NE(message("<!DOCTYPE html>").find("HTML"), std::string::npos);
  // A length field may equal a magic by chance: 0x0280 starts like a pickle, and the file is good.
  std::string header = good;
  header.resize(0x0280, ' ');
  const std::string lucky = raw_file(header, 8);
  ASSERT_EQ(lucky.substr(0, 2), "\x80\x02");
  EXPECT_EQ(codes(check(lucky)), "");
}

TEST(Header, MessagesNeverCarryRawBytes) {
  const Report report = check(raw_file("{\"\\u001b[31m\\u202e\":{\"dtype\":\"\\u0007\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4));
  ASSERT_EQ(codes(report), "ST_DTYPE");
  for (const char c : report.problems[0].message) EXPECT_GE(static_cast<unsigned char>(c), 0x20);
  EXPECT_EQ(report.problems[0].message.find("\xE2\x80\xAE"), std::string::npos);
  const std::string json = report_json(report).dump();
  EXPECT_EQ(json.find("\x1b"), std::string::npos);
}

TEST(Header, TensorsStandInOffsetOrderAndAreFoundByName) {
  const Scratch scratch;
  test::write_file(scratch / "x.safetensors", raw_file(R"({"__metadata__":{"k":"v"},"b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}})", 8) + "xyz");
  const SafetensorsFile file = SafetensorsFile::open(scratch / "x.safetensors");
  ASSERT_EQ(file.header().tensors.size(), 2u);
  EXPECT_EQ(file.header().tensors[0].name, "a");
  EXPECT_EQ(file.header().tensors[0].elements(), 2u);
  const TensorRecord* b = file.header().find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, FileDtype::I8);
  EXPECT_EQ(file.position(*b), file.header().data_start + 8);
  char bytes[2];
  file.read(*b, 1, bytes, 2);
  EXPECT_EQ(std::string_view(bytes, 2), "yz");
  EXPECT_THROW(file.read(*b, 2, bytes, 2), Error);
  EXPECT_THROW(file.read(*b, ~0ull, bytes, 2), Error);
  EXPECT_EQ(file.header().find("c"), nullptr);
  EXPECT_EQ(*file.header().find_metadata("k"), "v");
  EXPECT_EQ(file.header().find_metadata("l"), nullptr);
}

TEST(Header, ProblemsAreCappedAndCounted) {
  std::string header = "{";
  for (int i = 0; i < 5000; ++i) header += (i ? ",\"t" : "\"t") + std::to_string(i) + "\":null";
  const Report report = check(raw_file(header + "}"));
  EXPECT_EQ(report.problems.size(), 1000u);
  EXPECT_EQ(report.problems_left_out, 4000u);
  EXPECT_EQ(report_json(report)["problems_left_out"], 4000);
}

// Names and equal empty ranges cost in proportion to their number: four times as many would take sixteen times as long if they were compared in pairs.
TEST(Header, ManyNamesCostInProportion) {
  const auto shortest_ms = [](int names) {
    std::string header = "{";
    for (int i = 0; i < names; ++i) header += (i ? ",\"" : "\"") + std::to_string(i) + "\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}";
    const std::string file = raw_file(header + "}");
    double shortest = 1e9;
    for (int run = 0; run < 3; ++run) {
      const double start = test::thread_ms();
      EXPECT_TRUE(check(file).ok());
      shortest = std::min(shortest, test::thread_ms() - start);
    }
    return shortest;
  };
  EXPECT_LT(shortest_ms(100'000), 8 * shortest_ms(25'000));
}

TEST(Checked, ArithmeticRefusesToWrap) {
  EXPECT_FALSE(checked_add(~0ull, 1));
  EXPECT_FALSE(checked_mul(1ull << 32, 1ull << 32));
  EXPECT_EQ(checked_mul(1ull << 32, (1ull << 32) - 1), (1ull << 32) * ((1ull << 32) - 1));
  EXPECT_EQ(checked_round_up(5, 8), 8u);
  EXPECT_EQ(checked_round_up(8, 8), 8u);
  EXPECT_EQ(checked_round_up(1, ~0ull), ~0ull);
  EXPECT_FALSE(checked_round_up(~0ull, ~0ull - 1));
  EXPECT_FALSE(checked_round_up(~0ull, 2));
}

}  // namespace
}  // namespace squareq
