// QuantLinear, scaffold and loader: published goldens, gradients against float64, what casts may not touch, strict refusals
// (SQ-MOD-001..012, 020).
#include <malloc.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "squareq/error.hpp"
#include "squareq/training/backend.hpp"
#include "squareq/training/modules/module_group.hpp"
#include "squareq/training/modules/quant_linear.hpp"
#include "squareq/training/modules/quantized_linear.hpp"
#include "squareq/training/modules/scaffold.hpp"
#include "squareq/training/tests/forward_support.hpp"

namespace squareq::training {
namespace {

using nlohmann::json;
using testing::build_slab;
using testing::code_of;
using testing::fixture;
using testing::Scratch;
using torch::Tensor;

json golden() {
  std::ifstream file(fixture("linear/goldens.json"));
  return json::parse(file).at("linear").at(0);
}

Tensor tensor_of(const json& rows, torch::Dtype dtype = torch::kFloat32) {
  if (!rows.at(0).is_array()) return torch::tensor(rows.get<std::vector<double>>()).to(dtype);
  std::vector<Tensor> parts;
  for (const json& row : rows) parts.push_back(torch::tensor(row.get<std::vector<double>>()));
  return torch::stack(parts).to(dtype);
}

class Modules : public ::testing::TestWithParam<const char*> {
 protected:
  Context backend = open_backend(GetParam(), 1);
};

QuantLinear golden_module(const json& g, bool lora, torch::Dtype compute) {
  std::optional<LoraSpec> spec;
  if (lora) spec = LoraSpec{g.at("rank"), g.at("alpha"), LoraInit::peft};
  QuantLinear module(LinearSpec{"golden", g.at("in_features"), g.at("out_features"), true}, spec, compute);
  module.set_quant_state(tensor_of(g.at("qweight"), torch::kInt8), tensor_of(g.at("scale")), tensor_of(g.at("zero_point")),
                         tensor_of(g.at("bias")));
  if (lora) {
    torch::NoGradGuard no_grad;
    module.lora_a().copy_(tensor_of(g.at("lora_A")));
    module.lora_b().copy_(tensor_of(g.at("lora_B")));
  }
  return module;
}

TEST_P(Modules, DyadicGoldenIsExact) {
  const json g = golden();
  const Tensor x = tensor_of(g.at("x"));
  for (const auto& [lora, compute, key] : {std::tuple{false, torch::kFloat32, "y_base_f32"},
                                           {false, torch::kBFloat16, "y_base_bf16"},
                                           {true, torch::kFloat32, "y_lora_f32"},
                                           {true, torch::kBFloat16, "y_lora_bf16"}}) {
    const Tensor y = golden_module(g, lora, compute).forward(x, backend);
    EXPECT_EQ(y.scalar_type(), compute);
    EXPECT_TRUE(torch::equal(y.to(torch::kFloat32), tensor_of(g.at(key)))) << key << '\n' << y;
  }
}

TEST_P(Modules, DyadicGradientsAreExactAndAccumulate) {  // SQ-MOD-001, SQ-MOD-004
  const json g = golden();
  const QuantLinear module = golden_module(g, true, torch::kFloat32);
  const Tensor x = tensor_of(g.at("x")).requires_grad_(true);
  const Tensor dy = tensor_of(g.at("grad_y"));
  for (int pass = 1; pass <= 2; ++pass) {
    module.forward(x, backend).backward(dy);
    EXPECT_TRUE(torch::equal(module.lora_a().grad(), pass * tensor_of(g.at("grad_lora_A"))));
    EXPECT_TRUE(torch::equal(module.lora_b().grad(), pass * tensor_of(g.at("grad_lora_B"))));
    EXPECT_TRUE(torch::equal(x.grad(), pass * tensor_of(g.at("grad_x"))));
  }
  EXPECT_FALSE(module.named_parameters()["bias"].requires_grad());
}

TEST_P(Modules, InputGradientFlowsWithoutAdapter) {
  const json g = golden();
  const Tensor x = tensor_of(g.at("x")).requires_grad_(true);
  golden_module(g, false, torch::kFloat32).forward(x, backend).backward(tensor_of(g.at("grad_y")));
  const Tensor w = tensor_of(g.at("qweight")).slice(1, 0, 5) * tensor_of(g.at("scale")).unsqueeze(1);
  EXPECT_TRUE(torch::equal(x.grad(), torch::matmul(tensor_of(g.at("grad_y")), w)));
}

/// What a layer keeps for backward: nothing of the size of its weight, in floats or otherwise. Heap bytes in use, as the C library counts them.
TEST_P(Modules, KeepsNoFloatWeightForBackward) {  // SQ-MOD-002
  constexpr std::int64_t size = 1024;
  QuantLinear module(LinearSpec{"large", size, size, false}, LoraSpec{2, 2.0, LoraInit::peft}, torch::kFloat32);
  module.set_quant_state(torch::ones({size, size}, torch::kInt8), torch::full({size}, 1e-3f), torch::zeros({size}), {});
  const Tensor x = torch::ones({4, size}).requires_grad_(true);
  module.forward(x, backend).sum().backward();  // whatever the first call sets up stays
  const auto in_use = [] {
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  const std::size_t before = in_use();
  const Tensor y = module.forward(x, backend);
  const std::size_t kept = in_use() - before;
  EXPECT_LT(kept, 128u * 1024u) << "y and H are 16 KiB, a float weight is 4 MiB, the codes are 1 MiB";
  y.sum().backward();
}

/// A layer of random codes, in padded to 64.
struct RandomLayer final : WeightSource {
  std::int64_t in, out;
  Tensor q, s, zero, bias;
  RandomLayer(std::int64_t in_features, std::int64_t out_features)
      : in(in_features),
        out(out_features),
        q(torch::randint(-127, 128, {out, 64}, torch::kInt8)),
        s(torch::rand({out}) * 0.01 + 0.001),
        zero(torch::zeros({out})),
        bias(torch::randn({out})) {
    q.slice(1, in).zero_();
  }
  void bind(BoundWeight& bound) const override {
    bound.weight = sized<sq_weight>();
    bound.weight.format = "bp8_v2";
    bound.weight.name = "random";
    bound.weight.out_features = out;
    bound.weight.in_features = in;
    bound.parts = {sq_part{"qweight", make_tensor(q.data_ptr(), SQ_I8, {out, 64})}, {"scale", make_tensor(s.data_ptr(), SQ_F32, {out})},
                   {"zero_point", make_tensor(zero.data_ptr(), SQ_F32, {out})}, {"bias", make_tensor(bias.data_ptr(), SQ_F32, {out})}};
    bound.weight.parts = bound.parts.data();
    bound.weight.part_count = 4;
    bound.ref = sized<sq_weight_ref>();
    bound.ref.weight = &bound.weight;
  }
};

/// Rows as int8 codes times their scale (spec/30-quantization.md, per_token_int8), in float64.
Tensor per_token(const Tensor& x) {
  const Tensor scale = (std::get<0>(x.abs().max(1, true)) / 127).clamp_min(1e-30f);
  return torch::round(x / scale).clamp(-127, 127).to(torch::kFloat64) * scale.to(torch::kFloat64);
}

/// Class R4 by its formula in float64; one wrong int8 code would be off by 4e-3.
TEST_P(Modules, Int8ActivationsForwardAndBackward) {  // SQ-TRN-048
  torch::manual_seed(3);
  const auto layer = std::make_shared<RandomLayer>(37, 29);
  LinearCall constant{backend, layer, layer->out, SQ_ACT_NONE, 0.75f};
  constant.compute = SQ_COMPUTE_W8A8;
  const auto call = std::make_shared<const LinearCall>(constant);
  const Tensor x = torch::randn({7, layer->in}).requires_grad_(true), dy = torch::randn({7, layer->out});
  const Tensor a_t = torch::randn({3, layer->in}), b_t = torch::randn({layer->out, 3});
  const auto expect_near = [](const Tensor& got, const Tensor& want, const char* what) {
    EXPECT_LE((got.to(torch::kFloat64) - want).norm().item<double>() / want.norm().item<double>(), 1e-6) << what;
  };
  const Tensor codes = layer->q.slice(1, 0, layer->in).to(torch::kFloat64), s = layer->s.to(torch::kFloat64);
  const Tensor base = torch::matmul(per_token(x.detach()), codes.t()) * s + layer->bias.to(torch::kFloat64);
  const Tensor dx = torch::matmul(per_token(dy * layer->s), codes);
  const Tensor exact_x = x.detach().to(torch::kFloat64), a = a_t.to(torch::kFloat64), b = b_t.to(torch::kFloat64);
  for (const bool branch : {false, true}) {
    const Tensor y = quantized_linear(x, branch ? LowRank{a_t, b_t, {}} : LowRank{}, call);
    const Tensor got = torch::autograd::grad({y}, {x}, {dy})[0];
    const double c = branch ? 0.75 : 0.0;
    expect_near(y.detach(), base + c * torch::matmul(torch::matmul(exact_x, a.t()), b.t()), branch ? "y with branch" : "y");
    expect_near(got, dx + c * torch::matmul(torch::matmul(dy.to(torch::kFloat64), b), a), branch ? "dx with branch" : "dx");
  }
}

TEST_P(Modules, SharedCodesChangeNoBit) {  // SQ-TRN-048
  torch::manual_seed(4);
  const auto layer = std::make_shared<RandomLayer>(37, 29);
  const Tensor wide = torch::randn({7, 2 * layer->in}), a_t = torch::randn({3, layer->in}).requires_grad_(true), b_t = torch::randn({layer->out, 3}).requires_grad_(true);
  for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
    const Tensor x = wide.narrow(1, 3, layer->in).to(dtype).detach().requires_grad_(true), dy = torch::randn({7, layer->out}).to(dtype), own = torch::randn({7, layer->in}).to(dtype);
    const TokenCodes codes = token_codes(backend, x);
    EXPECT_TRUE(torch::allclose(codes.q.to(torch::kFloat64) * codes.scale.to(torch::kFloat64).unsqueeze(1), per_token(x.detach().to(torch::kFloat32)), 1e-6, 0));
    for (const std::int32_t activation : {SQ_ACT_NONE, SQ_ACT_GELU_TANH})
      for (const LowRank& branch : {LowRank{}, LowRank{a_t, b_t, {}}, LowRank{a_t, b_t, own}}) {
        LinearCall constant{backend, layer, layer->out, activation, 0.75f};
        constant.compute = SQ_COMPUTE_W8A8;
        const auto call = std::make_shared<const LinearCall>(constant);
        const auto results = [&](const TokenCodes& given) {
          const Tensor y = quantized_linear(x, branch, call, given);
          std::vector<Tensor> inputs{x};
          if (branch.a_t.defined()) inputs.insert(inputs.end(), {a_t, b_t});
          std::vector<Tensor> all = torch::autograd::grad({y}, inputs, {dy});
          all.push_back(y.detach());
          return all;
        };
        const std::vector<Tensor> with = results(codes), without = results({});
        for (std::size_t i = 0; i < with.size(); ++i) EXPECT_TRUE(torch::equal(with[i], without[i])) << dtype << ' ' << activation << ' ' << i;
        torch::NoGradGuard no_grad;
        EXPECT_TRUE(torch::equal(quantized_linear(x, branch, call, codes), without.back()));
      }
  }
  TokenCodes wrong = token_codes(backend, wide.narrow(1, 0, layer->in).contiguous());
  LinearCall constant{backend, layer, layer->out, SQ_ACT_NONE, 0.75f};
  constant.compute = SQ_COMPUTE_W8A8;
  const auto call = std::make_shared<const LinearCall>(constant);
  const Tensor x = wide.narrow(1, 3, layer->in).contiguous();
  EXPECT_FALSE(torch::equal(quantized_linear(x, {}, call, wrong), quantized_linear(x, {}, call))) << "the codes given are not the ones that count";
  constant.compute = SQ_COMPUTE_DEFAULT;
  try {
    quantized_linear(x, {}, std::make_shared<const LinearCall>(constant), wrong);
    ADD_FAILURE() << "codes were taken by a layer of exact weights";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::CALL_VALUE);
  }
}

/// Any shape and activation against the same formula in float64, gradients by libtorch's own autograd.
TEST_P(Modules, GradientsMatchFloat64ForEveryActivationAndOwnBranchInput) {
  torch::manual_seed(1);
  const std::int64_t rows = 7, in = 37, out = 29, rank = 3;
  const auto source = std::make_shared<RandomLayer>(in, out);
  const Tensor q = source->q, s = source->s, bias = source->bias;
  for (const std::int32_t activation : {SQ_ACT_NONE, SQ_ACT_GELU_TANH, SQ_ACT_GELU_ERF, SQ_ACT_SILU}) {
    const auto call = std::make_shared<const LinearCall>(LinearCall{backend, source, out, activation, 0.75f});
    const std::vector<Tensor> leaves{torch::randn({rows, in}), torch::randn({rank, in}), torch::randn({out, rank}),
                                     torch::randn({rows, in})};
    for (const Tensor& leaf : leaves) leaf.requires_grad_(true);
    const Tensor dy = torch::randn({rows, out});
    const Tensor y = quantized_linear(leaves[0], {leaves[1], leaves[2], leaves[3]}, call);
    const auto grads = torch::autograd::grad({y}, leaves, {dy});

    std::vector<Tensor> exact;
    for (const Tensor& leaf : leaves) exact.push_back(leaf.detach().to(torch::kFloat64).requires_grad_(true));
    const Tensor w = (q.slice(1, 0, in).to(torch::kFloat32) * s.unsqueeze(1)).to(torch::kFloat64);
    Tensor z = torch::matmul(exact[0], w.t()) + 0.75 * torch::matmul(torch::matmul(exact[3], exact[1].t()), exact[2].t()) +
               bias.to(torch::kFloat64);
    if (activation == SQ_ACT_GELU_TANH) z = torch::gelu(z, "tanh");
    if (activation == SQ_ACT_GELU_ERF) z = torch::gelu(z);
    if (activation == SQ_ACT_SILU) z = torch::silu(z);
    const auto want = torch::autograd::grad({z}, exact, {dy.to(torch::kFloat64)});
    EXPECT_LE((y.to(torch::kFloat64) - z).norm().item<double>() / z.norm().item<double>(), 1e-6) << activation;
    for (std::size_t i = 0; i < leaves.size(); ++i)
      EXPECT_LE((grads[i].to(torch::kFloat64) - want[i]).norm().item<double>() / want[i].norm().item<double>(), 1e-6)
          << activation << " input " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Modules, ::testing::Values("reference", "cpu"));

std::vector<Tensor> state_of(torch::nn::Module& m) {
  std::vector<Tensor> all;
  for (const Tensor& t : m.buffers()) all.push_back(t.clone());
  for (const auto& p : m.named_parameters())
    if (p.key().find("lora_") != std::string::npos || p.key().find("bias") != std::string::npos) all.push_back(p.value().clone());
  return all;
}

TEST(QuantLinear, CastsLeaveEveryBit) {
  const json g = golden();
  const auto child = std::make_shared<QuantLinear>(golden_module(g, true, torch::kBFloat16));
  {
    torch::NoGradGuard no_grad;
    child->lora_a().add_(1.0f / 3);  // not a 16-bit value
  }
  torch::nn::Module parent("parent");
  parent.register_module("layer", child);
  parent.register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({4})));
  const std::vector<Tensor> before = state_of(*child);
  parent.to(torch::kBFloat16);
  child->to(torch::kFloat16);
  parent.to(torch::kFloat64);
  parent.to(torch::kCPU, torch::kFloat16);
  const std::vector<Tensor> after = state_of(*child);
  ASSERT_EQ(before.size(), after.size());
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(before[i].scalar_type(), after[i].scalar_type());
    EXPECT_TRUE(torch::equal(before[i], after[i]));
  }
  EXPECT_EQ(parent.named_parameters()["norm.weight"].scalar_type(), torch::kFloat16);  // the cast itself did reach the tree
}

