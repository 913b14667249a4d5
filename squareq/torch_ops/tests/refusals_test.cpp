// What is refused on the CPU, in whose words; what cannot be differentiated; and which backend answers.
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "squareq/torch_ops/tests/library.hpp"

namespace squareq::torch_ops::testing {
namespace {

using BackendOf = std::string(std::string);
using SetBackend = void(std::string, std::string);

std::string backend_of(const char* device) { return op<BackendOf>("backend").call(device); }
void set_backend(const char* device, const std::string& name) { op<SetBackend>("set_backend").call(device, name); }

TEST(Refusals, TheContractsWordsReachTheCaller) {
  const Layer layer(7, 12, 5);
  const Tensor x = at::randn({2, 12}), grad = at::randn({2, 7});
  const auto lora = [&](auto&& change) {
    Layer changed = layer;
    change(changed);
    return refusal([&] { changed.linear_lora(x); });
  };
  expect_says(refusal([&] { layer.linear(at::randn({2, 9})); }), {"CALL_SHAPE", "squareq::linear", "x", "[2, 9]", "[7, 12]"});
  expect_says(refusal([&] { layer.linear(at::randn({})); }), {"CALL_SHAPE", "x", "[]", "12"});
  expect_says(refusal([&] { layer.linear(x.to(at::kDouble)); }), {"CALL_DTYPE", "squareq::linear", "x", "f64", "f32"});
  expect_says(refusal([&] { layer.linear(x.to(at::kBool)); }), {"CALL_DTYPE", "Bool"});
  expect_says(refusal([&] { layer.linear(x.to(at::kMeta)); }), {"CALL_DEVICE", "qweight", "cpu", "meta"});
  expect_says(refusal([&] { layer.linear(x, "relu"); }), {"CALL_VALUE", "relu", "gelu_tanh"});
  expect_says(refusal([&] { layer.linear(x, "none", "fast"); }), {"CALL_VALUE", "fast", "w8a8"});
  expect_says(refusal([&] { layer.linear_forward(x, "none"); }), {"CALL_VALUE", "none", "preactivation"});
  expect_says(lora([](Layer& l) { l.qweight = l.qweight.to(at::kFloat); }), {"CALL_DTYPE", "squareq::linear_lora", "qweight", "f32", "i8"});
  expect_says(lora([](Layer& l) { l.qweight = l.qweight.reshape({84}); }), {"CALL_SHAPE", "qweight", "[84]"});
  expect_says(lora([](Layer& l) { l.qweight = l.qweight.t().contiguous().t(); }), {"CALL_SHAPE", "qweight", "stride", "7", "1"});
  expect_says(lora([](Layer& l) { l.scale = at::ones({8}); }), {"CALL_SHAPE", "scale", "[8]", "[7]"});
  expect_says(lora([](Layer& l) { l.scale = l.scale.to(at::kHalf); }), {"CALL_DTYPE", "scale", "f16", "f32"});
  expect_says(lora([](Layer& l) { l.bias = at::ones({6}); }), {"CALL_SHAPE", "bias", "[6]", "[7]"});
  expect_says(lora([](Layer& l) { l.lora_a = at::ones({5, 11}); }), {"CALL_SHAPE", "a_t", "[5, 11]", "12"});
  expect_says(lora([](Layer& l) { l.lora_b = at::ones({7, 4}); }), {"CALL_SHAPE", "b_t", "[7, 4]", "[7, 5]"});
  expect_says(lora([](Layer& l) { l.lora_b = l.lora_b.to(at::kHalf); }), {"CALL_DTYPE", "b_t", "f16", "f32"});
  expect_says(lora([](Layer& l) { l.scaling = INFINITY; }), {"CALL_VALUE", "scaling", "inf"});
  expect_says(refusal([&] { layer.linear_backward(at::randn({2, 12})); }), {"CALL_SHAPE", "grad", "[2, 12]", "[7, 12]"});
  expect_says(refusal([&] { layer.linear_backward(grad, {}, "silu"); }), {"CALL_NULL", "preactivation"});
  expect_says(refusal([&] {
                layer.linear_lora_backward(grad, at::randn({3, 12}), at::randn({2, 5}));
              }),
              {"CALL_SHAPE", "x", "[3, 12]", "[2, 12]"});
  expect_says(refusal([&] { dequantize(layer.qweight, layer.scale, at::kDouble); }), {"CALL_DTYPE", "f64", "f32"});
  Tensor w = at::randn({3, 4});
  w[2][1] = NAN;
  expect_says(refusal([&] { quantize(w); }), {"DT_WEIGHT_NONFINITE", "squareq::quantize", "2", "1"});
  expect_says(refusal([&] { quantize(at::randn({3})); }), {"CALL_SHAPE", "weight", "[3]"});
}

TEST(Refusals, AFrozenWeightThatAsksForAGradientIsAnError) {
  for (const bool of_bias : {false, true}) {
    Layer layer(7, 12);
    const char* name = of_bias ? "bias" : "scale";
    (of_bias ? *layer.bias : layer.scale).requires_grad_();
    const Tensor x = at::randn({2, 12});
    expect_says(refusal([&] { layer.linear(x); }), {"CALL_VALUE", "squareq::linear:", name, "frozen"});
    expect_says(refusal([&] { layer.linear_lora(x); }), {"CALL_VALUE", "squareq::linear_lora:", name, "frozen"});
    const at::NoGradGuard off;
    EXPECT_EQ(layer.linear(x).sizes(), at::IntArrayRef({2, 7}));
  }
}

TEST(Refusals, NothingElseIsDifferentiableAndNothingTwice) {
  const Layer layer(7, 12);
  const Tensor w = at::randn({7, 12}).requires_grad_(), x = at::randn({2, 12}).requires_grad_();
  const auto undifferentiable = [](const Tensor& result) {
    ASSERT_TRUE(result.requires_grad());
    expect_says(refusal([&] { result.sum().backward(); }), {"not implemented"});
  };
  undifferentiable(std::get<1>(quantize(w)));
  undifferentiable(std::get<1>(quantize_activation(x)));
  undifferentiable(std::get<0>(layer.linear_forward(x, "silu")));
  undifferentiable(std::get<0>(layer.linear_lora_forward(x)));
  undifferentiable(dequantize(layer.qweight, layer.scale.detach().requires_grad_(), at::kFloat));
  const Tensor dy = at::ones({2, 7}).requires_grad_();
  undifferentiable(torch::autograd::grad({layer.linear(x)}, {x}, {dy}, true, true)[0]);
  undifferentiable(torch::autograd::grad({layer.linear_lora(x)}, {x}, {dy}, true, true)[0]);
}

TEST(Refusals, WhatWasSavedMayNotChange) {
  Layer layer(7, 12);
  layer.lora_a.requires_grad_();
  const Tensor x = at::randn({2, 12}), y = layer.linear_lora(x);
  x.add_(1);
  expect_says(refusal([&] { y.sum().backward(); }), {"modified by an inplace operation"});
}

/// Back to the usual one, whatever the test does.
struct Restore {
  ~Restore() { set_backend("cpu", "cpu"); }
};

TEST(Backends, TheChosenOneAnswers) {
  const Restore restore;
  const Layer layer(7, 12);
  const Tensor x = at::randn({2, 12});
  const auto explain = [&](bool lora, const char* compute, const char* activation, bool backward) {
    return nlohmann::json::parse(
        op<Explain>("explain").call(x, layer.qweight, layer.scale, layer.bias, lora ? MaybeTensor(layer.lora_a) : MaybeTensor(),
                                    lora ? MaybeTensor(layer.lora_b) : MaybeTensor(), compute, activation, backward));
  };
  const std::filesystem::path first = backend_of("cpu");
  EXPECT_EQ(first.filename(), "libsquareq_cpu.so");
  const auto by_cpu = explain(true, "default", "none", false);
  EXPECT_EQ(by_cpu.at("op"), "linear_forward");
  EXPECT_EQ(explain(true, "default", "none", true).at("op"), "linear_backward");
  EXPECT_EQ(explain(false, "default", "silu", true).at("op"), "linear_backward");
  EXPECT_NE(explain(false, "w8a8", "none", false).at("kernel"), by_cpu.at("kernel"));  // SQ-LIN-032
  expect_says(refusal([&] { op<Explain>("explain").call(x, layer.qweight, layer.scale, {}, layer.lora_a, {}, "default", "none", false); }),
              {"CALL_NULL", "lora_a is given", "lora_b is not"});

  set_backend("cpu", "reference");
  EXPECT_EQ(std::filesystem::path(backend_of("cpu")).filename(), "libsquareq_reference.so");
  EXPECT_NE(explain(true, "default", "none", false).at("kernel"), by_cpu.at("kernel"));
  set_backend("cpu", first.string());
  EXPECT_EQ(backend_of("cpu"), first.string());
}

TEST(Backends, OneThatCannotAnswerChangesNothing) {
  const std::string before = backend_of("cpu");
  expect_says(refusal([] { set_backend("cpu", "fastest"); }), {"CFG_BACKEND", "fastest", "libsquareq_fastest.so"});
  expect_says(refusal([] { set_backend("cpu", "/nowhere/libsquareq_cpu.so"); }), {"CFG_BACKEND", "/nowhere/libsquareq_cpu.so"});
  expect_says(refusal([&] { set_backend("cuda", before); }), {"CFG_BACKEND", "computes on cpu", "tensors on cuda"});
  expect_says(refusal([&] { set_backend("tpu", before); }), {"CFG_VALUE", "tpu", "cpu, cuda"});
  expect_says(refusal([] { backend_of("tpu"); }), {"CFG_VALUE", "tpu"});
  EXPECT_EQ(backend_of("cpu"), before);
}

}  // namespace
}  // namespace squareq::torch_ops::testing
