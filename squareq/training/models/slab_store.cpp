// A slab as a weight store: quantized linears in a stream session, the rest of the model from the companion or a base checkpoint.
#include <fmt/format.h>

#include <algorithm>

#include "squareq/error.hpp"
#include "squareq/slab/signature.hpp"
#include "squareq/slab/slab.hpp"
#include "squareq/streaming/extent.hpp"
#include "squareq/streaming/plan.hpp"
#include "squareq/text.hpp"
#include "squareq/training/backend.hpp"
#include "squareq/training/models/slab_linears.hpp"
#include "squareq/training/models/slab_reader.hpp"
#include "squareq/training/models/source.hpp"
#include "squareq/training/models/weight_store.hpp"
#include "squareq/training/torch_compat.hpp"

namespace squareq::training {

namespace {

/// The session's view of the model: which slab layers lie in which block, and where each linear is.
struct Arrangement {
  std::vector<streaming::Block> blocks;               ///< the model's blocks that hold quantized layers, then those outside
  std::vector<std::vector<std::size_t>> slab_layers;  ///< by block: index into the slab's manifest
  std::vector<std::int64_t> table_index;              ///< by model block; -1: nothing of it is quantized
  std::int64_t outside = -1;                          ///< table index of the layers outside blocks
  std::vector<std::shared_ptr<LeasedBlock>> leased;   ///< by table index
  std::vector<std::optional<SlabPlace>> places;       ///< by linear
};

streaming::Part part_of(const char* name, const TensorRecord& record) {
  return {name, *to_sq_dtype(record.dtype), std::vector<std::int64_t>(record.shape.begin(), record.shape.end())};
}

streaming::Layer layer_of(const Slab& slab, std::size_t index) {
  const ManifestLayer& m = slab.layer(index);
  const LayerTensors& t = slab.tensors(index);
  streaming::Layer layer{
      m.canonical_name, "bp8_v2", static_cast<std::int64_t>(m.orig_shape[0]), static_cast<std::int64_t>(m.orig_shape[1]), {}};
  layer.parts = {part_of("qweight", *t.qweight), part_of("scale", *t.scale), part_of("zero_point", *t.zero_point)};
  if (t.bias) layer.parts.push_back(part_of("bias", *t.bias));
  return layer;
}

Arrangement arrange(const Slab& slab, const ModelLayout& layout, const std::map<std::string, std::size_t>& slab_layers) {
  Arrangement a;
  const Architecture& architecture = layout.architecture;
  std::map<std::string, std::pair<std::int64_t, std::uint32_t>> position;  // checkpoint layer -> (table index, layer in block)
  const auto add_block = [&](const std::string& name, const std::vector<std::string>& layers) -> std::int64_t {
    streaming::Block block{name, {}};
    std::vector<std::size_t> indices;
    const auto table = static_cast<std::int64_t>(a.blocks.size());
    for (const std::string& layer : layers) {
      const auto at = slab_layers.find(layer);
      if (at == slab_layers.end()) continue;
      position[layer] = {table, static_cast<std::uint32_t>(indices.size())};
      block.layers.push_back(layer_of(slab, at->second));
      indices.push_back(at->second);
    }
    if (indices.empty()) return -1;
    a.blocks.push_back(std::move(block));
    a.slab_layers.push_back(std::move(indices));
    a.leased.push_back(std::make_shared<LeasedBlock>(LeasedBlock{name, nullptr}));
    return table;
  };
  for (const ArchitectureBlock& block : architecture.blocks()) {
    std::vector<std::string> names;
    for (const std::size_t layer : block.layers) names.push_back(architecture.layers()[layer].name);
    a.table_index.push_back(add_block(block.name, names));
  }
  std::vector<std::string> outside;
  for (const ArchitectureLayer& layer : architecture.layers())
    if (!layer.block) outside.push_back(layer.name);
  a.outside = add_block("outside", outside);

  for (const LinearInfo& linear : layout.linears) {
    const RowView view = layout.locate(linear.name + ".weight");
    const std::string owner = view.tensor.substr(0, view.tensor.size() - std::string_view(".weight").size());
    const auto at = position.find(owner);
    if (at == position.end()) {
      a.places.emplace_back();
      continue;
    }
    const auto first = static_cast<std::int64_t>(view.first_row), rows = static_cast<std::int64_t>(view.rows);
    SlabPlace place{a.leased[static_cast<std::size_t>(at->second.first)], at->second.second, {{first, rows}}, view.whole()};
    if (view.swap_halves) place.rows = {{first + rows / 2, rows - rows / 2}, {first, rows / 2}};
    a.places.emplace_back(std::move(place));
  }
  return a;
}

class SlabStore final : public WeightStore {
 public:
  SlabStore(std::shared_ptr<const Slab> slab, TensorFiles rest, ModelLayout layout, Arrangement arrangement, const OpenOptions& options)
      : slab_(std::move(slab)),
        rest_(std::move(rest)),
        layout_(std::move(layout)),
        arrangement_(std::move(arrangement)),
        dtype_(options.dtype),
        backend_(open_backend(options.backend, options.threads, options.deterministic)),
        device_(backend_device(backend_) == "cuda" ? torch::Device(torch::kCUDA, 0) : torch::Device(torch::kCPU)),
        table_(arrangement_.blocks),
        reader_(slab_, arrangement_.slab_layers, options.verify, options.progress) {
    std::uint64_t float_bytes = 0;
    std::vector<FloatWeight> floats = load_floats(float_bytes);
    plan(options, float_bytes);
    open_session(options);
    linears_ = std::make_unique<SlabLinears>(layout_.linears, backend_, arrangement_.places, std::move(floats), options.compute, options.shadow);
  }

