// Two files, element by element (squareq compare): files made byte by byte, results worked out by hand.
#include "squareq/slab/compare.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "squareq/slab/tests/scratch.hpp"

namespace squareq {
namespace {

using test::Scratch;

template <class T>
std::string bytes_of(std::initializer_list<T> values) {
  std::string bytes;
  for (const T v : values) bytes.append(reinterpret_cast<const char*>(&v), sizeof v);
  return bytes;
}

struct Tensor {
  std::string name, dtype;
  std::vector<std::uint64_t> shape;
  std::string bytes;
};

std::string file_of(const std::vector<Tensor>& tensors) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::string data;
  for (const Tensor& t : tensors) {
    header[t.name] = {{"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {data.size(), data.size() + t.bytes.size()}}};
    data += t.bytes;
  }
  return test::raw_file(header.dump()) + data;
}

struct Two {
  Scratch scratch;
  Comparison compare(const std::vector<Tensor>& a, const std::vector<Tensor>& b, const CompareOptions& options = {}) const {
    test::write_file(scratch / "a.safetensors", file_of(a));
    test::write_file(scratch / "b.safetensors", file_of(b));
    return compare_files(scratch / "a.safetensors", scratch / "b.safetensors", options);
  }
  TensorComparison one(const Tensor& a, const Tensor& b, const CompareOptions& options = {}) const {
    return compare({a}, {b}, options).tensors.at(0);
  }
};

Tensor f32(std::initializer_list<float> values) { return {"t", "F32", {values.size()}, bytes_of(values)}; }

TEST(Compare, EqualFilesDifferInNothing) {
  const Two two;
  std::uint64_t last = 0, whole = 0;
  CompareOptions options;
  options.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view) { last = done, whole = total; };
  const Tensor t = {"t", "F32", {2, 3}, bytes_of({1.f, -2.f, 0.f, NAN, INFINITY, 5.f})};
  const Comparison result = two.compare({t}, {t}, options);
  EXPECT_TRUE(result.same());
  const TensorComparison& c = result.tensors.at(0);
  EXPECT_TRUE(c.same && c.compared && !c.has_worst);
  EXPECT_EQ(c.elements, 6u);
  EXPECT_EQ(c.beyond, 0u);
  EXPECT_EQ(c.nan_a, 1u);
  EXPECT_EQ(c.inf_b, 1u);
  EXPECT_EQ(c.nonfinite_differ, 0u);
  EXPECT_EQ(c.relative_l2, 0);
  EXPECT_EQ(last, 24u);
  EXPECT_EQ(whole, 24u);
}

TEST(Compare, DifferencesAreMeasuredInFloat64) {
  const Two two;
  // a - b = (0, 3, 0; 0, 0, -4): L2 5; |b| = (3, 1, 2; 2, 1, 9) with L2 10.
  const Tensor a = {"t", "F32", {2, 3}, bytes_of({3.f, 4.f, 2.f, 2.f, 1.f, 5.f})},
               b = {"t", "F32", {2, 3}, bytes_of({3.f, 1.f, 2.f, 2.f, 1.f, 9.f})};
  TensorComparison c = two.one(a, b);
  EXPECT_FALSE(c.same);
  EXPECT_EQ(c.beyond, 2u);
  EXPECT_EQ(c.max_abs, 4);
  EXPECT_EQ(c.relative_l2, 0.5);
  EXPECT_TRUE(c.has_worst);
  EXPECT_EQ(c.worst, (std::vector<std::uint64_t>{1, 2}));
  EXPECT_EQ(c.worst_a, 5);
  EXPECT_EQ(c.worst_b, 9);
  // rtol 0.5 allows 4.5 of 4 at [1, 2] and 0.5 of 3 at [0, 1], which is now the farthest out.
  CompareOptions half;
  half.rtol = 0.5;
  c = two.one(a, b, half);
  EXPECT_EQ(c.beyond, 1u);
  EXPECT_EQ(c.worst, (std::vector<std::uint64_t>{0, 1}));
  // |a - b| <= atol + rtol |b|, at the border: 3 <= 2.5 + 0.5 * 1.
  CompareOptions border = half;
  border.atol = 2.5;
  EXPECT_TRUE(two.one(a, b, border).same);
  border.atol = std::nextafter(2.5, 0.0);
  EXPECT_EQ(two.one(a, b, border).beyond, 1u);
}

TEST(Compare, WithoutATolerancesBitsCount) {
  const Two two;
  const float other_nan = std::bit_cast<float>(0x7fc00001u), nan = std::bit_cast<float>(0x7fc00000u);
  EXPECT_EQ(two.one(f32({0.f, nan, 1.f}), f32({-0.f, other_nan, 1.f})).beyond, 2u);
  CompareOptions tiny;
  tiny.atol = 1e-30;
  EXPECT_TRUE(two.one(f32({0.f, nan, 1.f}), f32({-0.f, other_nan, 1.f}), tiny).same);
  EXPECT_TRUE(std::isinf(two.one(f32({1}), f32({0})).relative_l2));
}

TEST(Compare, NoToleranceAllowsADifferenceOfNonFinites) {
  const Two two;
  CompareOptions wide;
  wide.atol = 1e30;
  const TensorComparison c = two.one(f32({INFINITY, NAN, INFINITY, -INFINITY}), f32({INFINITY, 1, -INFINITY, NAN}), wide);
  EXPECT_FALSE(c.same);
  EXPECT_EQ(c.nonfinite_differ, 3u);
  EXPECT_EQ(c.beyond, 3u);
  EXPECT_EQ(c.worst, std::vector<std::uint64_t>{1});
  EXPECT_EQ(c.nan_a, 1u);
  EXPECT_EQ(c.nan_b, 1u);
  EXPECT_EQ(c.inf_a, 3u);
  EXPECT_EQ(c.inf_b, 2u);
}

// 1 and 2 (or true) in every dtype that holds numbers, and in fp32.
TEST(Compare, EveryDtypeOfNumbersIsRead) {
  const Two two;
  CompareOptions any;
  any.any_dtype = true;
  const std::vector<Tensor> numbers = {{"t", "U8", {2}, bytes_of<std::uint8_t>({1, 2})},
                                       {"t", "I8", {2}, bytes_of<std::int8_t>({1, 2})},
                                       {"t", "I16", {2}, bytes_of<std::int16_t>({1, 2})},
                                       {"t", "U16", {2}, bytes_of<std::uint16_t>({1, 2})},
                                       {"t", "I32", {2}, bytes_of<std::int32_t>({1, 2})},
                                       {"t", "U32", {2}, bytes_of<std::uint32_t>({1, 2})},
                                       {"t", "I64", {2}, bytes_of<std::int64_t>({1, 2})},
                                       {"t", "U64", {2}, bytes_of<std::uint64_t>({1, 2})},
                                       {"t", "F16", {2}, bytes_of<std::uint16_t>({0x3c00, 0x4000})},
                                       {"t", "BF16", {2}, bytes_of<std::uint16_t>({0x3f80, 0x4000})},
                                       {"t", "F64", {2}, bytes_of({1., 2.})},
                                       {"t", "F32", {2}, bytes_of({1.f, 2.f})}};
  for (const Tensor& t : numbers) {
    const TensorComparison c = two.one(t, f32({1, 2}), any);
    EXPECT_TRUE(c.same && c.compared) << t.dtype;
    EXPECT_EQ(two.one(t, f32({1, 2})).same, t.dtype == "F32") << t.dtype;  // the dtype counts unless it was waived
    const TensorComparison off = two.one(t, f32({1, 4}), any);
    EXPECT_EQ(off.max_abs, 2) << t.dtype;
    EXPECT_EQ(off.worst_a, 2) << t.dtype;
  }
  EXPECT_TRUE(two.one({"t", "BOOL", {2}, bytes_of<std::uint8_t>({1, 0})}, f32({1, 0}), any).same);
  // Negative, subnormal and infinite halves: 0x8001 is -2^-24, 0xfc00 -infinity, 0xbc00 -1.
  const TensorComparison half =
      two.one({"t", "F16", {3}, bytes_of<std::uint16_t>({0x8001, 0xfc00, 0xbc00})}, f32({-0x1p-24f, -INFINITY, -1}), any);
  EXPECT_TRUE(half.same);
  EXPECT_EQ(half.inf_a, 1u);
}

// 2^53 and 2^53 + 1 are one number in float64.
TEST(Compare, IntegersOf64BitsAreToldApart) {
  const Two two;
  const Tensor a = {"t", "I64", {1}, bytes_of<std::int64_t>({(1ll << 53) + 1})}, b = {"t", "I64", {1}, bytes_of<std::int64_t>({1ll << 53})};
  EXPECT_EQ(two.one(a, b).max_abs, 1);
}

TEST(Compare, DtypesWithoutNumbersAreBytes) {
  const Two two;
  const Tensor a = {"t", "F8_E4M3", {4}, std::string("\x01\x02\x03\x04", 4)}, b = {"t", "F8_E4M3", {4}, std::string("\x01\x05\x06\x04", 4)};
  const TensorComparison c = two.one(a, b);
  EXPECT_FALSE(c.same || c.compared);
  EXPECT_EQ(c.beyond, 2u);
  EXPECT_TRUE(two.one(a, a).same);
  EXPECT_EQ(comparison_json(two.compare({a}, {b}))["tensors"][0]["compared"], "bytes");
  CompareOptions any;
  any.any_dtype = true;  // waives nothing where there is no number to compare
  const Tensor u8 = {"t", "U8", {4}, a.bytes};
  EXPECT_FALSE(two.one(a, u8, any).same);
  EXPECT_EQ(comparison_json(two.compare({a}, {u8}, any))["tensors"][0]["compared"], "no");
}

TEST(Compare, ShapesAreNotBent) {
  const Two two;
  const TensorComparison c = two.one({"t", "F32", {2, 1}, bytes_of({1.f, 2.f})}, {"t", "F32", {1, 2}, bytes_of({1.f, 2.f})});
  EXPECT_FALSE(c.same || c.compared);
  EXPECT_EQ(c.elements, 0u);
  const TensorComparison scalar = two.one({"t", "F32", {}, bytes_of({1.f})}, {"t", "F32", {}, bytes_of({2.f})});
  EXPECT_TRUE(scalar.has_worst);
  EXPECT_TRUE(scalar.worst.empty());
  EXPECT_TRUE(two.one({"t", "F32", {0, 3}, ""}, {"t", "F32", {0, 3}, ""}).same);
}

TEST(Compare, TensorsOfOneFileAloneAreListed) {
  const Two two;
  const Tensor x = {"x", "F32", {1}, bytes_of({1.f})}, y = {"y", "F16", {2, 1}, bytes_of<std::uint16_t>({0, 0})};
  const Comparison result = two.compare({x}, {y});
  ASSERT_EQ(result.tensors.size(), 2u);
  EXPECT_EQ(result.differing(), 2u);
  EXPECT_EQ(result.tensors[0].where, Where::only_a);
  EXPECT_EQ(result.tensors[1].where, Where::only_b);
  const nlohmann::ordered_json json = comparison_json(result);
  EXPECT_EQ(json["ok"], false);
  EXPECT_EQ(json["tensors"][0]["only_in"], "a");
  EXPECT_EQ(json["tensors"][1], nlohmann::ordered_json::parse(R"({"name":"y","same":false,"only_in":"b","dtype":"F16","shape":[2,1]})"));
  CompareOptions common;
  common.common_only = true;
  EXPECT_TRUE(two.compare({x}, {y}, common).same());
}

TEST(Compare, JsonSpellsWhatItCannotHold) {
  const Two two;
  const nlohmann::ordered_json t = comparison_json(two.compare({f32({NAN, 1})}, {f32({-INFINITY, 0})}))["tensors"][0];
  EXPECT_EQ(t["relative_l2"], "Infinity");
  EXPECT_EQ(t["worst"], nlohmann::ordered_json::parse(R"({"index":[0],"a":"NaN","b":"-Infinity"})"));
  EXPECT_EQ(t["nan"], nlohmann::ordered_json::parse("[1,0]"));
  EXPECT_EQ(t["max_abs"], 1);
}

/// The code and message that the comparison ends with.
Problem problem_of(const Two& two, const CompareOptions& options) {
  try {
    two.compare({f32({1})}, {f32({1})}, options);
  } catch (const Error& error) {
    return error.problem();
  }
  return {};
}

TEST(Compare, RefusesToleranceThatIsNone) {
  const Two two;
  for (const double bad : {-1.0, -0x1p-1074, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    CompareOptions options;
    options.rtol = bad;
    const Problem rtol = problem_of(two, options);
    EXPECT_EQ(rtol.code, Code::CFG_VALUE) << bad;
    EXPECT_NE(rtol.message.find("rtol"), std::string::npos) << rtol.message;
    options.rtol = 0, options.atol = bad;
    EXPECT_NE(problem_of(two, options).message.find("atol"), std::string::npos) << bad;
  }
}

TEST(Compare, AnInterruptionIsNoResult) {
  const Two two;
  const std::atomic<bool> cancelled{true};
  CompareOptions options;
  options.cancelled = &cancelled;
  EXPECT_EQ(problem_of(two, options).code, Code::IO_INTERRUPTED);
}

}  // namespace
}  // namespace squareq
