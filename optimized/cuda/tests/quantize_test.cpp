// Slab arithmetic on the device against the published vectors of the Python builder, bit for bit (SQ-QNT).

#include <openssl/sha.h>

#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "optimized/cuda/tests/device_memory.hpp"

namespace squareq::cuda_tests {
namespace {

struct Result {
  std::vector<std::int8_t> q;
  std::vector<float> scale, zero_point;
  std::uint64_t floored = 0;
};

class Quantize : public CudaTest {
 protected:
  /// Quantizes `w` [rows, columns], rows `stride` elements apart; checks guards and that a refusal writes nothing.
  template <class T>
  Result run(const std::vector<T>& w, std::int32_t dtype, std::int64_t rows, std::int64_t columns, std::int64_t stride, std::uint32_t pack_k,
             cudaStream_t stream = nullptr) {
    const std::int64_t padded = pack_k <= 1 ? columns : (columns + pack_k - 1) / pack_k * pack_k;
    const auto source = on_device(w);
    DeviceBytes q(static_cast<std::size_t>(rows * padded)), s(static_cast<std::size_t>(rows) * 4), z(static_cast<std::size_t>(rows) * 4);
    sq_tensor weight = device_tensor(*source, dtype, {rows, columns});
    weight.strides[0] = stride;
    const sq_part out[] = {{"qweight", device_tensor(q, SQ_I8, {rows, padded})}, {"scale", device_tensor(s, SQ_F32, {rows})}, {"zero_point", device_tensor(z, SQ_F32, {rows})}};
    Result result;
    auto args = sized<sq_quantize_args>();
    args.pack_k = pack_k;
    args.format = "bp8_v2";
    args.name = "layer";
    args.stream = stream;
    args.w = &weight;
    args.out = out;
    args.out_count = 3;
    args.floored_rows = &result.floored;
    try {
      call(context_->linear().quantize, *context_, args);
    } catch (const Error&) {
      for (const DeviceBytes* bytes : {&q, &s, &z})
        for (const unsigned char b : bytes->read<unsigned char>()) EXPECT_EQ(b, 0xCD) << "written although refused";
      throw;
    }
    result.q = q.read<std::int8_t>();
    result.scale = s.read<float>();
    result.zero_point = z.read<float>();
    for (const DeviceBytes* bytes : std::initializer_list<const DeviceBytes*>{source.get(), &q, &s, &z}) EXPECT_TRUE(bytes->guards_intact());
    EXPECT_EQ(allocator_.live_bytes, 0u);
    return result;
  }
};

TEST_F(Quantize, MatchesEveryGoldenRow) {
  int compared = 0;
  for (const auto& golden : goldens().at("rows")) {
    const std::string name = golden.at("name");
    std::vector<float> w;
    for (const auto& row : golden.at("weight_f32_hex"))
      for (const auto& hex : row) w.push_back(std::bit_cast<float>(bits_from_hex(hex)));
    const std::int64_t rows = golden.at("orig_shape")[0], columns = golden.at("orig_shape")[1];
    const auto quantize = [&] { return run(w, SQ_F32, rows, columns, columns, golden.at("pack_k").get<std::uint32_t>()); };
    if (name == "flt_max_row") {  // its dequantized maximum overflows: refused by builders
      EXPECT_EQ(error_of(quantize).code(), Code::DT_WEIGHT_NONFINITE);
      continue;
    }
    const Result got = quantize();
    std::vector<std::int8_t> q;
    for (const auto& row : golden.at("qweight"))
      for (const auto& value : row) q.push_back(value.get<std::int8_t>());
    EXPECT_EQ(got.q, q) << name;
    for (std::size_t n = 0; n < got.scale.size(); ++n) {
      EXPECT_EQ(std::bit_cast<std::uint32_t>(got.scale[n]), bits_from_hex(golden.at("scale_f32_hex")[n])) << name;
      EXPECT_EQ(std::bit_cast<std::uint32_t>(got.zero_point[n]), 0u) << name;
    }
    ++compared;
  }
  EXPECT_EQ(compared, 33);
}

std::uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

std::uint16_t to_f16(float x) { return std::bit_cast<std::uint16_t>(static_cast<_Float16>(x)); }

template <class T>
std::string sha256(const std::vector<T>& values) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(values.data()), values.size() * sizeof(T), digest);
  std::string hex;
  for (const unsigned char b : digest) hex += {"0123456789abcdef"[b >> 4], "0123456789abcdef"[b & 15]};
  return hex;
}