  Linears& linears() override { return *linears_; }
  torch::Tensor tensor(const std::string& name) override { return rest_.read(layout_.locate(name), dtype_).to(device()); }

  void begin(Pass pass, std::int64_t first_backward_block) override {
    // Streamed blocks below the first one that backward reaches are not visited again: the schedule ends earlier.
    std::uint32_t schedule = streaming::kForwardSchedule;
    if (pass == Pass::train && first_backward_block < static_cast<std::int64_t>(arrangement_.table_index.size())) {
      const std::uint32_t skipped = streamed_below(first_backward_block);
      schedule = skipped == 0 ? streaming::kTrainSchedule : streaming::kForwardSchedule + skipped;
    }
    session_->begin_step(schedule);
  }
  void end(bool abandoned) override { session_->end_step(abandoned); }

  std::unique_ptr<BlockTask::Hold> hold(std::int64_t block) override {
    const std::int64_t index = block < 0 ? arrangement_.outside : arrangement_.table_index[static_cast<std::size_t>(block)];
    if (index < 0) return std::make_unique<BlockTask::Hold>();
    return std::make_unique<LeaseHold>(*session_, *arrangement_.leased[static_cast<std::size_t>(index)], static_cast<std::uint32_t>(index),
                                       stream_of(device_));
  }

  torch::Device device() const override { return device_; }
  std::string backend_name() const override { return backend_->name; }
  std::string slab_id() const override { return slab_->id_sha256(); }
  sq_stream_stats stream_stats() const override { return session_->stats(); }
  sq_step_metrics last_step() const override {
    auto metrics = sized<sq_step_metrics>();
    sq_error e = make_error();
    check(backend_.telemetry().last_step(backend_.get(), session_->id(), &metrics, &e), e);
    return metrics;
  }

 private:
  struct LeaseHold final : BlockTask::Hold {
    LeaseHold(StreamSession& session, LeasedBlock& block, std::uint32_t index, sq_stream_handle stream)
        : lease(session, index, stream), owner(&block) {
      block.lease = &lease;
    }
    LeaseHold(const LeaseHold&) = delete;
    LeaseHold& operator=(const LeaseHold&) = delete;
    ~LeaseHold() override { owner->lease = nullptr; }
    Lease lease;
    LeasedBlock* owner;
  };

