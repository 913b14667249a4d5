// Shapes and dtypes on the meta device are those of the CPU's results, and what is refused there is refused with both values as well.
#include "squareq/torch_ops/tests/library.hpp"

namespace squareq::torch_ops::testing {
namespace {

Tensor meta(const Tensor& t) { return t.to(at::kMeta); }

void expect_same(const Tensor& shape, const Tensor& real) {
  ASSERT_EQ(shape.defined(), real.defined());
  if (!real.defined()) return;
  EXPECT_TRUE(shape.is_meta());
  EXPECT_EQ(shape.sizes(), real.sizes());
  EXPECT_EQ(shape.strides(), real.strides());
  EXPECT_EQ(shape.scalar_type(), real.scalar_type());
}

template <class Results>
void expect_same_all(const Results& shapes, const Results& real) {
  std::apply([&](const auto&... s) { std::apply([&](const auto&... r) { (expect_same(s, r), ...); }, real); }, shapes);
}

TEST(Meta, ShapesAndDtypesAreThoseOfTheResults) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf})
    for (const bool bias : {false, true}) {
      const Layer layer(7, 12, 5, bias), shape = layer.on_meta();
      for (const Tensor& x :
           {at::randn({2, 3, 12}).to(dtype), at::randn({12}).to(dtype), at::randn({12, 4}).to(dtype).t(), at::randn({0, 12}).to(dtype)}) {
        const Tensor y = layer.linear(x);
        expect_same(shape.linear(meta(x)), y);
        expect_same(shape.linear(meta(x), "silu", "w8a8"), layer.linear(x, "silu", "w8a8"));
        expect_same_all(shape.linear_forward(meta(x), "gelu_erf"), layer.linear_forward(x, "gelu_erf"));
        expect_same(shape.linear_backward(meta(y)), layer.linear_backward(y));
        expect_same(shape.linear_backward(meta(y), meta(y), "silu"), layer.linear_backward(y, y, "silu"));
        expect_same(shape.linear_lora(meta(x)), layer.linear_lora(x));
        const auto [again, h] = layer.linear_lora_forward(x);
        expect_same_all(shape.linear_lora_forward(meta(x)), std::tuple{again, h});
        for (const std::array<bool, 3> mask : {std::array{true, true, true}, std::array{true, false, true}, std::array{false, true, false}})
          expect_same_all(shape.linear_lora_backward(meta(y), meta(x), meta(h), mask), layer.linear_lora_backward(y, x, h, mask));
        expect_same_all(quantize_activation(meta(x)), quantize_activation(x));
      }
      expect_same(dequantize(shape.qweight, shape.scale, dtype), dequantize(layer.qweight, layer.scale, dtype));
      const Tensor w = at::randn({7, 12}).to(dtype);
      expect_same_all(quantize(meta(w)), quantize(w));
      expect_same_all(quantize(meta(w.t())), quantize(w.t()));
    }
}

TEST(Meta, RefusesWithBothValues) {
  const Layer layer = Layer(7, 12, 5).on_meta();
  const Tensor x = at::empty({2, 12}, at::kMeta), grad = at::empty({2, 7}, at::kMeta), h = at::empty({2, 5}, at::kMeta);
  const auto with = [&](auto&& change) {
    Layer changed = layer;
    change(changed);
    return changed;
  };
  const auto lora = [&](auto&& change) { return refusal([&] { with(change).linear_lora(x); }); };
  expect_says(refusal([&] { layer.linear(at::empty({2, 9}, at::kMeta)); }), {"CALL_SHAPE", "[2, 9]", "[7, 12]"});
  expect_says(refusal([&] { layer.linear(at::empty({}, at::kMeta)); }), {"CALL_SHAPE", "x", "[]", "12"});
  expect_says(refusal([&] {
                layer.linear(at::empty({2, 12}, x.options().dtype(at::kDouble)));
              }),
              {"CALL_DTYPE", "x", "Double", "Float or BFloat16 or Half"});
  expect_says(refusal([&] { layer.linear(at::zeros({2, 12})); }), {"CALL_DEVICE", "x", "cpu", "meta"});
  expect_says(refusal([&] { layer.linear(x, "relu"); }), {"CALL_VALUE", "relu", "gelu_tanh"});
  expect_says(refusal([&] { layer.linear(x, "none", "fast"); }), {"CALL_VALUE", "fast", "w8a8"});
  expect_says(refusal([&] { layer.linear_forward(x, "none"); }), {"CALL_VALUE", "none", "preactivation"});
  expect_says(lora([](Layer& l) { l.qweight = at::empty({7, 12}, at::kMeta); }), {"CALL_DTYPE", "qweight", "Float", "Char"});
  expect_says(lora([](Layer& l) { l.qweight = at::empty({84}, l.qweight.options()); }), {"CALL_SHAPE", "qweight", "[84]", "2 dimensions"});
  expect_says(lora([](Layer& l) { l.scale = at::empty({8}, at::kMeta); }), {"CALL_SHAPE", "scale", "[8]", "[7]"});
  expect_says(lora([](Layer& l) { l.scale = l.scale.to(at::kHalf); }), {"CALL_DTYPE", "scale", "Half", "Float"});
  expect_says(lora([](Layer& l) { l.bias = at::empty({6}, at::kMeta); }), {"CALL_SHAPE", "bias", "[6]", "[7]"});
  expect_says(lora([](Layer& l) { l.lora_a = at::empty({5, 11}, at::kMeta); }), {"CALL_SHAPE", "lora_a", "[5, 11]", "12"});
  expect_says(lora([](Layer& l) { l.lora_b = at::empty({7, 4}, at::kMeta); }), {"CALL_SHAPE", "lora_b", "[7, 4]", "[7, 5]"});
  expect_says(lora([](Layer& l) { l.lora_b = l.lora_b.to(at::kHalf); }), {"CALL_DTYPE", "lora_b", "Half", "Float"});
  expect_says(refusal([&] { layer.linear_backward(at::empty({2, 12}, at::kMeta)); }), {"CALL_SHAPE", "grad", "[2, 12]", "[7, 12]"});
  expect_says(refusal([&] { layer.linear_backward(grad, {}, "silu"); }), {"CALL_NULL", "preactivation", "silu"});
  expect_says(refusal([&] { layer.linear_backward(grad, x, "silu"); }), {"CALL_SHAPE", "preactivation", "[2, 12]", "[2, 7]"});
  expect_says(refusal([&] { layer.linear_lora_backward(grad, grad, h); }), {"CALL_SHAPE", "x", "[2, 7]", "[2, 12]"});
  expect_says(refusal([&] { layer.linear_lora_backward(grad, x, x); }), {"CALL_SHAPE", "h", "[2, 12]", "[2, 5]"});
  expect_says(refusal([&] { dequantize(layer.qweight, layer.scale, at::kDouble); }), {"CALL_DTYPE", "Double", "Float or BFloat16 or Half"});
  expect_says(refusal([&] { quantize(at::empty({3}, at::kMeta)); }), {"CALL_SHAPE", "weight", "[3]"});
  expect_says(refusal([&] { quantize_activation(at::empty({}, at::kMeta)); }), {"CALL_SHAPE", "x", "[]"});
}

}  // namespace
}  // namespace squareq::torch_ops::testing