TEST_F(Quantize, MatchesTheHashedMatricesInEveryDtypeAndRowStride) {
  for (const auto& golden : goldens().at("hashed")) {
    const std::string name = golden.at("name"), dtype = golden.at("dtype");
    const std::int64_t rows = golden.at("orig_shape")[0], columns = golden.at("orig_shape")[1];
    std::uint32_t state = golden.at("seed");
    const auto u16 = [&state] { return static_cast<std::int64_t>((state = state * 1664525u + 1013904223u) >> 16); };
    std::vector<float> w(static_cast<std::size_t>(rows * columns));
    for (float& x : w) x = std::ldexp(static_cast<float>(u16() + u16() + u16() + u16() - 131070), -golden.at("shift").get<int>());
    const auto quantize = [&]<class T>(std::int32_t type, const auto& convert, std::int64_t stride, T) {
      std::vector<T> strided(static_cast<std::size_t>(rows * stride), T{});
      for (std::int64_t n = 0; n < rows; ++n)
        for (std::int64_t k = 0; k < columns; ++k) strided[static_cast<std::size_t>(n * stride + k)] = convert(w[static_cast<std::size_t>(n * columns + k)]);
      return run(strided, type, rows, columns, stride, golden.at("pack_k").get<std::uint32_t>());
    };
    for (const std::int64_t stride : {columns, columns + 3}) {
      const Result got = dtype == "bf16"  ? quantize(SQ_BF16, to_bf16, stride, std::uint16_t{})
                         : dtype == "f16" ? quantize(SQ_F16, to_f16, stride, std::uint16_t{})
                                          : quantize(SQ_F32, [](float x) { return x; }, stride, float{});
      EXPECT_EQ(sha256(got.q), golden.at("qweight_sha256").get<std::string>()) << name;
      EXPECT_EQ(sha256(got.scale), golden.at("scale_sha256").get<std::string>()) << name;
      if (dtype != "f32") continue;
      const Result wide = quantize(SQ_F64, [](float x) { return static_cast<double>(x); }, stride, double{});
      EXPECT_EQ(wide.q, got.q) << name;
    }
  }
}

TEST_F(Quantize, CountsFlooredRows) {
  EXPECT_EQ(run<float>({0, 0, 1e-7f, 0, 1, 0}, SQ_F32, 3, 2, 2, 1).floored, 2u);
}

TEST_F(Quantize, MoreRowsThanTheGridHasBlocks) {
  const std::int64_t rows = 40000;
  std::vector<float> w(static_cast<std::size_t>(rows) * 2);
  for (std::int64_t n = 0; n < rows; ++n) w[static_cast<std::size_t>(2 * n)] = 127, w[static_cast<std::size_t>(2 * n + 1)] = static_cast<float>(n % 127);
  const Result got = run(w, SQ_F32, rows, 2, 2, 1);
  for (std::int64_t n = 0; n < rows; ++n) ASSERT_EQ(got.q[static_cast<std::size_t>(2 * n + 1)], n % 127);
}

