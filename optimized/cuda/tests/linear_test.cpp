// Linear layers and their branch on the device, through every kernel: exact vectors bit for bit (SQ-NUM-010 to 012), ordinary numbers within the
// derived bounds (SQ-NUM-020, 021), every epilogue, strides, addresses off their alignment, reruns, refusals.

#include <functional>

#include "optimized/cuda/tests/layer.hpp"

namespace squareq::cuda_tests {
namespace {

constexpr std::int32_t kDtypes[] = {SQ_BF16, SQ_F16, SQ_F32};

class Linear : public CudaTest, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    setenv("SQUAREQ_CUDA_KERNEL", GetParam(), 1);
    CudaTest::SetUp();
    unsetenv("SQUAREQ_CUDA_KERNEL");
  }
  void TearDown() override { EXPECT_EQ(allocator_.live_bytes, 0u); }

  /// Integer sums of codes: not for the plain kernel, which says so.
  bool sums_codes() const { return std::string(GetParam()) != "plain_fp32"; }
  void forward(DeviceLayer& d) { call(context_->linear().linear_forward, *context_, d.forward); }
  void backward(DeviceLayer& d) { call(context_->linear().linear_backward, *context_, d.backward); }

  void check_all(const Layer& l, DeviceLayer& d, bool bounded) {
    SCOPED_TRACE(text(l) + " " + kernel_of(*context_, SQ_OP_LINEAR_FORWARD, &d.forward) + " " + kernel_of(*context_, SQ_OP_LINEAR_BACKWARD, &d.backward));
    forward(d);
    backward(d);
    const auto y = l.y();
    expect("y", d.y, y, bounded);
    expect("preactivation", d.preactivation, l.v(), bounded);
    d.forward.preactivation = nullptr;  // one output may take another way out of the kernel
    forward(d);
    expect("y alone", d.y, y, bounded);
    expect("dx", d.dx, l.dx(), bounded);
    if (!l.s.r) return;
    expect("h", d.h, l.h(), bounded);
    expect("da_t", d.da_t, l.da_t(), bounded);
    expect("db_t", d.db_t, l.db_t(), bounded);
    if (l.own_x) expect("dx_lora", d.dx_lora, l.dx_branch(), bounded);
  }

  /// Exact results too many to compare all: the corners and a sample. `in_name` is looked for in wgmma_tma's name where it serves the call.
  void expect_exact(const Shape& shape, bool forwards, const char* in_name) {
    Layer l(shape, SQ_BF16, true, 25);
    DeviceLayer d(l, SQ_BF16);
    const std::string kernel = forwards ? kernel_of(*context_, SQ_OP_LINEAR_FORWARD, &d.forward) : kernel_of(*context_, SQ_OP_LINEAR_BACKWARD, &d.backward);
    if (kernel.rfind("wgmma_tma", 0) == 0) {
      EXPECT_NE(kernel.find(in_name), std::string::npos) << kernel;
    }
    for (const bool alone : {false, true}) {
      if (alone) d.forward.preactivation = nullptr;
      forwards ? forward(d) : backward(d);
      expect_exact_sample(l, forwards ? d.y : d.dx, forwards, kernel);
    }
  }
  static void expect_exact_sample(const Layer& l, DeviceMatrix& got, bool forwards, const std::string& kernel) {
    got.download();
    EXPECT_TRUE(got.intact());
    std::mt19937 random(26);
    for (int i = 0; i < 2000; ++i) {
      const std::int64_t row = i < 4 ? i % 2 * (got.rows() - 1) : static_cast<std::int64_t>(random() % static_cast<unsigned>(got.rows()));
      const std::int64_t column = i < 4 ? i / 2 * (got.columns() - 1) : static_cast<std::int64_t>(random() % static_cast<unsigned>(got.columns()));
      double sum = forwards ? l.bias.at(0, column) : 0;
      for (std::int64_t k = 0; k < (forwards ? l.s.k : l.s.n); ++k)
        sum += forwards ? l.x.at(row, k) * l.q.at(column, k) * l.scale.at(0, column) : l.dy.at(row, k) * l.q.at(k, column) * l.scale.at(0, k);
      ASSERT_EQ(got.get(row, column), rounded(SQ_BF16, sum)) << kernel << " [" << row << ", " << column << "]";
    }
  }