TEST(QuantLinear, RefusesWrongState) {
  const json g = golden();
  const Tensor q = tensor_of(g.at("qweight"), torch::kInt8), s = tensor_of(g.at("scale")), z = tensor_of(g.at("zero_point")),
               b = tensor_of(g.at("bias"));
  QuantLinear module(LinearSpec{"layer.x", 5, 3, true});
  const auto refused = [&](Tensor qq, Tensor ss, Tensor zz, Tensor bb, const char* named) {
    std::string message;
    EXPECT_EQ(code_of([&] { module.set_quant_state(qq, ss, zz, bb); }, &message), Code::MD_LAYER);
    EXPECT_NE(message.find("layer.x"), std::string::npos) << message;
    EXPECT_NE(message.find(named), std::string::npos) << message;
    EXPECT_FALSE(module.loaded());
  };
  Tensor bad = q.clone();
  bad[0][6] = 1;
  refused(bad, s, z, b, "padding");
  bad = q.clone();
  bad[1][1] = -128;
  refused(bad, s, z, b, "-128");
  refused(q.to(torch::kFloat32), s, z, b, "received Float");
  refused(q.slice(0, 1), s, z, b, "[2, 8]");
  refused(q.slice(1, 0, 4), s, z, b, "[3, 4]");
  refused(q, s.to(torch::kFloat16), z, b, "received Half");
  refused(q, s.slice(0, 1), z, b, "[2]");
  refused(q, -s, z, b, "positive");
  refused(q, s, z + 1, b, "zero_point");
  refused(q, s, z, {}, "bias");
  const Context backend = open_backend("reference", 1);
  std::string message;
  EXPECT_EQ(code_of([&] { module.forward(torch::zeros({1, 5}), backend); }, &message), Code::CALL_STATE);
  EXPECT_NE(message.find("before quantized state was set"), std::string::npos);
  module.set_quant_state(q, s, z, b);
  EXPECT_EQ(code_of([&] { module.forward(torch::zeros({1, 8}), backend); }), Code::CALL_SHAPE);
}

