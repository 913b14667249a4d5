// Laws that hold for every layer: rapidcheck draws the shapes and the numbers.
#include "reference/tests/layer_harness.hpp"

#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

namespace squareq::tests {
namespace {

const Context& context() {
  static const Context shared = make_context();
  return shared;
}

Layer any_layer(std::int64_t max_rank = 6) {
  Layer l(*rc::gen::inRange(0, 7), *rc::gen::inRange(1, 40), *rc::gen::inRange(1, 20), *rc::gen::inRange<std::int64_t>(0, max_rank), *rc::gen::arbitrary<std::uint32_t>());
  l.activation = *rc::gen::inRange(0, 4);
  l.own_x = l.rank > 0 && *rc::gen::arbitrary<bool>();
  return l;
}

/// Scaling x by a power of two scales every fp32 rounding step by it too.
RC_GTEST_PROP(LinearProperty, HomogeneousInX, ()) {
  Layer l = any_layer();
  l.with_bias = false;
  l.activation = SQ_ACT_NONE;
  Bound plain(l);
  plain.run_forward(context());
  for (float& v : l.x) v *= 4;
  for (float& v : l.lora_x) v *= 4;
  Bound scaled(l);
  scaled.run_forward(context());
  for (std::int64_t m = 0; m < l.m; ++m)
    for (std::int64_t n = 0; n < l.n; ++n) RC_ASSERT(scaled.y.value(m, n) == 4 * plain.y.value(m, n));
}

/// Rows of X are independent: permuting them permutes Y and dX, and nothing else.
RC_GTEST_PROP(LinearProperty, RowsAreIndependent, ()) {
  Layer l = any_layer();
  Layer reversed = l;
  for (std::int64_t m = 0; m < l.m; ++m)
    for (std::int64_t k = 0; k < l.k; ++k) {
      reversed.x[m * l.k + k] = l.x[(l.m - 1 - m) * l.k + k];
      reversed.lora_x[m * l.k + k] = l.lora_x[(l.m - 1 - m) * l.k + k];
    }
  Bound a(l), b(reversed);
  a.run_forward(context()), b.run_forward(context());
  for (std::int64_t m = 0; m < l.m; ++m)
    for (std::int64_t n = 0; n < l.n; ++n) RC_ASSERT(a.y.value(m, n) == b.y.value(l.m - 1 - m, n));
}

/// A second identical backward into the same tensors gives exactly twice the gradient (SQ-LOR-012).
RC_GTEST_PROP(LinearProperty, AccumulatingTwiceIsExactlyTwice, ()) {
  Layer l = any_layer();
  if (l.rank == 0) l = Layer(3, 5, 4, 2, 9);
  Bound once(l), twice(l);
  once.run_forward(context()).run_backward(context());
  twice.run_forward(context()).run_backward(context());
  twice.backward.accumulate = 1;
  twice.run_backward(context());
  for (std::int64_t r = 0; r < l.rank; ++r)
    for (std::int64_t k = 0; k < l.k; ++k) RC_ASSERT(twice.da_t.value(r, k) == 2 * once.da_t.value(r, k));
  for (std::int64_t n = 0; n < l.n; ++n)
    for (std::int64_t r = 0; r < l.rank; ++r) RC_ASSERT(twice.db_t.value(n, r) == 2 * once.db_t.value(n, r));
  RC_ASSERT(twice.dx.bytes == once.dx.bytes);
}

/// Bytes in the padding change nothing (SQ-LIN-002).
RC_GTEST_PROP(LinearProperty, PaddingIsIgnored, ()) {
  Layer l = any_layer();
  Layer garbage = l;
  for (std::int64_t n = 0; n < l.n; ++n)
    for (std::int64_t k = l.k; k < l.padded; ++k) garbage.q[n * l.padded + k] = static_cast<std::int8_t>(~l.q[n * l.padded + k]);
  Bound a(l), b(garbage);
  a.run_forward(context()).run_backward(context());
  b.run_forward(context()).run_backward(context());
  RC_ASSERT(a.y.bytes == b.y.bytes);
  RC_ASSERT(a.dx.bytes == b.dx.bytes);
}

/// B = 0 is the base layer; dA is then exactly zero and dB is what it would be anyway (SQ-LOR-006, SQ-LOR-013).
RC_GTEST_PROP(LinearProperty, ZeroBIsTheBaseLayer, ()) {
  Layer l = any_layer();
  if (l.rank == 0) l = Layer(3, 5, 4, 2, 9);
  Layer other = l;
  for (float& v : l.b_t) v = 0;
  Layer base(l.m, l.k, l.n, 0, 1);
  base.q = l.q, base.scale = l.scale, base.bias = l.bias, base.x = l.x, base.activation = l.activation, base.dy = l.dy;
  Bound with(l), without(base), unlike(other);
  with.run_forward(context()).run_backward(context());
  without.run_forward(context());
  RC_ASSERT(with.y.bytes == without.y.bytes);
  for (std::int64_t r = 0; r < l.rank; ++r)
    for (std::int64_t k = 0; k < l.k; ++k) RC_ASSERT(with.da_t.value(r, k) == 0);
  unlike.preactivation = with.preactivation;
  unlike.backward.preactivation = l.activation ? &unlike.preactivation : nullptr;
  unlike.run_backward(context());
  RC_ASSERT(with.db_t.bytes == unlike.db_t.bytes);
}

/// Inputs are never written (SQ-CNV-006), and the base has no gradient (SQ-LIN-011).
RC_GTEST_PROP(LinearProperty, InputsKeepTheirBits, ()) {
  Layer l = any_layer();
  const Layer before = l;
  Bound b(l);
  b.run_forward(context()).run_backward(context());
  RC_ASSERT(l.q == before.q && l.scale == before.scale && l.bias == before.bias && l.x == before.x && l.dy == before.dy && l.a_t == before.a_t && l.b_t == before.b_t);
}

/// Invariants of quantized rows, for weights of any magnitude (spec/30-quantization.md).
RC_GTEST_PROP(QuantizeProperty, Invariants, ()) {
  const auto rows = *rc::gen::inRange<std::int64_t>(1, 6), columns = *rc::gen::inRange<std::int64_t>(1, 50);
  const auto pack = *rc::gen::element<std::uint32_t>(0, 1, 3, 8, 64);
  const std::int64_t padded = pack <= 1 ? columns : (columns + pack - 1) / pack * pack;
  const int exponent = *rc::gen::inRange(-44, 120);
  std::mt19937 random(*rc::gen::arbitrary<std::uint32_t>());
  std::vector<float> w(static_cast<std::size_t>(rows * columns));
  for (float& v : w) v = std::ldexp(static_cast<float>(random()) / 2147483648.0f - 1.0f, exponent);
  Tensor source = tensor_of(SQ_F32, {rows, columns}, w);
  Tensor q(SQ_I8, {rows, padded}), scale(SQ_F32, {rows}), zero_point(SQ_F32, {rows}), back(SQ_F32, {rows, columns});
  const std::vector<sq_part> parts = {{"qweight", *&q}, {"scale", *&scale}, {"zero_point", *&zero_point}};
  auto args = sized<sq_quantize_args>();
  args.pack_k = pack;
  args.format = "bp8_v2";
  args.name = "layer";
  args.w = &source;
  args.out = parts.data();
  args.out_count = 3;
  call(context().linear().quantize, context(), args);
  const sq_weight weight = {sizeof(sq_weight), 3, "bp8_v2", "layer", rows, columns, parts.data()};
  auto ref = sized<sq_weight_ref>();
  ref.weight = &weight;
  auto dequantize = sized<sq_dequantize_args>();
  dequantize.weight = &ref;
  dequantize.out = &back;
  call(context().linear().dequantize, context(), dequantize);
  for (std::int64_t n = 0; n < rows; ++n) {
    const double s = scale.value(0, n);
    RC_ASSERT(s >= static_cast<double>(1e-8f));
    RC_ASSERT(zero_point.value(0, n) == 0);
    double largest = 0, amax = 0;
    for (std::int64_t k = 0; k < columns; ++k) {
      const double v = static_cast<double>(w[static_cast<std::size_t>(n * columns + k)]), code = q.value(n, k);
      RC_ASSERT(std::fabs(code) <= 127);
      RC_ASSERT(std::fabs(v - code * s) <= s * (0.5 + 0x1p-15));
      RC_ASSERT(back.value(n, k) == static_cast<double>(static_cast<float>(code) * static_cast<float>(s)));
      largest = std::max(largest, std::fabs(code)), amax = std::max(amax, std::fabs(v));
    }
    for (std::int64_t k = columns; k < padded; ++k) RC_ASSERT(q.value(n, k) == 0);
    if (amax >= 1.27e-6) RC_ASSERT(largest == 127);
  }
}

/// Row strides of inputs and outputs change no bit and no byte between the rows is touched (SQ-LIN-005).
RC_GTEST_PROP(LinearProperty, RowStridesChangeNothing, ()) {
  Layer l = any_layer();
  Bound tight(l), spread(l);
  const std::int64_t gap = *rc::gen::inRange(1, 9);
  Tensor x(SQ_F32, {l.m, l.k}, l.k + gap);
  for (std::int64_t m = 0; m < l.m; ++m) std::memcpy(x.bytes.data() + x.offset(m, 0), l.x.data() + m * l.k, static_cast<std::size_t>(l.k) * 4);
  spread.y = Tensor(SQ_F32, {l.m, l.n}, l.n + gap);
  spread.dx = Tensor(SQ_F32, {l.m, l.k}, l.k + gap);
  spread.forward.x = spread.backward.x = &x;
  spread.forward.y = &spread.y;
  spread.backward.dx = &spread.dx;
  tight.run_forward(context()).run_backward(context());
  spread.run_forward(context()).run_backward(context());
  RC_ASSERT(spread.y.gaps_intact() && spread.dx.gaps_intact() && x.gaps_intact());
  for (std::int64_t m = 0; m < l.m; ++m) {
    for (std::int64_t n = 0; n < l.n; ++n) RC_ASSERT(tight.y.value(m, n) == spread.y.value(m, n));
    for (std::int64_t k = 0; k < l.k; ++k) RC_ASSERT(tight.dx.value(m, k) == spread.dx.value(m, k));
  }
  if (l.rank) RC_ASSERT(tight.da_t.bytes == spread.da_t.bytes);
}

}  // namespace
}  // namespace squareq::tests