  static std::string text(const Layer& l) {
    return std::string(dtype_name(l.dtype)) + " M " + std::to_string(l.s.m) + " K " + std::to_string(l.s.k) + " N " +
           std::to_string(l.s.n) + " r " + std::to_string(l.s.r) + " act " + std::to_string(l.activation);
  }
};

TEST_P(Linear, ExactByConstruction) {
  constexpr Shape kShapes[] = {{1, 1, 1, 1},       {7, 5, 33, 3},       {16, 64, 64, 0},    {64, 64, 128, 16},
                               {65, 100, 1, 4},    {5, 33, 100, 20},    {65, 3072, 64, 16}, {64, 64, 3072, 70},
                               {130, 208, 272, 8}, {300, 512, 384, 16}, {0, 16, 8, 2}};
  for (const std::int32_t dtype : kDtypes)
    for (const Shape& shape : kShapes) {
      const Layer l(shape, dtype, true, 7);
      DeviceLayer d(l, dtype, 0, 0, (16 - shape.k % 16) % 16);
      check_all(l, d, false);
    }
}

TEST_P(Linear, ExactWithTheLastTilesCutOff) {
  for (const Shape& shape : {Shape{40, 144, 400, 16}, Shape{300, 160, 2500, 0}, Shape{300, 80, 8200, 16}, Shape{300, 8200, 64, 0}}) {
    for (const std::int32_t dtype : {SQ_BF16, SQ_F16}) {
      const Layer l(shape, dtype, true, 8);
      DeviceLayer d(l, dtype, 0, 0, (16 - shape.k % 16) % 16);
      check_all(l, d, false);
    }
  }
}

TEST_P(Linear, ExactInTheWidestTile) {
  expect_exact({300, 1024, 8200, 0}, true, "128x256");
  expect_exact({300, 8208, 1024, 0}, false, "128x256");
}

TEST_P(Linear, ExactWhereTilesAreSplit) {
  // Many parts of few tiles; then one turn and what is left over, two parts at most.
  expect_exact({70, 4096, 520, 0}, true, "128x64_split");
  expect_exact({70, 528, 4096, 0}, false, "128x64_split");
  expect_exact({1600, 4096, 2600, 0}, true, "128x256_split");
  expect_exact({1600, 2608, 4096, 0}, false, "128x256_split");
}

TEST_P(Linear, BranchesOfEveryScalingAndRank) {
  // A scaling by a power of two may be multiplied into a factor; every other must multiply sums.
  for (const std::int32_t dtype : {SQ_BF16, SQ_F16})
    for (const double scaling : {1.0, 2.0, 0.75})
      for (const std::int64_t rank : {16, 20, 40, 70}) {
        Layer l({300, 512, 384, rank}, dtype, true, 31);
        l.scaling = scaling;
        DeviceLayer d(l, dtype);
        check_all(l, d, false);
      }
}

TEST_P(Linear, BranchesOfManyRows) {
  // Pieces of gradients are longer from 2048 rows on; the last ones are cut off.
  for (const std::int32_t dtype : {SQ_BF16, SQ_F16})
    for (const std::int64_t rank : {16, 20, 40, 70}) {
      const Layer l({2100, 48, 280, rank}, dtype, true, 32);
      DeviceLayer d(l, dtype);
      check_all(l, d, false);
    }
}

TEST_P(Linear, StridesAndAddressesOffTheirAlignment) {
  for (const std::int32_t dtype : kDtypes)
    for (const std::int64_t shift : {0, 1}) {
      Layer l({70, 96, 80, 5}, dtype, true, 9);
      l.own_x = shift == 1;
      DeviceLayer aligned(l, dtype, 0, 0, 16), odd(l, dtype, 3, shift, 16);
      check_all(l, aligned, false);
      check_all(l, odd, false);
    }
}