TEST(Scaffold, ReplacesFreezesAndIsIdempotent) {  // SQ-MOD-010
  const auto root = std::make_shared<torch::nn::Module>("root");
  const auto inner = std::make_shared<torch::nn::Module>("inner");
  inner->register_module("fc", torch::nn::Linear(6, 4));
  inner->register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({4})));
  root->register_module("inner", inner);
  const std::vector<LinearSpec> layers{{"inner.fc", 6, 4, true}};
  EXPECT_EQ(scaffold(*root, layers, LoraSpec{2, 4, LoraInit::squareq}), std::vector<std::string>{"inner.fc"});
  ASSERT_EQ(trainable_parameters(*root).size(), 2u);
  for (const auto& p : root->named_parameters())
    EXPECT_EQ(p.value().requires_grad(), p.key().find("lora_") != std::string::npos) << p.key();
  const Tensor a = trainable_parameters(*root)[0], b = trainable_parameters(*root)[1];
  EXPECT_EQ(a.sizes(), at::IntArrayRef({6, 2}));
  EXPECT_EQ(b.sizes(), at::IntArrayRef({2, 4}));
  EXPECT_TRUE(b.eq(0).all().item<bool>());
  EXPECT_LE(a.abs().max().item<float>(), std::sqrt(3.0f));  // sqrt(6 / rank)
  EXPECT_GT(a.abs().max().item<float>(), 1 / std::sqrt(6.0f));
  EXPECT_TRUE(scaffold(*root, layers, std::nullopt).empty());  // an adapter in place is never replaced
  EXPECT_TRUE(trainable_parameters(*root)[0].is_same(a));
}