TEST_F(Quantize, NamesTheFirstElementThatRulesAWeightOut) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const auto message = [&](std::vector<float> w) {
    const Error e = error_of([&] { run(w, SQ_F32, 3, 4, 4, 1); });
    EXPECT_EQ(e.code(), Code::DT_WEIGHT_NONFINITE);
    EXPECT_EQ(e.problem().layer, "layer");
    return std::string(e.what());
  };
  EXPECT_NE(message({1, 1, 1, 1, 1, 1, nan, inf, 1, nan, 1, 1}).find("row 1, column 2 is NaN"), std::string::npos);
  EXPECT_NE(message({1, 1, 1, 1, 1, 1, 1, 1, 1, -inf, 1, nan}).find("row 2, column 1 is infinite"), std::string::npos);
  EXPECT_NE(message({1, 1, 1, 1, 1, 3.4028235e38f, 1, 1, 1, 1, 1, 1}).find("row 1, column 1"), std::string::npos);
}

TEST_F(Quantize, WorksOnAStreamAndTakesScratchForIt) {
  cudaStream_t stream = nullptr;
  REQUIRE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  EXPECT_EQ(run<float>({127, 1, 2, 3}, SQ_F32, 1, 4, 4, 1, stream).q, (std::vector<std::int8_t>{127, 1, 2, 3}));
  ASSERT_EQ(allocator_.streams.size(), 2u);
  for (const sq_stream_handle used : allocator_.streams) EXPECT_EQ(used, stream);
  REQUIRE_CUDA(cudaStreamDestroy(stream));
}

TEST_F(Quantize, AFailedAllocationIsAnErrorAndLeaksNothing) {
  for (std::uint64_t request = 0; request < 2; ++request) {
    allocator_.requests = 0;
    allocator_.fail_at = request;
    EXPECT_EQ(error_of([&] { run<float>({1, 2, 3, 4}, SQ_F32, 1, 4, 4, 1); }).code(), Code::GPU_OOM);
    EXPECT_EQ(allocator_.live_bytes, 0u);
  }
}

TEST_F(Quantize, RefusesHostMemoryWrongShapesAndDtypes) {
  DeviceBytes w(64), q(16), s(16), z(16);
  const auto code = [&](const std::function<void(sq_tensor&, sq_part*)>& spoil) {
    sq_tensor weight = device_tensor(w, SQ_F32, {4, 4});
    sq_part out[] = {{"qweight", device_tensor(q, SQ_I8, {4, 4})}, {"scale", device_tensor(s, SQ_F32, {4})}, {"zero_point", device_tensor(z, SQ_F32, {4})}};
    spoil(weight, out);
    auto args = sized<sq_quantize_args>();
    args.format = "bp8_v2";
    args.name = "layer";
    args.w = &weight;
    args.out = out;
    args.out_count = 3;
    return error_of([&] { call(context_->linear().quantize, *context_, args); }).code();
  };
  EXPECT_EQ(code([](sq_tensor& t, sq_part*) { t.device = {SQ_CPU, 0}; }), Code::CALL_DEVICE);
  EXPECT_EQ(code([](sq_tensor& t, sq_part*) { t.dtype = SQ_I8; }), Code::CALL_DTYPE);
  EXPECT_EQ(code([](sq_tensor& t, sq_part*) { t.strides[1] = 2; }), Code::CALL_SHAPE);
  EXPECT_EQ(code([](sq_tensor& t, sq_part*) { t.data = nullptr; }), Code::CALL_NULL);
  EXPECT_EQ(code([](sq_tensor& t, sq_part*) { t.data = static_cast<char*>(t.data) + 2; }), Code::CALL_ALIGN);
  EXPECT_EQ(code([](sq_tensor&, sq_part* p) { p[1].tensor.shape[0] = 3; }), Code::CALL_SHAPE);
  EXPECT_EQ(code([](sq_tensor&, sq_part* p) { p[2].name = "scale"; }), Code::CALL_VALUE);
  EXPECT_EQ(code([](sq_tensor&, sq_part* p) { p[0].name = "codes"; }), Code::CALL_VALUE);
}

}  // namespace
}  // namespace squareq::cuda_tests
