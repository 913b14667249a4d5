// Queries and keys made ready for attention, against float64 and the bounds of spec/35-numerics.md (SQ-LIN-060 to 065, SQ-NUM-023).
#include "optimized/cuda/tests/layer.hpp"

namespace squareq::cuda_tests {
namespace {

constexpr float kEpsilon = 1e-6f;

struct HeadShape {
  std::int64_t rows, heads, size, positions;  // positions 0: no table
};

/// A call's tensors and what float64 makes of them.
struct Tokens {
  HeadShape shape;
  std::int32_t dtype;
  DeviceMatrix x, dy, weight, rope, y, dx;

  Tokens(const HeadShape& s, std::int32_t type, std::int64_t gap = 0, std::int64_t shift = 0) : shape(s), dtype(type) {
    std::mt19937 random(static_cast<unsigned>(s.rows * 31 + s.size));
    std::normal_distribution<double> normal;
    const std::int64_t columns = s.heads * s.size;
    for (DeviceMatrix* m : {&x, &dy, &y, &dx}) *m = DeviceMatrix(type, s.rows, columns, columns + gap, shift);
    x.fill([&](auto, auto) { return 2 * normal(random); });
    dy.fill([&](auto, auto) { return normal(random); });
    y.upload(), dx.upload();
    weight = DeviceMatrix(type, 1, s.size);
    weight.fill([&](auto, auto) { return 1 + 0.3 * normal(random); });
    if (!s.positions) return;
    rope = DeviceMatrix(SQ_F32, s.positions, s.size, s.size + 3 * gap, shift);
    rope.fill([&](auto p, auto j) { return j % 2 == 0 ? std::cos(0.1 * static_cast<double>(p * (j / 2 + 1))) : std::sin(0.1 * static_cast<double>(p * (j / 2 + 1))); });
  }

  void forward(const Context& context, bool in_place = false) {
    auto args = sized<sq_rms_norm_rope_forward_args>();
    args.epsilon = kEpsilon, args.x = x.tensor(), args.weight = weight.tensor(true), args.y = in_place ? args.x : y.tensor();
    if (rope) args.rope = rope.tensor();
    call(context.linear().rms_norm_rope_forward, context, args);
  }
  void backward(const Context& context, bool in_place = false) {
    auto args = sized<sq_rms_norm_rope_backward_args>();
    args.epsilon = kEpsilon, args.x = x.tensor(), args.weight = weight.tensor(true), args.dy = dy.tensor(), args.dx = in_place ? args.dy : dx.tensor();
    if (rope) args.rope = rope.tensor();
    call(context.linear().rms_norm_rope_backward, context, args);
  }

  double cosine(std::int64_t m, std::int64_t j) const { return rope ? rope.get(m % shape.positions, j / 2 * 2) : 1; }
  double sine(std::int64_t m, std::int64_t j) const { return rope ? rope.get(m % shape.positions, j / 2 * 2 + 1) : 0; }

  /// Compares `got` with float64, element by element.
  void expect_forward(DeviceMatrix& got) {
    got.download();
    EXPECT_TRUE(got.intact());
    for_heads([&](std::int64_t m, std::int64_t first, double inverse) {
      const auto n = [&](std::int64_t j) { return j < shape.size ? x.get(m, first + j) * inverse * weight.get(0, j) : 0; };
      for (std::int64_t j = 0; j < shape.size; ++j) {
        const double mine = n(j) * cosine(m, j), other = n(j ^ 1) * sine(m, j), want = j % 2 == 0 ? mine - other : mine + other;
        near(got.get(m, first + j), want, sums() * (std::fabs(mine) + std::fabs(other)), m, first + j);
      }
    });
  }
  void expect_backward(DeviceMatrix& got, const DeviceMatrix& dy_before) {
    got.download();
    EXPECT_TRUE(got.intact());
    for_heads([&](std::int64_t m, std::int64_t first, double inverse) {
      std::vector<double> weighted(static_cast<std::size_t>(shape.size)), terms(weighted);
      double mean = 0, mean_terms = 0;
      for (std::int64_t j = 0; j < shape.size; ++j) {
        const double mine = dy_before.get(m, first + j) * cosine(m, j), other = (j ^ 1) < shape.size ? dy_before.get(m, first + (j ^ 1)) * sine(m, j) : 0;
        weighted[static_cast<std::size_t>(j)] = weight.get(0, j) * (j % 2 == 0 ? mine + other : mine - other);
        terms[static_cast<std::size_t>(j)] = std::fabs(weight.get(0, j)) * (std::fabs(mine) + std::fabs(other));
        mean += x.get(m, first + j) * weighted[static_cast<std::size_t>(j)] / static_cast<double>(shape.size);
        mean_terms += std::fabs(x.get(m, first + j)) * terms[static_cast<std::size_t>(j)] / static_cast<double>(shape.size);
      }
      for (std::int64_t j = 0; j < shape.size; ++j) {
        const double of_x = x.get(m, first + j) * inverse * inverse;
        near(got.get(m, first + j), inverse * (weighted[static_cast<std::size_t>(j)] - of_x * mean),
             3 * sums() * inverse * (terms[static_cast<std::size_t>(j)] + std::fabs(of_x) * mean_terms), m, first + j);
      }
    });
  }

