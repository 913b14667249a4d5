// Activations to int8 (SQ-QNT-020 to 024): rows of every length that the pass has a kernel for, at ties, behind producers, and wherever they lie.
#include <random>

#include "optimized/cuda/tests/layer.hpp"

namespace squareq::cuda_tests {
namespace {

/// One element; two eights of a thread, four, eight; rows longer than that; rows that are no whole eights.
constexpr std::int64_t kColumns[] = {1, 72, 100, 3072, 9000, 20008, 33000};

class Tokens : public CudaTest {
 protected:
  void TearDown() override { EXPECT_EQ(allocator_.live_bytes, 0u); }

  struct Codes {
    DeviceMatrix q, scale;
  };
  /// `far`: the codes' rows lie off their alignment too.
  Codes quantize(DeviceMatrix& x, bool far = false, std::int32_t producer = SQ_PRODUCER_NONE, DeviceMatrix* shift = nullptr, DeviceMatrix* modulation = nullptr) {
    Codes out{DeviceMatrix(SQ_I8, x.rows(), x.columns(), far ? x.columns() + 3 : 0, far ? 1 : 0), DeviceMatrix(SQ_F32, 1, x.rows())};
    const sq_part parts[] = {{"q", *out.q.tensor()}, {"scale", *out.scale.tensor(true)}};
    auto args = sized<sq_quantize_activation_args>();
    args.x = x.tensor(), args.format = "per_token_int8", args.out = parts, args.out_count = 2, args.producer = producer, args.epsilon = 1e-6f;
    if (shift) args.shift = shift->tensor(), args.scale = modulation->tensor();
    call(context_->linear().quantize_activation, *context_, args);
    out.q.download(), out.scale.download();
    EXPECT_TRUE(out.q.intact() && out.scale.intact());
    return out;
  }
};

TEST_F(Tokens, TiesGoToTheEvenCode) {
  // A scale of 3, 5 or 7 has no exact reciprocal, and what lies half a scale beside a code is a number of 11 bits.
  for (const std::int64_t columns : {256, 20000, 301}) {
    DeviceMatrix x(SQ_F16, 3, columns);
    const auto half_codes = [&](std::int64_t column) { return column == 0 ? 254 : column % 254 * 2 - 253; };
    x.fill([&](std::int64_t row, std::int64_t column) { return static_cast<double>(2 * row + 3) * half_codes(column) / 2; });
    const Codes got = quantize(x);
    for (std::int64_t row = 0; row < x.rows(); ++row) {
      ASSERT_EQ(got.scale.get(0, row), 2 * row + 3);
      for (std::int64_t column = 0; column < columns; ++column)
        ASSERT_EQ(got.q.get(row, column), std::nearbyint(half_codes(column) / 2.0)) << columns << ": [" << row << ", " << column << "]";
    }
  }
}

TEST_F(Tokens, EveryCodeIsTheRoundedQuotient) {
  for (const std::int32_t dtype : {SQ_BF16, SQ_F16, SQ_F32})
    for (const std::int64_t columns : kColumns) {
      DeviceMatrix x(dtype, 5, columns);
      std::mt19937 random(41);
      std::normal_distribution<double> normal;
      x.fill([&](std::int64_t row, std::int64_t) { return normal(random) * std::ldexp(1.0, static_cast<int>(3 * row) - 6); });
      const Codes got = quantize(x);
      for (std::int64_t row = 0; row < x.rows(); ++row) {
        float largest = 0;
        for (std::int64_t k = 0; k < columns; ++k) largest = std::max(largest, std::fabs(static_cast<float>(x.get(row, k))));
        const float scale = std::max(largest / 127.0f, 1e-30f);
        ASSERT_EQ(got.scale.get(0, row), scale);
        for (std::int64_t k = 0; k < columns; ++k)
          ASSERT_EQ(got.q.get(row, k), std::nearbyint(static_cast<float>(x.get(row, k)) / scale)) << dtype_name(dtype) << " " << columns << ": [" << row << ", " << k << "]";
      }
    }
}

TEST_F(Tokens, ProducersStayWithinTheirBound) {
  for (const std::int32_t dtype : {SQ_BF16, SQ_F16, SQ_F32})
    for (const std::int64_t columns : kColumns)
      for (const std::int32_t producer : {SQ_PRODUCER_LAYERNORM_MODULATE, SQ_PRODUCER_GELU_TANH})
        for (const bool far : {false, true}) {  // the same values, no chunk at a multiple of 16 bytes
          const std::int64_t rows = 6, groups = 2, stride = far ? columns + 1 : 0;
          DeviceMatrix x(dtype, rows, columns, stride, far), shift(dtype, groups, columns, stride, far), modulation(dtype, groups, columns, stride, far);
          std::mt19937 random(42);
          std::normal_distribution<double> normal;
          // Row 0 is all one number that no sum of it divides evenly; rows 3 to 5 have a mean far beyond their deviation.
          x.fill([&](std::int64_t row, std::int64_t) { return row == 0 ? 0.7 : normal(random) + (row >= 3 && producer == SQ_PRODUCER_LAYERNORM_MODULATE ? 8.0 : 0.0); });
          for (DeviceMatrix* m : {&shift, &modulation}) m->fill([&](std::int64_t, std::int64_t) { return 0.25 * normal(random); });
          const bool normalizes = producer == SQ_PRODUCER_LAYERNORM_MODULATE;
          Codes got = quantize(x, far, producer, normalizes ? &shift : nullptr, normalizes ? &modulation : nullptr);
          for (std::int64_t row = 0; row < rows; ++row) {
            double mean = 0, squares = 0, largest = 0;
            for (std::int64_t k = 0; k < columns; ++k) mean += x.get(row, k) / static_cast<double>(columns);
            for (std::int64_t k = 0; k < columns; ++k) squares += std::pow(x.get(row, k) - mean, 2);
            const double inverse = 1 / std::sqrt(squares / static_cast<double>(columns) + static_cast<double>(1e-6f));
            const auto produced = [&](std::int64_t k) {
              const double v = x.get(row, k);
              if (!normalizes) return 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
              return (row == 0 ? 0 : (v - mean) * inverse) * (1 + modulation.get(row / 3, k)) + shift.get(row / 3, k);
            };
            for (std::int64_t k = 0; k < columns; ++k) largest = std::max(largest, std::fabs(produced(k)));
            const double scale = std::max(largest / 127, 1e-30);
            const std::string where = std::string(dtype_name(dtype)) + " " + std::to_string(columns) + " producer " + std::to_string(producer) + " row " + std::to_string(row);
            ASSERT_NEAR(got.scale.get(0, row), scale, 64 * 0x1p-24 * scale) << where;  // spec/35-numerics.md
            for (std::int64_t k = 0; k < columns; ++k) ASSERT_NEAR(got.q.get(row, k), produced(k) / scale, 0.5 + 0.01) << where << " column " << k;
          }
        }
}

TEST_F(Tokens, TheSameBitsWhereverRowsLie) {
  for (const std::int32_t dtype : {SQ_BF16, SQ_F16})
    for (const std::int64_t columns : {72, 3072, 9000, 20008})
      for (const std::int32_t producer : {SQ_PRODUCER_NONE, SQ_PRODUCER_LAYERNORM_MODULATE, SQ_PRODUCER_GELU_TANH}) {
        const auto made = [&](bool far) {
          DeviceMatrix x(dtype, 9, columns, far ? columns + 1 : 0, far), shift(dtype, 1, columns), modulation(dtype, 1, columns);
          std::mt19937 random(43);
          std::normal_distribution<double> normal;
          for (DeviceMatrix* m : {&x, &shift, &modulation}) m->fill([&](std::int64_t, std::int64_t) { return normal(random); });
          const bool normalizes = producer == SQ_PRODUCER_LAYERNORM_MODULATE;
          return quantize(x, far, producer, normalizes ? &shift : nullptr, normalizes ? &modulation : nullptr);
        };
        const Codes held = made(false), again = made(true);
        EXPECT_EQ(held.scale.bytes(), again.scale.bytes()) << dtype_name(dtype) << " " << columns << " producer " << producer;
        for (std::int64_t row = 0; row < 9; ++row)
          for (std::int64_t k = 0; k < columns; ++k) ASSERT_EQ(held.q.get(row, k), again.q.get(row, k)) << columns << " producer " << producer << ": [" << row << ", " << k << "]";
      }
}

TEST_F(Tokens, ARowThatIsNotFiniteHasNoScale) {
  for (const std::int32_t dtype : {SQ_BF16, SQ_F16})
    for (const std::int64_t columns : {72, 9000, 100})
      for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
        DeviceMatrix x(dtype, 3, columns);
        x.fill([&](std::int64_t row, std::int64_t column) { return row == 1 && column == columns - 1 ? bad : 1.0; });
        const Codes got = quantize(x);
        for (std::int64_t row = 0; row < 3; ++row) {
          EXPECT_EQ(std::isnan(got.scale.get(0, row)), row == 1) << columns << " " << bad;
          for (std::int64_t column = 0; column < columns; ++column) ASSERT_EQ(got.q.get(row, column), row == 1 ? 0 : 127);
        }
      }
}

TEST_F(Tokens, ARowWhoseSquaresOverflowHasNoScale) {
  DeviceMatrix x(SQ_BF16, 2, 72), shift(SQ_BF16, 1, 72), modulation(SQ_BF16, 1, 72);
  x.fill([](std::int64_t row, std::int64_t column) { return (column % 2 ? 1 : -1) * (row == 0 ? 1.0 : 1e30); });
  for (DeviceMatrix* m : {&shift, &modulation}) m->fill([](std::int64_t, std::int64_t) { return 0.5; });
  const Codes got = quantize(x, false, SQ_PRODUCER_LAYERNORM_MODULATE, &shift, &modulation);
  EXPECT_FALSE(std::isnan(got.scale.get(0, 0)));
  EXPECT_TRUE(std::isnan(got.scale.get(0, 1)));
}

}  // namespace
}  // namespace squareq::cuda_tests