TEST(Scaffold, RefusesWhatDoesNotMatch) {
  const auto make = [] {
    const auto root = std::make_shared<torch::nn::Module>("root");
    root->register_module("fc", torch::nn::Linear(6, 4));
    root->register_module("conv", torch::nn::Conv2d(3, 4, 1));
    return root;
  };
  const auto refused = [&](std::vector<LinearSpec> layers, const char* named) {
    const auto root = make();
    std::string message;
    EXPECT_EQ(code_of([&] { scaffold(*root, layers, std::nullopt); }, &message), Code::MD_LAYER);
    EXPECT_NE(message.find(named), std::string::npos) << message;
    EXPECT_NE(dynamic_cast<torch::nn::LinearImpl*>(root->named_children()["fc"].get()), nullptr);  // nothing was replaced
  };
  refused({{"fc", 6, 4, true}, {"nowhere", 1, 1, false}}, "nowhere");
  refused({{"fc", 6, 4, true}, {"fc", 6, 4, true}}, "twice");
  refused({{"fc", 6, 4, true}, {"conv", 3, 4, true}}, "Conv2d");
  refused({{"fc", 6, 5, true}}, "[5, 6]");
  refused({{"fc", 6, 4, false}}, "without bias");
}

TEST(ModuleGroup, LoadsASlabAndComputes) {
  const Scratch scratch;
  const auto slab_path = build_slab(fixture("flux/guided"), scratch, "slab");
  const Slab slab = Slab::open(slab_path);
  const Implementation implementation(module_implementation());
  const Context context(implementation, sq_host{});
  json layers = json::array();
  for (const LinearSpec& l : layers_of(slab)) layers.push_back({{"name", l.name}, {"in", l.in}, {"out", l.out}, {"bias", l.bias}});
  const std::string request = json{{"layers", layers},
                                   {"others", {{{"name", "norm"}, {"kind", "layer_norm"}, {"shape", {8}}}}},
                                   {"lora", {{"rank", 4}, {"alpha", 8}}}}
                                  .dump();
  const sq_module_group& group = *context->module;
  std::uint64_t id = 0;
  std::string text;
  sq_error e = make_error();
  ASSERT_EQ(group.create(context.get(), request.c_str(), &id, append_text, &text, &e), SQ_OK) << e.message;
  text.clear();
  ASSERT_EQ(group.load(context.get(), id, json{{"slab", slab_path.string()}}.dump().c_str(), append_text, &text, &e), SQ_OK) << e.message;
  EXPECT_EQ(json::parse(text).at("loaded"), slab.layer_count());
  text.clear();
  ASSERT_EQ(group.list(context.get(), id, append_text, &text, &e), SQ_OK);
  std::size_t trainable = 0;
  const json listed = json::parse(text);
  for (const json& p : listed.at("parameters")) trainable += p.at("trainable").get<bool>();
  EXPECT_EQ(trainable, 2 * slab.layer_count());
  EXPECT_EQ(listed.at("buffers").size(), 3 * slab.layer_count());

  layers.push_back({{"name", "more"}, {"in", 1}, {"out", 1}, {"bias", false}});
  std::uint64_t larger = 0;
  ASSERT_EQ(group.create(context.get(), json{{"layers", layers}}.dump().c_str(), &larger, append_text, &text, &e), SQ_OK);
  EXPECT_EQ(group.load(context.get(), larger, json{{"slab", slab_path.string()}}.dump().c_str(), append_text, &text, &e), SQ_MD_LAYER);
  EXPECT_NE(std::string(e.message).find("more"), std::string::npos);

  std::vector<float> x(2 * 40, 0.5f), y(2 * 64);
  const sq_tensor xt = make_tensor(x.data(), SQ_F32, {2, 40}), yt = make_tensor(y.data(), SQ_F32, {2, 64});
  ASSERT_EQ(group.forward(context.get(), id, "context_embedder", &xt, &yt, &e), SQ_OK) << e.message;
  EXPECT_TRUE(std::all_of(y.begin(), y.end(), [](float v) { return std::isfinite(v) && v != 0; }));
  EXPECT_EQ(group.forward(context.get(), id, "norm", &xt, &yt, &e), SQ_MD_LAYER);
  EXPECT_EQ(group.destroy(context.get(), id, &e), SQ_OK);
  EXPECT_EQ(group.freeze(context.get(), id, &e), SQ_CALL_STATE);
}

}  // namespace
}  // namespace squareq::training