 private:
  double sums() const { return static_cast<double>(shape.size + 16) * 0x1p-24; }
  template <class Body>
  void for_heads(const Body& body) const {
    for (std::int64_t m = 0; m < shape.rows; ++m)
      for (std::int64_t first = 0; first < shape.heads * shape.size; first += shape.size) {
        double squares = 0;
        for (std::int64_t j = 0; j < shape.size; ++j) squares += x.get(m, first + j) * x.get(m, first + j);
        body(m, first, 1 / std::sqrt(squares / static_cast<double>(shape.size) + static_cast<double>(kEpsilon)));
      }
  }
  void near(double got, double want, double error, std::int64_t m, std::int64_t column) const {
    ASSERT_LE(std::fabs(got - want), error + unit_of(dtype) * (std::fabs(want) + error) + smallest_of(dtype))
        << "[" << m << ", " << column << "] of " << shape.heads << " heads of " << shape.size << ", " << dtype_name(dtype);
  }
};

class RmsNormRope : public CudaTest {};

TEST_F(RmsNormRope, StaysWithinItsBoundForEverySizeOfHead) {
  for (const HeadShape& shape : {HeadShape{5, 3, 2, 5}, {6, 2, 1, 0}, {3, 5, 7, 0}, {7, 4, 24, 7}, {8, 9, 32, 4}, {3, 11, 64, 3}, {33, 24, 128, 33}, {2, 17, 128, 1}, {3, 3, 256, 3},
                             {4, 2, 264, 2}, {3, 2, 1000, 3}, {3, 1, 513, 0}, {0, 3, 64, 1}})
    for (const std::int32_t dtype : {SQ_F32, SQ_BF16, SQ_F16})
      for (const std::int64_t odd : {0, 1}) {  // rows that no wide load fits, too
        Tokens t(shape, dtype, odd, odd);
        t.forward(*context_), t.backward(*context_);
        t.expect_forward(t.y), t.expect_backward(t.dx, t.dy);
      }
}

TEST_F(RmsNormRope, InPlaceAndAgainGiveTheSameBits) {
  for (const std::int64_t size : {128, 520}) {
    Tokens t({40, 6, size, 20}, SQ_BF16), other({40, 6, size, 20}, SQ_BF16);
    t.forward(*context_), t.backward(*context_);
    other.backward(*context_, true), other.forward(*context_, true);
    for (DeviceMatrix* m : {&t.y, &t.dx, &other.x, &other.dy}) m->download();
    EXPECT_EQ(t.y.bytes(), other.x.bytes());
    EXPECT_EQ(t.dx.bytes(), other.dy.bytes());
  }
}

TEST_F(RmsNormRope, WhatIsNoNumberStaysInItsHead) {
  Tokens t({4, 5, 64, 4}, SQ_BF16), clean({4, 5, 64, 4}, SQ_BF16);
  t.x.set(2, 3 * 64 + 9, NAN), t.dy.set(1, 64, HUGE_VAL);
  t.x.upload(), t.dy.upload();
  for (Tokens* tokens : {&t, &clean}) tokens->forward(*context_), tokens->backward(*context_), tokens->y.download(), tokens->dx.download();
  for (std::int64_t m = 0; m < 4; ++m)
    for (std::int64_t j = 0; j < 5 * 64; ++j) {
      const bool bad_x = m == 2 && j / 64 == 3, bad_dy = m == 1 && j / 64 == 1;
      EXPECT_TRUE(bad_x ? std::isnan(t.y.get(m, j)) : t.y.get(m, j) == clean.y.get(m, j)) << m << " " << j;
      EXPECT_TRUE(bad_x || bad_dy ? !std::isfinite(t.dx.get(m, j)) : t.dx.get(m, j) == clean.dx.get(m, j)) << m << " " << j;
    }
}

TEST_F(RmsNormRope, RefusesWhatDoesNotFit) {
  const auto code_of = [&](const auto& change) {
    Tokens t({6, 2, 8, 3}, SQ_F32);
    change(t);
    const auto error = error_of([&] { t.forward(*context_); });
    EXPECT_EQ(error_of([&] { t.backward(*context_); }).code(), error.code());
    return error.code();
  };
  EXPECT_EQ(code_of([](Tokens& t) { t.rope = DeviceMatrix(SQ_F32, 4, 8); }), Code::CALL_SHAPE);
  EXPECT_EQ(code_of([](Tokens& t) { t.rope = DeviceMatrix(SQ_F32, 3, 6); }), Code::CALL_SHAPE);
  EXPECT_EQ(code_of([](Tokens& t) { t.rope = DeviceMatrix(SQ_BF16, 3, 8); }), Code::CALL_DTYPE);
  EXPECT_EQ(code_of([](Tokens& t) { t.weight = DeviceMatrix(SQ_F32, 1, 5), t.rope = DeviceMatrix(); }), Code::CALL_SHAPE);
  EXPECT_EQ(code_of([](Tokens& t) { t.x = DeviceMatrix(SQ_F32, 6, 15), t.weight = DeviceMatrix(SQ_F32, 1, 5), t.rope = DeviceMatrix(SQ_F32, 3, 5); }), Code::CALL_SHAPE);
  EXPECT_EQ(code_of([](Tokens& t) { t.y = DeviceMatrix(SQ_BF16, 6, 16), t.dx = DeviceMatrix(SQ_BF16, 6, 16); }), Code::CALL_DTYPE);
  EXPECT_EQ(code_of([](Tokens& t) { t.y = DeviceMatrix(SQ_F32, 5, 16), t.dx = DeviceMatrix(SQ_F32, 5, 16); }), Code::CALL_SHAPE);
}

}  // namespace
}  // namespace squareq::cuda_tests