TEST_P(Linear, TheSameBitsWhereverTensorsLie) {
  for (const std::int32_t dtype : kDtypes) {
    const Layer l({70, 160, 80, 5}, dtype, false, 10);
    DeviceLayer aligned(l, dtype, 0, 0, 0), odd(l, dtype, 3, 1, 0);
    for (DeviceLayer* d : {&aligned, &odd}) forward(*d), backward(*d);
    for (const auto& member : {&DeviceLayer::y, &DeviceLayer::h, &DeviceLayer::dx, &DeviceLayer::da_t, &DeviceLayer::db_t}) {
      DeviceMatrix &a = aligned.*member, &b = odd.*member;
      a.download(), b.download();
      for (std::int64_t i = 0; i < a.rows(); ++i)
        for (std::int64_t j = 0; j < a.columns(); ++j) ASSERT_EQ(a.get(i, j), b.get(i, j)) << dtype_name(dtype) << " [" << i << ", " << j << "]";
    }
  }
}

TEST_P(Linear, OrdinaryNumbersWithinTheBounds) {
  for (const std::int32_t dtype : kDtypes)
    for (int activation = SQ_ACT_NONE; activation <= SQ_ACT_SILU; ++activation)
      for (const Shape& shape : {Shape{33, 3072, 72, 16}, Shape{512, 80, 144, 0}, Shape{17, 96, 1024, 40}}) {
        Layer l(shape, dtype, false, 11u + static_cast<unsigned>(activation));
        l.activation = activation;
        l.own_x = activation == SQ_ACT_GELU_ERF;
        l.with_bias = activation != SQ_ACT_SILU;
        DeviceLayer d(l, dtype);
        check_all(l, d, true);
      }
}

TEST_P(Linear, F32OutputsOf16BitActivations) {
  for (const std::int32_t dtype : {SQ_BF16, SQ_F16}) {
    Layer l({66, 320, 48, 8}, dtype, false, 12);
    l.activation = SQ_ACT_GELU_TANH;
    DeviceLayer d(l, SQ_F32);
    forward(d);
    expect("y", d.y, l.y(), true);
    // dY in F32 keeps its digits: dX is F32 too, within the bounds of F32 gradients that meet 16-bit adapters.
    DeviceMatrix dy(SQ_F32, l.s.m, l.s.n), dx(SQ_F32, l.s.m, l.s.k), preactivation(SQ_F32, l.s.m, l.s.n);
    dy.fill([&](std::int64_t i, std::int64_t j) { return l.dy.at(i, j); });
    preactivation.fill([&](std::int64_t i, std::int64_t j) { return l.preactivation.at(i, j); });
    d.backward.dy = dy.tensor(), d.backward.dx = dx.tensor(), d.backward.preactivation = preactivation.tensor();
    backward(d);
    expect("dx", dx, l.dx(), true);
    expect("da_t", d.da_t, l.da_t(), true);
    expect("db_t", d.db_t, l.db_t(), true);
  }
}

TEST_P(Linear, TinyF16GradientsKeepTheirDigits) {
  Layer l({9, 64, 96, 0}, SQ_F16, false, 13);
  l.dy = l.dy.map([](double v) { return rounded(SQ_F16, v * 0x1p-12); });
  l.scale = l.scale.map([](double v) { return v * 0x1p-10; });
  DeviceLayer d(l, SQ_F16);
  backward(d);
  expect("dx", d.dx, l.dx(), true);
}

