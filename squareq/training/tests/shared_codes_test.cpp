// Which linears of a FLUX.1 block read codes that were made once (SQ-TRN-048): counted between the model's code and the real linears.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "squareq/training/model.hpp"
#include "squareq/training/models/flux1.hpp"
#include "squareq/training/models/weight_store.hpp"
#include "squareq/training/tests/forward_support.hpp"

namespace squareq::training {
namespace {

using testing::build_slab;
using testing::fixture;
using testing::Scratch;
using torch::Tensor;

class CountingLinears final : public Linears {
 public:
  explicit CountingLinears(Linears& inner) : Linears(inner.list()), inner_(inner) {}

  Tensor apply(std::size_t layer, const LinearInput& input, std::int32_t activation, AdapterTensors adapters) const override {
    if (input.codes.defined()) with_codes.push_back(list()[layer].name);
    return inner_.apply(layer, input, activation, adapters);
  }
  LinearInput shared(const Tensor& x) const override {
    ++inputs_shared;
    return inner_.shared(x);
  }

  mutable std::vector<std::string> with_codes;
  mutable int inputs_shared = 0;

 private:
  Linears& inner_;
};

/// A store whose linears are counted.
class CountingStore final : public WeightStore {
 public:
  explicit CountingStore(WeightStore& inner) : counted(inner.linears()), inner_(inner) {}

  Linears& linears() override { return counted; }
  Tensor tensor(const std::string& name) override { return inner_.tensor(name); }
  void begin(Pass pass, std::int64_t first_backward_block) override { inner_.begin(pass, first_backward_block); }
  void end(bool abandoned) override { inner_.end(abandoned); }
  std::unique_ptr<BlockTask::Hold> hold(std::int64_t block) override { return inner_.hold(block); }
  torch::Device device() const override { return inner_.device(); }
  std::string backend_name() const override { return inner_.backend_name(); }
  std::string slab_id() const override { return inner_.slab_id(); }
  sq_stream_stats stream_stats() const override { return inner_.stream_stats(); }
  sq_step_metrics last_step() const override { return inner_.last_step(); }

  CountingLinears counted;

 private:
  WeightStore& inner_;
};

/// The layers that read codes in `block`, without the block's own prefix.
std::vector<std::string> read_codes(std::int32_t compute, bool is_double, int& inputs_shared) {
  const Scratch scratch;
  OpenOptions options;
  options.source = build_slab(fixture("flux/guided"), scratch, "slab");
  options.backend = "cpu";
  options.compute = compute;
  const OpenedModel opened = open_slab(options);
  CountingStore store(*opened.store);
  const Flux1 model(opened.config, store, torch::kFloat32);
  const std::int64_t block = is_double ? 0 : model.block_count() - 1, width = opened.config.num_attention_heads * opened.config.attention_head_dim;
  EXPECT_EQ(model.is_double(block), is_double);
  torch::NoGradGuard no_grad;
  const Tensor text = torch::randn({1, 2, width}), image = torch::randn({1, 4, width}), silu_vec = torch::randn({1, width});
  const Tensor rope = torch::polar(torch::ones({6, opened.config.attention_head_dim / 2}), torch::rand({6, opened.config.attention_head_dim / 2}));
  const std::vector<Tensor> streams = is_double ? std::vector<Tensor>{image, text} : std::vector<Tensor>{torch::cat({text, image}, 1)};
  std::vector<Tensor> in = streams;
  in.insert(in.end(), {silu_vec, rope});
  store.begin(Pass::forward, model.block_count());
  for (std::int64_t i = -1; i <= block; ++i) {  // blocks are visited in their order
    const auto held = store.hold(i);
    if (i == block) model.block(block, in);
  }
  store.end(true);
  inputs_shared = store.counted.inputs_shared;
  std::vector<std::string> names;
  for (const std::string& name : store.counted.with_codes) names.push_back(name.substr(name.find('.', name.find('.') + 1) + 1));
  return names;
}

TEST(SharedCodes, QueriesKeysAndValuesReadThoseOfTheirStream) {
  int inputs = 0;
  EXPECT_EQ(read_codes(SQ_COMPUTE_W8A8, true, inputs), (std::vector<std::string>{"attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"}));
  EXPECT_EQ(inputs, 2);
}

TEST(SharedCodes, ASingleBlocksMlpReadsThemToo) {
  int inputs = 0;
  EXPECT_EQ(read_codes(SQ_COMPUTE_W8A8, false, inputs), (std::vector<std::string>{"attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"}));
  EXPECT_EQ(inputs, 1);
}

TEST(SharedCodes, NothingIsQuantizedForExactWeights) {
  int inputs = 0;
  EXPECT_TRUE(read_codes(SQ_COMPUTE_DEFAULT, true, inputs).empty());
  EXPECT_TRUE(read_codes(SQ_COMPUTE_DEFAULT, false, inputs).empty());
}

}  // namespace
}  // namespace squareq::training
