// The transformer as the trainer uses it: passes, leases, checkpointing, streaming, adapters (SQ-MOD-013..017).
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "squareq/error.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/training/model.hpp"
#include "squareq/training/models/block_function.hpp"
#include "squareq/training/tests/forward_support.hpp"

namespace squareq::training {
namespace {

using testing::build_slab;
using testing::code_of;
using testing::fixture;
using testing::Scratch;
using torch::Tensor;

ForwardInputs inputs_of(const std::string& name, Tensor& cotangent) {
  const SafetensorsFile file = SafetensorsFile::open(fixture("flux/" + name + "/inputs.safetensors"));
  const auto get = [&](const char* tensor) {
    const TensorRecord* record = file.header().find(tensor);
    if (!record) return Tensor();
    Tensor t = torch::empty(std::vector<std::int64_t>(record->shape.begin(), record->shape.end()));
    file.read(*record, 0, t.data_ptr(), record->bytes());
    return t;
  };
  cotangent = get("cotangent");
  return {get("hidden_states"), get("encoder_hidden_states"), get("pooled_projections"), get("timestep"), get("guidance"), get("img_ids"),
          get("txt_ids")};
}

/// Adapters on `suffixes`, B not zero, the same at every call.
AdapterSet adapters_for(const Transformer& model, const std::vector<std::string>& suffixes) {
  torch::manual_seed(11);
  AdapterSet set;
  for (const LinearInfo& l : model.linears())
    for (const std::string& suffix : suffixes)
      if (l.block >= 0 && l.name.ends_with(suffix)) set.add({l.name, 3, torch::randn({2, l.in}) * 0.1, torch::randn({l.out, 2}) * 0.1});
  set.require_grad(true);
  return set;
}

struct Step {
  Tensor sample;
  std::vector<Tensor> grads;
};

Step step_of(Transformer& model, AdapterSet& set, bool input_grads = false) {
  Tensor cotangent;
  ForwardInputs in = inputs_of("guided", cotangent);
  if (input_grads) in.hidden_states.requires_grad_(true);
  for (const Tensor& p : set.parameters()) p.mutable_grad() = Tensor();
  PassScope pass(model, Pass::train);
  const Tensor sample = model.forward(in);
  sample.backward(cotangent.to(sample.scalar_type()));
  pass.finish();
  Step step{sample.detach(), {}};
  for (const Tensor& p : set.parameters()) step.grads.push_back(p.grad().clone());
  if (input_grads) step.grads.push_back(in.hidden_states.grad());
  return step;
}

void expect_equal(const Step& a, const Step& b) {
  EXPECT_TRUE(torch::equal(a.sample, b.sample));
  ASSERT_EQ(a.grads.size(), b.grads.size());
  for (std::size_t i = 0; i < a.grads.size(); ++i) EXPECT_TRUE(torch::equal(a.grads[i], b.grads[i])) << i;
}

const std::vector<std::string> kTargets{"to_q", "add_k_proj", "ff.net.2", "proj_mlp", "norm.linear"};

class StreamedTransformer : public ::testing::TestWithParam<const char*> {
 protected:
  OpenOptions options(std::int64_t resident, bool checkpointing = true) const {
    OpenOptions o;
    o.source = slab;
    o.backend = GetParam();
    o.resident_blocks = resident;
    o.checkpointing = checkpointing;
    o.poison_slots = true;
    o.threads = 2;
    return o;
  }
  Scratch scratch;
  std::filesystem::path slab = build_slab(fixture("flux/guided"), scratch, "slab");
};

TEST_P(StreamedTransformer, TwoSlotsEqualResidentBitForBitOverSteps) {
  const auto resident = Transformer::open(options(0)), streamed = Transformer::open(options(2));
  AdapterSet a = adapters_for(*resident, kTargets), b = adapters_for(*streamed, kTargets);
  resident->set_adapters(&a);
  streamed->set_adapters(&b);
  for (int i = 0; i < 3; ++i) {
    expect_equal(step_of(*resident, a, i == 1), step_of(*streamed, b, i == 1));
    torch::NoGradGuard no_grad;
    for (const auto& set : {&a, &b})
      for (const Tensor& p : set->parameters()) p.add_(p.grad(), -0.01);
  }
  EXPECT_LT(streamed->stream_stats().peak_device_bytes, resident->stream_stats().peak_device_bytes);
  EXPECT_EQ(resident->stream_stats().loads, 0u);
  // 2N - 2C per step in steady state; the first step finds empty slots.
  EXPECT_EQ(streamed->stream_stats().loads,
            static_cast<std::uint64_t>(2 * streamed->block_count() - 2) + 2 * static_cast<std::uint64_t>(2 * streamed->block_count() - 4));
}

TEST_P(StreamedTransformer, CheckpointingChangesNoBit) {
  const auto with = Transformer::open(options(2, true)), without = Transformer::open(options(2, false));
  AdapterSet a = adapters_for(*with, kTargets), b = adapters_for(*without, kTargets);
  a.dropout = b.dropout = 0.25;
  a.dropout_seed = b.dropout_seed = 9;
  with->set_adapters(&a);
  without->set_adapters(&b);
  const Step dropped = step_of(*with, a);
  expect_equal(dropped, step_of(*without, b));
  a.dropout_seed = 10;
  EXPECT_FALSE(torch::equal(step_of(*with, a).sample, dropped.sample));
}

TEST_P(StreamedTransformer, BackwardStopsAtTheFirstTrainedBlockAndPassesMix) {
  const auto model = Transformer::open(options(2));
  AdapterSet late;
  for (const LinearInfo& l : model->linears())
    if (l.block == model->block_count() - 1 && l.name.ends_with("proj_out"))
      late.add({l.name, 1, torch::ones({1, l.in}), torch::ones({l.out, 1})});
  ASSERT_EQ(late.size(), 1u);
  late.require_grad(true);
  model->set_adapters(&late);
  const Step first = step_of(*model, late);
  Tensor cotangent;
  const ForwardInputs in = inputs_of("guided", cotangent);
  for (int i = 0; i < 2; ++i) {
    PassScope pass(*model, Pass::forward);
    const Tensor sample = model->forward(in);
    EXPECT_FALSE(sample.requires_grad());
    EXPECT_TRUE(torch::equal(sample, first.sample));
    pass.finish();
  }
  expect_equal(first, step_of(*model, late));
}

TEST_P(StreamedTransformer, AnAbandonedPassReleasesItsLeases) {
  const auto model = Transformer::open(options(2));
  AdapterSet set = adapters_for(*model, kTargets);
  model->set_adapters(&set);
  const Step good = step_of(*model, set);
  Tensor cotangent;
  const ForwardInputs in = inputs_of("guided", cotangent);
  {
    PassScope pass(*model, Pass::train);
    model->forward(in);  // no backward: the scope abandons the pass
  }
  expect_equal(good, step_of(*model, set));
  // A failure in the middle of a block: the adapter's matrix is not what the layer takes.
  const Tensor b_t = set.find("transformer_blocks.1.attn.to_q")->b_t;
  const Tensor kept = b_t.detach().clone();
  b_t.set_data(torch::zeros({1, 2}));
  EXPECT_ANY_THROW(step_of(*model, set));
  b_t.set_data(kept);
  expect_equal(good, step_of(*model, set));
}

INSTANTIATE_TEST_SUITE_P(Backends, StreamedTransformer, ::testing::Values("reference", "cpu"));

TEST(Transformer, PassesAndAdaptersAreChecked) {  // SQ-MOD-017
  OpenOptions options;
  options.source = fixture("flux/guided");
  const auto model = Transformer::open(options);
  EXPECT_EQ(model->block_count(), 4);
  EXPECT_EQ(model->config().hidden_size(), 64);
  EXPECT_EQ(model->linears().size(), 2u * 14 + 2u * 6 + 10u);
  Tensor cotangent;
  ForwardInputs in = inputs_of("guided", cotangent);
  EXPECT_EQ(code_of([&] { model->forward(in); }), Code::CALL_STATE);
  PassScope pass(*model, Pass::forward);
  EXPECT_EQ(code_of([&] { model->begin_pass(Pass::train); }), Code::CALL_STATE);
  EXPECT_EQ(code_of([&] { model->set_adapters(nullptr); }), Code::CALL_STATE);
  model->forward(in);
  EXPECT_EQ(code_of([&] { model->forward(in); }), Code::CALL_STATE);
  pass.finish();

  const auto adapter = [](const char* layer, std::int64_t in_features, std::int64_t out) {
    return Adapter{layer, 1, torch::zeros({2, in_features}), torch::zeros({out, 2})};
  };
  AdapterSet unknown, wrong, twice;
  unknown.add(adapter("transformer_blocks.7.attn.to_q", 64, 64));
  EXPECT_EQ(code_of([&] { model->set_adapters(&unknown); }), Code::LR_KEY);
  std::string message;
  wrong.add(adapter("transformer_blocks.0.attn.to_q", 64, 65));
  EXPECT_EQ(code_of([&] { model->set_adapters(&wrong); }, &message), Code::LR_SHAPE);
  EXPECT_NE(message.find("[65, 2]"), std::string::npos) << message;
  twice.add(adapter("transformer_blocks.0.attn.to_q", 64, 64));
  twice.add(adapter("double_blocks.0.img_attn.qkv", 64, 192));
  EXPECT_EQ(code_of([&] { model->set_adapters(&twice); }), Code::LR_KEY);
  EXPECT_EQ(code_of([&] { twice.add(adapter("double_blocks.0.img_attn.qkv", 64, 192)); }), Code::LR_KEY);
}

/// A block that counts holds and fails when asked to.
struct CountingTask final : BlockTask {
  struct Counter final : Hold {
    explicit Counter(int& live) : count(live) { ++count; }
    Counter(const Counter&) = delete;
    Counter& operator=(const Counter&) = delete;
    ~Counter() override { --count; }
    int& count;
  };
  std::unique_ptr<Hold> hold() override { return std::make_unique<Counter>(live); }
  std::vector<Tensor> run(const std::vector<Tensor>& in) override {
    EXPECT_EQ(live, 1);
    if (++runs == fail_at) throw Error(Code::CALL_VALUE, "asked to fail");
    return {in[0] * in[1], in[0] + in[1]};
  }
  int live = 0, runs = 0, fail_at = 0;
};

TEST(BlockFunction, InputsWithoutGradientStillTrainAdapters) {  // SQ-MOD-014
  for (const bool checkpointing : {true, false}) {
    const auto task = std::make_shared<CountingTask>();
    const Tensor x = torch::tensor({2.0, 3.0}), w = torch::tensor({5.0, 7.0}).requires_grad_(true);
    const auto out = run_block(task, {x, w}, checkpointing);
    (out[0].sum() + 10 * out[1].sum()).backward();
    EXPECT_TRUE(torch::equal(w.grad(), torch::tensor({12.0, 13.0})));
    EXPECT_FALSE(x.grad().defined());
    EXPECT_EQ(task->runs, checkpointing ? 2 : 1);
    EXPECT_EQ(task->live, 0);
  }
}

TEST(BlockFunction, FailuresReleaseTheHold) {
  for (const int fail_at : {1, 2}) {
    const auto task = std::make_shared<CountingTask>();
    task->fail_at = fail_at;
    const Tensor x = torch::ones({2}), w = torch::ones({2}).requires_grad_(true);
    EXPECT_ANY_THROW(run_block(task, {x, w}, true)[0].sum().backward());
    EXPECT_EQ(task->runs, fail_at);
    EXPECT_EQ(task->live, 0);
  }
}

}  // namespace
}  // namespace squareq::training