TEST_P(Linear, W8A8) {
  if (!sums_codes()) {
    const Layer l({4, 16, 8, 0}, SQ_BF16, true, 14);
    DeviceLayer d(l, SQ_BF16);
    d.forward.compute = SQ_COMPUTE_W8A8;
    EXPECT_EQ(error_of([&] { forward(d); }).code(), Code::CALL_UNSUPPORTED);
    return;
  }
  for (const std::int32_t dtype : kDtypes)
    for (const Shape& shape : {Shape{1, 1, 1, 0}, Shape{33, 100, 48, 4}, Shape{65, 160, 130, 0}, Shape{20, 64, 40, 0}, Shape{20, 64, 15, 0},
                               Shape{300, 512, 400, 16}, Shape{7, 3072, 33, 0}}) {
      const Layer l(shape, dtype, true, 14);
      DeviceLayer d(l, SQ_F32, 0, 0, (16 - shape.k % 16) % 16);
      SCOPED_TRACE(text(l));
      // X as codes with power-of-two scales: the exact result.
      DeviceMatrix codes(SQ_I8, shape.m, shape.k, shape.k + 5), code_scale(SQ_F32, 1, shape.m);
      Layer coded = l;
      std::mt19937 random(15);
      code_scale.fill([&](std::int64_t, std::int64_t) { return std::ldexp(1.0, -static_cast<int>(random() % 3)); });
      for (std::int64_t m = 0; m < shape.m; ++m)
        for (std::int64_t k = 0; k < shape.k; ++k) coded.x.at(m, k) = static_cast<double>(static_cast<int>(random() % 255) - 127);
      codes.fill([&](std::int64_t m, std::int64_t k) { return coded.x.at(m, k); });
      for (std::int64_t m = 0; m < shape.m; ++m)
        for (std::int64_t k = 0; k < shape.k; ++k) coded.x.at(m, k) *= code_scale.get(0, m);
      const sq_part parts[] = {{"q", *codes.tensor()}, {"scale", *code_scale.tensor(true)}};
      auto xq = sized<sq_quantized_activation>();
      xq.format = "per_token_int8", xq.parts = parts, xq.part_count = 2;
      d.forward.x = nullptr, d.forward.xq = &xq;
      coded.own_x = shape.r > 0;
      if (shape.r)
        d.lora_x = DeviceMatrix(dtype, shape.m, shape.k), d.lora_x.fill([&](std::int64_t i, std::int64_t j) { return l.lora_x.at(i, j); }),
        d.lora.x = d.lora_x.tensor();
      forward(d);
      expect("y", d.y, coded.v(), false);

      // dX: dY that quantizes to itself (largest magnitude of dY scale per row is 127) gives the exact result as well.
      Layer g = l;
      g.s.r = 0;
      g.scale = g.scale.map([](double) { return 0.25; });
      for (std::int64_t m = 0; m < shape.m; ++m)
        for (std::int64_t n = 0; n < shape.n; ++n) g.dy.at(m, n) = n == m % shape.n ? 127 : static_cast<double>(static_cast<int>(random() % 255) - 127);
      DeviceLayer e(g, SQ_F32, 0, 0, (16 - shape.k % 16) % 16);
      e.backward.compute = SQ_COMPUTE_W8A8;
      e.backward.lora = nullptr;
      backward(e);
      expect("dx", e.dx, g.dx_base(), false);
    }
}

TEST_P(Linear, W8A8FromAFloatingXIsQuantizeActivationAndThenTheCodes) {
  if (!sums_codes()) return;
  for (const std::int32_t dtype : kDtypes) {
    const Layer l({37, 200, 60, 0}, dtype, false, 16);
    DeviceLayer direct(l, SQ_F32, 0, 0, 8), coded(l, SQ_F32, 0, 0, 8);
    direct.forward.compute = SQ_COMPUTE_W8A8;
    forward(direct);
    DeviceMatrix codes(SQ_I8, l.s.m, l.s.k), scale(SQ_F32, 1, l.s.m);
    const sq_part parts[] = {{"q", *codes.tensor()}, {"scale", *scale.tensor(true)}};
    auto quantize = sized<sq_quantize_activation_args>();
    quantize.x = coded.x.tensor(), quantize.format = "per_token_int8", quantize.out = parts, quantize.out_count = 2;
    call(context_->linear().quantize_activation, *context_, quantize);
    auto xq = sized<sq_quantized_activation>();
    xq.format = "per_token_int8", xq.parts = parts, xq.part_count = 2;
    coded.forward.x = nullptr, coded.forward.xq = &xq;
    forward(coded);
    direct.y.download(), coded.y.download();
    EXPECT_EQ(direct.y.bytes(), coded.y.bytes());
  }
}

