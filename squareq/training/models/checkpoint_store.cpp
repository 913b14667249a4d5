// A float checkpoint as a weight store: everything resident, in the compute dtype.
#include <fmt/format.h>

#include "squareq/error.hpp"
#include "squareq/text.hpp"
#include "squareq/training/models/source.hpp"
#include "squareq/training/models/weight_store.hpp"

namespace squareq::training {

namespace {

class CheckpointStore final : public WeightStore {
 public:
  CheckpointStore(TensorFiles files, const ModelLayout& layout, const OpenOptions& options)
      : files_(std::move(files)), layout_(layout), dtype_(options.dtype), linears_(layout.linears, load(options)) {}

  Linears& linears() override { return linears_; }
  torch::Tensor tensor(const std::string& name) override { return files_.read(layout_.locate(name), dtype_); }
  void begin(Pass, std::int64_t) override {}
  void end(bool) override {}
  std::unique_ptr<BlockTask::Hold> hold(std::int64_t) override { return std::make_unique<BlockTask::Hold>(); }
  torch::Device device() const override { return torch::kCPU; }
  std::string backend_name() const override { return "libtorch"; }
  std::string slab_id() const override { return {}; }
  sq_stream_stats stream_stats() const override { return {}; }
  sq_step_metrics last_step() const override { return {}; }

 private:
  std::vector<FloatWeight> load(const OpenOptions& options) const {
    std::vector<FloatWeight> weights;
    for (std::size_t i = 0; i < layout_.linears.size(); ++i) {
      const std::string& name = layout_.linears[i].name;
      FloatWeight weight{files_.read(layout_.locate(name + ".weight"), dtype_), {}};
      if (layout_.biased[i]) weight.bias = files_.read(layout_.locate(name + ".bias"), dtype_);
      weights.push_back(std::move(weight));
      if (options.progress) options.progress(i + 1, layout_.linears.size(), "linear layers");
    }
    return weights;
  }

  TensorFiles files_;
  ModelLayout layout_;
  torch::Dtype dtype_;
  FloatLinears linears_;
};

}  // namespace

OpenedModel open_checkpoint(const OpenOptions& options) {
  if (options.compute == SQ_COMPUTE_W8A8)
    throw Error(Code::CFG_VALUE, fmt::format("compute w8a8 needs a slab; '{}' is a float checkpoint", printable(options.source.string())));
  TensorFiles files = TensorFiles::open_checkpoint(options.source);
  const ModelLayout layout =
      layout_of(recognise(files.shapes(), config_text(options, files.config_json())), files.shapes(), options.source.string());
  return {layout.config, layout.architecture, std::make_unique<CheckpointStore>(std::move(files), layout, options), layout.native};
}

}  // namespace squareq::training
