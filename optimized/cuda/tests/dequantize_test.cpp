// Dequantization on the device: the published vectors in every output dtype, row windows, padding, zero_point (SQ-QNT).

#include <bit>
#include <cmath>

#include "optimized/cuda/tests/device_memory.hpp"

namespace squareq::cuda_tests {
namespace {

class Dequantize : public CudaTest {
 protected:
  /// Rows [first, first + rows) of a weight [out, in] whose rows are `padded` long, as raw elements of `dtype`, `stride` apart.
  template <class T>
  std::vector<T> run(const std::vector<std::int8_t>& q, const std::vector<float>& scale, const std::vector<float>& zero_point, std::int64_t in, std::int64_t padded,
                     std::int64_t first, std::int64_t rows, std::int32_t dtype, std::int64_t stride) {
    const auto out_features = static_cast<std::int64_t>(scale.size());
    const auto device_q = on_device(q), device_scale = on_device(scale), device_zero = on_device(zero_point);
    const sq_part parts[] = {{"qweight", device_tensor(*device_q, SQ_I8, {out_features, padded})},
                             {"scale", device_tensor(*device_scale, SQ_F32, {out_features})},
                             {"zero_point", device_tensor(*device_zero, SQ_F32, {out_features})}};
    auto weight = sized<sq_weight>();
    weight.part_count = 3;
    weight.format = "bp8_v2";
    weight.name = "layer";
    weight.out_features = out_features;
    weight.in_features = in;
    weight.parts = parts;
    auto ref = sized<sq_weight_ref>();
    ref.weight = &weight;
    DeviceBytes target(static_cast<std::size_t>(rows * stride) * sizeof(T));
    sq_tensor out = device_tensor(target, dtype, {rows, in});
    out.strides[0] = stride;
    auto args = sized<sq_dequantize_args>();
    args.weight = &ref;
    args.first_row = first;
    args.out = &out;
    call(context_->linear().dequantize, *context_, args);
    EXPECT_TRUE(target.guards_intact());
    return target.read<T>();
  }
};

TEST_F(Dequantize, MatchesThePublishedVectors) {
  std::vector<std::int8_t> q;
  std::vector<float> scale;
  for (const auto& v : goldens().at("dequant")) {
    q.push_back(v.at("q").get<std::int8_t>());
    scale.push_back(std::bit_cast<float>(bits_from_hex(v.at("scale_f32_hex"))));
  }
  const auto n = static_cast<std::int64_t>(q.size());
  ASSERT_EQ(n, 12);
  const std::vector<float> zero(q.size(), -0.0f);  // a zero of either sign is a zero
  const auto f32 = run<std::uint32_t>(q, scale, zero, 1, 1, 0, n, SQ_F32, 1);
  const auto bf16 = run<std::uint16_t>(q, scale, zero, 1, 1, 0, n, SQ_BF16, 1);
  for (std::size_t i = 0; i < q.size(); ++i) {
    EXPECT_EQ(f32[i], bits_from_hex(goldens().at("dequant")[i].at("f32_hex"))) << i;
    EXPECT_EQ(bf16[i], bits_from_hex(goldens().at("dequant")[i].at("bf16_hex"))) << i;
  }
}

TEST_F(Dequantize, TakesAWindowOfRowsAndDropsPadding) {
  const std::int64_t out = 70, in = 300, padded = 320;
  std::vector<std::int8_t> q(static_cast<std::size_t>(out * padded), 99);
  std::vector<float> scale(static_cast<std::size_t>(out));
  for (std::int64_t n = 0; n < out; ++n) {
    scale[static_cast<std::size_t>(n)] = std::ldexp(1.0f, static_cast<int>(n % 7) - 3);
    for (std::int64_t k = 0; k < in; ++k) q[static_cast<std::size_t>(n * padded + k)] = static_cast<std::int8_t>((n * 31 + k * 7) % 255 - 127);
  }
  const auto got = run<float>(q, scale, std::vector<float>(static_cast<std::size_t>(out)), in, padded, 3, 60, SQ_F32, in + 5);
  const auto half = run<std::uint16_t>(q, scale, std::vector<float>(static_cast<std::size_t>(out)), in, padded, 3, 60, SQ_F16, in + 5);
  for (std::int64_t i = 0; i < 60; ++i) {
    for (std::int64_t k = 0; k < in + 5; ++k) {
      const auto at = static_cast<std::size_t>(i * (in + 5) + k);
      if (k >= in) {  // between the rows nothing is written
        EXPECT_EQ(std::bit_cast<std::uint32_t>(got[at]), 0xCDCDCDCDu);
        EXPECT_EQ(half[at], 0xCDCDu);
        continue;
      }
      const double exact = std::ldexp(static_cast<double>(((i + 3) * 31 + k * 7) % 255 - 127), static_cast<int>((i + 3) % 7) - 3);
      ASSERT_EQ(got[at], exact);
      ASSERT_EQ(static_cast<double>(std::bit_cast<_Float16>(half[at])), exact);
    }
  }
}

TEST_F(Dequantize, RefusesAZeroPointThatIsNotZero) {
  std::vector<float> zero(500, 0.0f);
  zero[300] = 1.0f, zero[400] = 2.0f;
  const Error e = error_of([&] { run<float>(std::vector<std::int8_t>(500), std::vector<float>(500, 1.0f), zero, 1, 1, 0, 500, SQ_F32, 1); });
  EXPECT_EQ(e.code(), Code::DT_ZP_NONZERO);
  EXPECT_NE(std::string(e.what()).find("row 300"), std::string::npos) << e.what();
}

TEST_F(Dequantize, RefusesRowsOutsideTheWeightAndShortRows) {
  const std::vector<float> ones(4, 1.0f), zeros(4, 0.0f);
  const std::vector<std::int8_t> q(16);
  const auto code = [&](std::int64_t in, std::int64_t first, std::int64_t rows) {
    return error_of([&] { run<float>(q, ones, zeros, in, 4, first, rows, SQ_F32, in); }).code();
  };
  EXPECT_EQ(code(4, 0, 4), Code::OK);
  EXPECT_EQ(code(4, 4, 0), Code::OK);
  EXPECT_EQ(code(4, 1, 4), Code::CALL_SHAPE);
  EXPECT_EQ(code(4, -1, 2), Code::CALL_SHAPE);
  EXPECT_EQ(code(5, 0, 1), Code::CALL_SHAPE);
}

}  // namespace
}  // namespace squareq::cuda_tests