TEST_P(Linear, W8A8OfLongAndManyRows) {
  // A row is held in registers, two, four or eight eights per thread, or not at all (longer than 32768, or no whole eights). Numbers that quantize to themselves
  // give exact results.
  if (!sums_codes()) return;
  for (const auto& [rows, depth] : {std::pair<std::int64_t, std::int64_t>{1700, 72}, {5, 3000}, {5, 4100}, {5, 9000}, {5, 20008}, {3, 33000}}) {
    const auto to_codes = [](Host& h) {
      std::mt19937 random(33);
      for (std::int64_t i = 0; i < h.rows; ++i)
        for (std::int64_t j = 0; j < h.columns; ++j) h.at(i, j) = j == i % h.columns ? 127 : static_cast<double>(static_cast<int>(random() % 255) - 127);
    };
    Layer wide({rows, depth, 40, 0}, SQ_BF16, true, 34), deep({rows, 48, depth, 0}, SQ_BF16, true, 35);
    to_codes(wide.x), to_codes(deep.dy);
    deep.scale = deep.scale.map([](double) { return 0.25; });
    DeviceLayer forwards(wide, SQ_F32, 0, 0, (16 - depth % 16) % 16), backwards(deep, SQ_F32);
    forwards.forward.compute = backwards.backward.compute = SQ_COMPUTE_W8A8;
    forward(forwards), backward(backwards);
    expect("y", forwards.y, wide.v(), false);
    expect("dx", backwards.dx, deep.dx_base(), false);
  }
}

TEST_P(Linear, W8A8GradientsOfHeldRowsAreThoseOfRowsReadAgain) {
  // Rows of gradients and preactivations stay in registers, in three sizes (of the largest, slopes are computed twice), unless no wide load fits them: an odd stride.
  if (!sums_codes()) return;
  for (const std::int64_t columns : {4104, 9000, 16392}) {
    Layer l({3, 48, columns, 16}, SQ_BF16, false, 37);
    l.activation = SQ_ACT_GELU_TANH;
    DeviceLayer held(l, SQ_BF16), again(l, SQ_BF16, 1);
    for (DeviceLayer* d : {&held, &again}) d->backward.compute = SQ_COMPUTE_W8A8, backward(*d);
    for (const auto& member : {&DeviceLayer::dx, &DeviceLayer::da_t, &DeviceLayer::db_t}) {
      DeviceMatrix &a = held.*member, &b = again.*member;
      a.download(), b.download();
      for (std::int64_t i = 0; i < a.rows(); ++i)
        for (std::int64_t j = 0; j < a.columns(); ++j) ASSERT_EQ(a.get(i, j), b.get(i, j)) << columns << ": [" << i << ", " << j << "]";
    }
  }
}