  std::vector<FloatWeight> load_floats(std::uint64_t& bytes) const {
    std::vector<FloatWeight> floats(layout_.linears.size());
    for (std::size_t i = 0; i < floats.size(); ++i) {
      if (arrangement_.places[i]) continue;
      const std::string& name = layout_.linears[i].name;
      floats[i].w = rest_.read(layout_.locate(name + ".weight"), dtype_).to(device());
      if (layout_.biased[i]) floats[i].bias = rest_.read(layout_.locate(name + ".bias"), dtype_).to(device());
      bytes += floats[i].w.nbytes() + (floats[i].bias.defined() ? floats[i].bias.nbytes() : 0);
    }
    return floats;
  }

  void plan(const OpenOptions& options, std::uint64_t float_bytes) {
    streaming::PlanRequest request;
    request.block_bytes = table_.extents();
    request.outside_bytes = float_bytes;
    if (arrangement_.outside >= 0) {
      request.outside_bytes += request.block_bytes.back();
      request.block_bytes.pop_back();
    }
    request.budget = options.budget;
    request.resident_blocks = static_cast<std::uint32_t>(options.resident_blocks);
    plan_ = streaming::make_plan(request);
  }

  void open_session(const OpenOptions& options) {
    std::vector<std::uint32_t> residents = plan_.residents;
    if (arrangement_.outside >= 0) residents.push_back(static_cast<std::uint32_t>(arrangement_.outside));
    table_.set_residents(residents);
    for (std::size_t skipped = 1; skipped <= plan_.streamed.size(); ++skipped) {
      streaming::Schedule cut = plan_.train;
      cut.name = fmt::format("train without {} first blocks", skipped);
      cut.visits.resize(cut.visits.size() - skipped);
      partial_.push_back(std::move(cut));
    }
    std::vector<sq_schedule> schedules = plan_.schedules();
    for (const streaming::Schedule& schedule : partial_) schedules.push_back(schedule.view());
    auto args = sized<sq_stream_open_args>();
    args.slot_count = plan_.slots;
    args.slot_bytes = plan_.slot_bytes;
    args.blocks = table_.descs().data();
    args.block_count = table_.size();
    args.schedules = schedules.data();
    args.schedule_count = static_cast<std::uint32_t>(schedules.size());
    args.read = read;
    args.read_user = this;
    args.budget_bytes = options.budget;
    args.poison_slots = options.poison_slots;
    args.keep_host_master = 1;
    session_ = std::make_unique<StreamSession>(backend_, args);
  }

  /// How many streamed blocks come before model block `block`.
  std::uint32_t streamed_below(std::int64_t block) const {
    std::uint32_t count = 0;
    for (std::int64_t i = 0; i < block; ++i) {
      const std::int64_t index = arrangement_.table_index[static_cast<std::size_t>(i)];
      if (index >= 0 && std::binary_search(plan_.streamed.begin(), plan_.streamed.end(), static_cast<std::uint32_t>(index))) ++count;
    }
    return count;
  }

  static sq_status read(void* user, std::uint32_t block, std::uint64_t offset, void* destination, std::uint64_t bytes, sq_error* error) {
    auto& self = *static_cast<SlabStore*>(user);
    return guarded(error, [&] {
      self.table_.read(block, offset, destination, bytes,
                       [&](std::uint32_t layer, std::uint32_t part, std::uint64_t at, void* to, std::uint64_t count) {
                         self.reader_.read(block, layer, part, at, to, count);
                       });
    });
  }

