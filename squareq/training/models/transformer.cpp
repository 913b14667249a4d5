// Transformer for the FLUX.1 family: passes, leases of what lies outside blocks, adapters, and the loop over the blocks.
#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <filesystem>

#include "squareq/error.hpp"
#include "squareq/training/model.hpp"
#include "squareq/training/models/block_function.hpp"
#include "squareq/training/models/flux1.hpp"
#include "squareq/training/models/source.hpp"
#include "squareq/training/models/weight_store.hpp"

namespace squareq::training {

namespace {

using torch::Tensor;

class FluxBlock final : public BlockTask {
 public:
  FluxBlock(const Flux1& model, WeightStore& store, std::int64_t index) : model_(&model), store_(&store), index_(index) {}
  std::unique_ptr<Hold> hold() override { return store_->hold(index_); }
  std::vector<Tensor> run(const std::vector<Tensor>& inputs) override { return model_->block(index_, inputs); }

 private:
  const Flux1* model_;
  WeightStore* store_;
  std::int64_t index_;
};

void append(std::vector<Tensor>& tensors, const BlockAdapters& adapters) {
  for (const Adapter* adapter : adapters) tensors.insert(tensors.end(), {adapter->a_t, adapter->b_t});
}

class FluxTransformer final : public Transformer {
 public:
  FluxTransformer(OpenedModel opened, const OpenOptions& options)
      : config_(std::move(opened.config)),
        architecture_(std::move(opened.architecture)),
        store_(std::move(opened.store)),
        native_(std::move(opened.native)),
        dtype_(options.dtype),
        checkpointing_(options.checkpointing),
        model_(config_, *store_, options.dtype) {
    for (std::int64_t i = 0; i < model_.block_count(); ++i) blocks_.push_back(std::make_shared<FluxBlock>(model_, *store_, i));
  }

  Tensor forward(const ForwardInputs& inputs) override {
    if (!pass_) throw Error(Code::CALL_STATE, "forward outside a pass: call begin_pass first");
    if (begun_) throw Error(Code::CALL_STATE, "a second forward in one pass");
    model_.check(inputs);
    torch::AutoGradMode grad(*pass_ == Pass::train && torch::GradMode::is_enabled());
    store_->begin(*pass_, first_backward_block(inputs));
    begun_ = true;
    outside_ = store_->hold(-1);

    std::vector<Tensor> outside;
    append(outside, store_->linears().adapters_of(-1));
    const Flux1::Conditioning condition = model_.condition(inputs, outside);
    std::vector<Tensor> streams{model_.embed_image(inputs.hidden_states, outside),
                                model_.embed_text(inputs.encoder_hidden_states, outside)};
    const std::int64_t text = inputs.encoder_hidden_states.size(1);
    bool joined = false;
    for (std::int64_t i = 0; i < model_.block_count(); ++i) {
      if (!model_.is_double(i) && !joined) {
        streams = {torch::cat({streams[1], streams[0]}, 1)};
        joined = true;
      }
      std::vector<Tensor> in = streams;
      in.insert(in.end(), {condition.silu_vec, condition.rope});
      append(in, store_->linears().adapters_of(i));
      streams = run_block(blocks_[static_cast<std::size_t>(i)], in, checkpointing_);
    }
    return model_.finish(joined ? streams[0].slice(1, text) : streams[0], condition.silu_vec, outside);
  }

  void begin_pass(Pass pass) override {
    if (pass_) throw Error(Code::CALL_STATE, "begin_pass inside a pass");
    pass_ = pass;
  }

  void end_pass(bool abandoned) override {
    if (!pass_) throw Error(Code::CALL_STATE, "end_pass outside a pass");
    pass_.reset();
    outside_.reset();
    if (std::exchange(begun_, false)) store_->end(abandoned);
  }

  std::vector<LinearInfo> linears() const override { return store_->linears().list(); }

  void set_adapters(AdapterSet* adapters) override {
    if (pass_) throw Error(Code::CALL_STATE, "set_adapters inside a pass");
    store_->linears().bind(adapters, native_);
  }

  const ModelConfig& config() const override { return config_; }
  const Architecture& architecture() const override { return architecture_; }
  std::int64_t block_count() const override { return model_.block_count(); }
  torch::Device device() const override { return store_->device(); }
  torch::Dtype dtype() const override { return dtype_; }
  std::string backend_name() const override { return store_->backend_name(); }
  std::string slab_id() const override { return store_->slab_id(); }
  sq_stream_stats stream_stats() const override { return store_->stream_stats(); }
  sq_step_metrics last_step() const override { return store_->last_step(); }

 private:
  /// The first block that backward will visit; block_count() where it visits none.
  std::int64_t first_backward_block(const ForwardInputs& in) const {
    if (!torch::GradMode::is_enabled()) return model_.block_count();
    for (const Tensor& t :
         {in.hidden_states, in.encoder_hidden_states, in.pooled_projections, in.timestep, in.guidance, in.img_ids, in.txt_ids})
      if (t.defined() && t.requires_grad()) return 0;
    const auto trained = [](const Adapter* a) { return a->a_t.requires_grad() || a->b_t.requires_grad(); };
    const auto feeds_blocks = [&](const Adapter* a) {  // all outside layers but the final ones
      return trained(a) && !a->layer.starts_with("norm_out") && !a->layer.starts_with("proj_out") && !a->layer.starts_with("final_layer");
    };
    const BlockAdapters& outside = store_->linears().adapters_of(-1);
    if (std::any_of(outside.begin(), outside.end(), feeds_blocks)) return 0;
    for (std::int64_t i = 0; i < model_.block_count(); ++i) {
      const BlockAdapters& own = store_->linears().adapters_of(i);
      if (std::any_of(own.begin(), own.end(), trained)) return i;
    }
    return model_.block_count();
  }

  ModelConfig config_;
  Architecture architecture_;
  std::unique_ptr<WeightStore> store_;
  std::map<std::string, Placement> native_;
  torch::Dtype dtype_;
  bool checkpointing_;
  Flux1 model_;
  std::vector<std::shared_ptr<FluxBlock>> blocks_;
  std::optional<Pass> pass_;
  bool begun_ = false;
  std::unique_ptr<BlockTask::Hold> outside_;
};

}  // namespace

std::unique_ptr<Transformer> Transformer::open(const OpenOptions& options) {
  return std::make_unique<FluxTransformer>(is_slab(options.source) ? open_slab(options) : open_checkpoint(options), options);
}

}  // namespace squareq::training