TEST_P(Linear, PreactivationsOf16Bits) {
  for (const std::int32_t dtype : {SQ_BF16, SQ_F16})
    for (const int activation : {SQ_ACT_GELU_TANH, SQ_ACT_GELU_ERF, SQ_ACT_SILU})
      for (const std::int32_t compute : {SQ_COMPUTE_DEFAULT, SQ_COMPUTE_W8A8})
        for (const Shape& shape : {Shape{300, 512, 400, 16}, Shape{70, 160, 136, 0}}) {
          if (compute == SQ_COMPUTE_W8A8 && !sums_codes()) continue;
          Layer l(shape, dtype, false, 36);
          l.activation = activation;
          DeviceLayer d(l, dtype);
          d.forward.compute = compute;
          SCOPED_TRACE(text(l) + " " + kernel_of(*context_, SQ_OP_LINEAR_FORWARD, &d.forward));
          d.forward.preactivation = nullptr;
          forward(d);
          d.y.download();
          const auto alone = d.y.bytes();
          DeviceMatrix preactivation(dtype, shape.m, shape.n);
          d.forward.preactivation = preactivation.tensor();
          forward(d);
          d.y.download(), preactivation.download();
          EXPECT_TRUE(d.y.intact() && preactivation.intact());
          EXPECT_EQ(d.y.bytes(), alone) << "what is asked for beside y changes y";
          if (compute == SQ_COMPUTE_DEFAULT) {
            expect("preactivation", preactivation, l.v(), true);
            expect("y", d.y, l.y(), true);
            continue;
          }
          for (std::int64_t i = 0; i < shape.m; ++i)  // each is the value rounded once, so they follow from each other within two roundings
            for (std::int64_t j = 0; j < shape.n; ++j)
              ASSERT_NEAR(d.y.get(i, j), activated(activation, preactivation.get(i, j)), 2.5 * unit_of(dtype) * std::fabs(preactivation.get(i, j)) + smallest_of(dtype)) << i << " " << j;
        }
}

TEST_P(Linear, RerunGivesTheSameBits) {
  for (const std::int32_t dtype : kDtypes) {
    Layer l({300, 640, 512, 16}, dtype, false, 17);
    l.activation = SQ_ACT_SILU;
    DeviceLayer first(l, dtype), second(l, dtype);
    for (DeviceLayer* d : {&first, &second}) forward(*d), backward(*d);
    for (const auto& member : {&DeviceLayer::y, &DeviceLayer::h, &DeviceLayer::dx, &DeviceLayer::da_t, &DeviceLayer::db_t}) {
      (first.*member).download(), (second.*member).download();
      EXPECT_EQ((first.*member).bytes(), (second.*member).bytes());
    }
  }
}

TEST_P(Linear, AccumulatesTwiceToTwice) {
  for (const std::int32_t dtype : kDtypes) {
    const Layer l({40, 64, 48, 8}, dtype, false, 18);
    DeviceLayer once(l, dtype), twice(l, dtype);
    backward(once);
    backward(twice);
    twice.backward.accumulate = 1;
    backward(twice);
    for (const auto& member : {&DeviceLayer::da_t, &DeviceLayer::db_t}) {
      DeviceMatrix &a = once.*member, &b = twice.*member;
      a.download(), b.download();
      for (std::int64_t i = 0; i < a.rows(); ++i)
        for (std::int64_t j = 0; j < a.columns(); ++j) ASSERT_EQ(2 * a.get(i, j), b.get(i, j));
    }
  }
}

TEST_P(Linear, SavedHGivesTheSameGradients) {
  for (const std::int32_t dtype : kDtypes) {
    const Layer l({70, 96, 48, 8}, dtype, false, 19);
    DeviceLayer without(l, dtype), with(l, dtype);
    backward(without);
    forward(with);
    with.backward.h = with.h.tensor();
    backward(with);
    without.db_t.download(), with.db_t.download();
    EXPECT_EQ(without.db_t.bytes(), with.db_t.bytes());
  }
}

TEST_P(Linear, ABranchOfZerosAndABiasOfZerosChangeNoBit) {
  for (const std::int32_t dtype : kDtypes) {
    Layer zero({70, 200, 72, 8}, dtype, false, 20), none = zero;
    zero.b_t = 0.0 * zero.b_t, zero.bias = 0.0 * zero.bias;
    none.s.r = 0, none.with_bias = false;
    DeviceLayer a(zero, SQ_F32), b(none, SQ_F32);
    forward(a), forward(b), backward(a), backward(b);
    a.y.download(), b.y.download(), a.dx.download(), b.dx.download(), a.da_t.download();
    for (std::int64_t i = 0; i < 70; ++i) {
      for (std::int64_t j = 0; j < 72; ++j) ASSERT_EQ(a.y.get(i, j), b.y.get(i, j));
      for (std::int64_t j = 0; j < 200; ++j) ASSERT_EQ(a.dx.get(i, j), b.dx.get(i, j));
    }
    for (std::int64_t i = 0; i < 8; ++i)
      for (std::int64_t j = 0; j < 200; ++j) ASSERT_EQ(a.da_t.get(i, j), 0);
  }
}