  std::shared_ptr<const Slab> slab_;
  TensorFiles rest_;
  ModelLayout layout_;
  Arrangement arrangement_;
  torch::Dtype dtype_;
  Context backend_;
  torch::Device device_;
  streaming::BlockTable table_;
  SlabReader reader_;
  streaming::Plan plan_;
  std::vector<streaming::Schedule> partial_;  ///< train schedules that stop before the first blocks
  std::unique_ptr<StreamSession> session_;
  std::unique_ptr<SlabLinears> linears_;
};

/// The file's tensors as the checkpoint had them: quantized layers stand for their weight and bias.
std::vector<TensorShape> original_shapes(const Slab& slab, const TensorFiles& companion) {
  std::vector<TensorShape> shapes = companion.shapes();
  for (std::size_t i = 0; i < slab.layer_count(); ++i) {
    const ManifestLayer& layer = slab.layer(i);
    shapes.push_back({layer.canonical_name + ".weight", {layer.orig_shape[0], layer.orig_shape[1]}});
    if (layer.bias_key) shapes.push_back({layer.canonical_name + ".bias", {layer.orig_shape[0]}});
  }
  return shapes;
}

void require_same_model(const Slab& slab, const ModelLayout& base, const std::string& base_file) {
  std::vector<LinearTopology> linears;
  for (const ArchitectureLayer& layer : base.architecture.layers()) linears.push_back({layer.name, layer.in, layer.out, layer.bias});
  const std::string signature = model_signature(linears);
  if (signature != slab.manifest().model_signature)
    throw Error(Code::MD_BASE,
                fmt::format("base checkpoint has signature {}, the slab was made from {}", signature, slab.manifest().model_signature),
                base_file);
}

/// A config given by hand wins over the companion's record.
std::optional<Architecture> recognise_slab(const std::vector<TensorShape>& shapes, const Companion& companion, const OpenOptions& options) {
  if (options.config || companion.architecture_json.empty()) return recognise(shapes, config_text(options, {}));
  return recognise_recorded(shapes, companion.architecture_json);
}

}  // namespace

OpenedModel open_slab(const OpenOptions& options) {
  if (options.dtype == torch::kFloat64)
    throw Error(Code::CFG_VALUE, "dtype f64 is for float checkpoints; a slab's activations are f32, bf16 or f16");
  auto slab = std::make_shared<const Slab>(Slab::open(options.source));
  const std::string file = slab->paths().slab.string();
  const Companion* companion = slab->companion();
  if (!companion && !options.base)
    throw Error(Code::MD_BASE, "the slab has no companion; name the checkpoint it was made from (--base) for norms and embeddings", file);

  std::optional<TensorFiles> rest;
  std::optional<ModelLayout> layout;
  if (options.base) {
    rest = TensorFiles::open_checkpoint(*options.base);
    layout = layout_of(recognise(rest->shapes(), config_text(options, rest->config_json())), rest->shapes(), options.base->string());
    require_same_model(*slab, *layout, options.base->string());
  } else {
    // The companion belongs to the slab and lives as long.
    rest = TensorFiles::of(std::shared_ptr<const SafetensorsFile>(slab, &companion->file));
    const std::vector<TensorShape> shapes = original_shapes(*slab, *rest);
    layout = layout_of(recognise_slab(shapes, *companion, options), shapes, file);
  }

  std::map<std::string, std::size_t> layers;
  for (std::size_t i = 0; i < slab->layer_count(); ++i) {
    const std::string& name = slab->layer(i).canonical_name;
    const ArchitectureLayer* known = layout->architecture.find_layer(name);
    if (!known)
      throw Error(Code::MD_LAYER, fmt::format("slab layer '{}' is not a linear layer of this model", printable(name)), file,
                  printable(name));
    const auto& shape = slab->layer(i).orig_shape;
    if (shape[0] != known->out || shape[1] != known->in)
      throw Error(
          Code::MD_LAYER,
          fmt::format("slab layer '{}' is [{}, {}], the model's is [{}, {}]", printable(name), shape[0], shape[1], known->out, known->in),
          file, printable(name));
    if (slab->layer(i).bias_key.has_value() != known->bias)
      throw Error(Code::MD_LAYER,
                  fmt::format("slab layer '{}' has {} bias, the model's has {}", printable(name), slab->layer(i).bias_key ? "a" : "no",
                              known->bias ? "one" : "none"),
                  file, printable(name));
    layers.emplace(name, i);
  }
  Arrangement arrangement = arrange(*slab, *layout, layers);
  OpenedModel opened{layout->config, layout->architecture, nullptr, layout->native};
  opened.store = std::make_unique<SlabStore>(std::move(slab), std::move(*rest), std::move(*layout), std::move(arrangement), options);
  return opened;
}

}  // namespace squareq::training