TEST_P(Linear, NaNAndInfinityStayInTheirRows) {
  for (const std::int32_t dtype : kDtypes) {
    Layer l({5, 96, 40, 3}, dtype, true, 21);
    l.x.at(1, 7) = NAN, l.x.at(3, 95) = HUGE_VAL;
    DeviceLayer d(l, dtype);
    forward(d);
    d.y.download();
    for (std::int64_t j = 0; j < 40; ++j) {
      EXPECT_TRUE(std::isnan(d.y.get(1, j)));
      EXPECT_FALSE(std::isfinite(d.y.get(3, j)));
      for (const std::int64_t i : {0, 2, 4}) EXPECT_TRUE(std::isfinite(d.y.get(i, j)));
    }
    if (!sums_codes()) continue;
    d.forward.compute = SQ_COMPUTE_W8A8;
    forward(d);
    d.y.download();
    for (std::int64_t j = 0; j < 40; ++j) EXPECT_TRUE(std::isnan(d.y.get(1, j)) && !std::isfinite(d.y.get(3, j)) && std::isfinite(d.y.get(2, j)));
  }
}

TEST_P(Linear, AnySubsetOfTheGradients) {
  Layer l({40, 64, 48, 8}, SQ_BF16, true, 22);
  l.own_x = true;
  for (unsigned subset = 0; subset < 16; ++subset) {
    DeviceLayer d(l, SQ_BF16);
    if (!(subset & 1)) d.backward.dx = nullptr;
    if (!(subset & 2)) d.backward.dx_lora = nullptr;
    if (!(subset & 4)) d.backward.da_t = nullptr;
    if (!(subset & 8)) d.backward.db_t = nullptr;
    backward(d);
    if (subset & 1) expect("dx", d.dx, l.dx(), false);
    if (subset & 2) expect("dx_lora", d.dx_lora, l.dx_branch(), false);
    if (subset & 4) expect("da_t", d.da_t, l.da_t(), false);
    if (subset & 8) expect("db_t", d.db_t, l.db_t(), false);
  }
}

TEST_P(Linear, RefusalsChangeNothing) {
  const Layer l({8, 32, 24, 4}, SQ_BF16, true, 23);
  const auto refused = [&](Code code, const std::function<void(DeviceLayer&)>& spoil, bool forwards) {
    DeviceLayer d(l, SQ_BF16);
    spoil(d);
    EXPECT_EQ(code_name(error_of([&] { forwards ? forward(d) : backward(d); }).code()), code_name(code));
    for (DeviceMatrix* m : {&d.y, &d.preactivation, &d.h, &d.dx, &d.da_t, &d.db_t}) {
      m->download();
      for (const unsigned char byte : m->bytes()) ASSERT_EQ(byte, 0xCD);
    }
  };
  DeviceMatrix other(SQ_F16, 8, 24), small(SQ_BF16, 8, 23);
  refused(Code::CALL_VALUE, [](DeviceLayer& d) { d.forward.activation = 4; }, true);
  refused(Code::CALL_VALUE, [](DeviceLayer& d) { d.forward.compute = 3; }, true);
  refused(Code::CALL_VALUE, [](DeviceLayer& d) { d.lora.scaling = NAN; }, true);
  refused(Code::CALL_VALUE, [](DeviceLayer& d) { d.forward.x = nullptr; }, true);
  refused(Code::CALL_VALUE, [](DeviceLayer& d) { d.forward.lora = nullptr; }, true);
  refused(Code::CALL_NULL, [](DeviceLayer& d) { d.forward.y = nullptr; }, true);
  refused(Code::CALL_DTYPE, [&](DeviceLayer& d) { d.forward.y = other.tensor(); }, true);
  refused(Code::CALL_SHAPE, [&](DeviceLayer& d) { d.forward.y = small.tensor(); }, true);
  refused(Code::CALL_DEVICE, [](DeviceLayer& d) { const_cast<sq_tensor*>(d.forward.x)->device = {SQ_CPU, 0}; }, true);
  refused(Code::CALL_PART, [](DeviceLayer& d) { d.w.weight.part_count = 1; }, true);
  refused(Code::CALL_VALUE, [](DeviceLayer& d) { d.backward.accumulate = 2; }, false);
  refused(Code::CALL_VALUE, [](DeviceLayer& d) { d.backward.dx_lora = d.dx.tensor(); }, false);
  refused(Code::CALL_VALUE, [](DeviceLayer& d) { d.backward.lora = nullptr; }, false);
  refused(Code::CALL_NULL, [](DeviceLayer& d) { d.backward.x = nullptr; }, false);
  refused(Code::CALL_NULL, [](DeviceLayer& d) { d.backward.activation = SQ_ACT_SILU; }, false);
  refused(Code::CALL_DTYPE, [&](DeviceLayer& d) { d.backward.dy = other.tensor(); }, false);
  const auto out_of_memory = [this](DeviceLayer&) { allocator_.requests = 0, allocator_.fail_at = 0; };
  refused(Code::GPU_OOM, out_of_memory, true);
  refused(Code::GPU_OOM, out_of_memory, false);
  allocator_.fail_at.reset();
  DeviceMatrix zero_point(SQ_F32, 1, 24);
  zero_point.fill([](std::int64_t, std::int64_t n) { return n == 20 ? 1.0 : 0.0; });
  const auto with_zero_point = [&](DeviceLayer& d) {
    d.w.parts.push_back({"zero_point", *zero_point.tensor(true)});
    d.w.weight.parts = d.w.parts.data();
    d.w.weight.part_count = static_cast<std::uint32_t>(d.w.parts.size());
  };
  refused(Code::DT_ZP_NONZERO, with_zero_point, true);
  refused(Code::DT_ZP_NONZERO, with_zero_point, false);
}

TEST_P(Linear, ExplainsItsChoice) {
  const Layer l({32, 64, 128, 4}, SQ_BF16, true, 24), wide({32, 64, 128, 4}, SQ_F32, true, 24);
  DeviceLayer d(l, SQ_BF16), e(wide, SQ_F32);
  EXPECT_EQ(kernel_of(*context_, SQ_OP_LINEAR_FORWARD, &e.forward).rfind("plain_fp32", 0), 0u);
  const std::string chosen = kernel_of(*context_, SQ_OP_LINEAR_FORWARD, &d.forward);
  if (std::string(GetParam()) != "wgmma_tma") {
    EXPECT_EQ(chosen.rfind(GetParam(), 0), 0u) << chosen;
  }
  std::string text;
  sq_error error = make_error();
  check(context_->linear().explain(context_->get(), SQ_OP_LINEAR_FORWARD, &d.forward, append_text, &text, &error), error);
  EXPECT_EQ(nlohmann::json::parse(text).at("rejected").size(), 3u) << text;
  auto bad = d.forward;
  bad.activation = 9;
  EXPECT_EQ(error_of([&] { kernel_of(*context_, SQ_OP_LINEAR_FORWARD, &bad); }).code(), Code::CALL_VALUE);
}

INSTANTIATE_TEST_SUITE_P(Kernels, Linear, ::testing::ValuesIn(kKernels), [](const auto& kernel) { return std::string(kernel.param); });

}  // namespace
}  // namespace squareq::cuda_tests
