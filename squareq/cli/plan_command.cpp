// squareq plan: what a model needs on a card, what streaming it costs, and what fits. Loads nothing.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <numeric>

#include "squareq/architecture/architecture.hpp"
#include "squareq/builder/checkpoint.hpp"
#include "squareq/cli/command.hpp"
#include "squareq/slab/slab.hpp"
#include "squareq/streaming/bytes.hpp"
#include "squareq/streaming/cost.hpp"
#include "squareq/streaming/extent.hpp"
#include "squareq/streaming/plan.hpp"
#include "squareq/text.hpp"

namespace squareq::cli {
namespace {

using Json = nlohmann::ordered_json;
using streaming::bytes_text;

constexpr std::uint64_t kGiB = 1ull << 30;
constexpr std::uint64_t kContextBytes = 3 * kGiB / 4;  // CUDA context and driver: outside every bound, so a card offers this much less
constexpr std::array<std::uint64_t, 6> kCards{8, 10, 12, 16, 24, 32};
constexpr std::uint64_t kPackK = 64;

struct Options {
  std::string model, base, budget, vram;
  std::uint32_t resident_blocks = 0;
  double link = 25;      // GB/s: PCIe 4 x16, page-locked
  double tflops = 46;    // 0.65 of the 71 TFLOP/s (dense bf16) of an RTX 3090
  std::uint64_t resolution = 1024, rank = 16, batch = 1, text_tokens = 0;
  std::string dtype = "bf16";
};

/// The tensors of a slab and the rest of the model as the checkpoint had them.
std::vector<TensorShape> slab_shapes(const Slab& slab) {
  std::vector<TensorShape> tensors;
  for (const ManifestLayer& layer : slab.manifest().layers) {
    tensors.push_back({layer.canonical_name + ".weight", {layer.orig_shape[0], layer.orig_shape[1]}});
    if (layer.bias_key) tensors.push_back({layer.canonical_name + ".bias", {layer.orig_shape[0]}});
  }
  for (const TensorRecord& t : slab.companion()->file.header().tensors) tensors.push_back({t.name, t.shape});
  return tensors;
}

Architecture of_checkpoint(const std::string& path) {
  const Checkpoint checkpoint = Checkpoint::open(path);
  const auto found = recognise(checkpoint.shapes(), checkpoint.config_json());
  if (!found) throw Error(Code::MD_ARCH, "the tensors are those of no known architecture", printable(path));
  return *found;
}

/// A published model's id, a checkpoint, or a slab (with its companion, or with the checkpoint named by --base).
Architecture find_architecture(const Options& options) {
  const std::vector<std::string> ids = architecture_ids();
  if (std::find(ids.begin(), ids.end(), options.model) != ids.end()) return published_architecture(options.model);
  const SlabPaths paths = SlabPaths::resolve(options.model);
  std::error_code ignored;
  if (!std::filesystem::exists(paths.manifest, ignored)) {
    if (std::filesystem::exists(options.model, ignored)) return of_checkpoint(options.model);
    throw Error(Code::IO_MISSING, fmt::format("'{}' is neither a file nor a known model ({})", printable(options.model), fmt::join(ids, ", ")), printable(options.model));
  }
  const Slab slab = Slab::open(options.model);
  if (!options.base.empty()) return of_checkpoint(options.base);
  if (!slab.companion())
    throw Error(Code::MD_BASE, "the slab has no companion; name the checkpoint it was made from (--base) to know its blocks", printable_path(paths.slab));
  return recognise_recorded(slab_shapes(slab), slab.companion()->architecture_json);
}

streaming::Layer quantized(const ArchitectureLayer& layer) {
  const auto out = static_cast<std::int64_t>(layer.out), in = static_cast<std::int64_t>(layer.in);
  const std::int64_t padded = static_cast<std::int64_t>((layer.in + kPackK - 1) / kPackK * kPackK);
  streaming::Layer made{layer.name, "bp8_v2", out, in, {{"qweight", SQ_I8, {out, padded}}, {"scale", SQ_F32, {out}}, {"zero_point", SQ_F32, {out}}}};
  if (layer.bias) made.parts.push_back({"bias", SQ_F32, {out}});
  return made;
}

/// The blocks' extents, then that of the linears outside blocks: the layout of a training run.
std::vector<std::uint64_t> extents(const Architecture& model) {
  std::vector<streaming::Block> blocks;
  for (const ArchitectureBlock& block : model.blocks()) {
    blocks.push_back({block.name, {}});
    for (const std::size_t i : block.layers) blocks.back().layers.push_back(quantized(model.layers()[i]));
  }
  blocks.push_back({"outside", {}});
  for (const ArchitectureLayer& layer : model.layers())
    if (!layer.block) blocks.back().layers.push_back(quantized(layer));
  return streaming::BlockTable(std::move(blocks)).extents();
}

std::uint64_t text_tokens(const Options& options, const std::string& family) {
  if (options.text_tokens) return options.text_tokens;
  return family == "sdxl" ? 77 : family == "sd3" ? 333 : 512;
}

/// The same model under diffusers' names.
Architecture diffusers_twin(const Architecture& model) {
  const auto twin = recognise(model.diffusers_tensors());
  if (!twin) throw Error(Code::INTERNAL, "the architecture's diffusers names are not recognised");
  return *twin;
}

/// Cost of every block, one sample. A UNet's levels halve the picture's side where the channels double.
std::vector<streaming::BlockCost> block_costs(const Architecture& twin, const Options& options) {
  std::vector<streaming::BlockCost> costs;
  for (const ArchitectureBlock& block : twin.blocks()) {
    std::vector<streaming::CostLayer> layers;
    auto width = static_cast<std::uint64_t>(twin.config().hidden);
    for (const std::size_t i : block.layers) {
      const ArchitectureLayer& layer = twin.layers()[i];
      layers.push_back({layer.name, layer.out, layer.in});
      if (block.kind == "transformer" && layer.name.ends_with(".attn1.to_q")) width = layer.out;
    }
    std::uint64_t side = options.resolution / 16;
    if (block.kind == "transformer") side = options.resolution / 8 * static_cast<std::uint64_t>(twin.config().hidden) / width;
    costs.push_back(streaming::block_cost(layers, block.kind, width, {side * side, text_tokens(options, twin.family())}));
  }
  return costs;
}

/// FP32 bytes of each block's adapters on the default targets: every block linear under its diffusers name but those that make shift, scale and gate.
std::vector<std::uint64_t> adapter_bytes(const Architecture& twin, std::uint64_t rank) {
  std::vector<std::uint64_t> of_block;
  for (const ArchitectureBlock& block : twin.blocks()) {
    std::uint64_t parameters = 0;
    for (const std::size_t i : block.layers) {
      const ArchitectureLayer& layer = twin.layers()[i];
      if (streaming::sees(layer.name, block.kind) != streaming::Sees::vector) parameters += rank * (layer.out + layer.in);
    }
    of_block.push_back(parameters * sizeof(float));
  }
  return of_block;
}

/// The most that block inputs and adapter gradients take together: backward goes from the last block to the first, lets go of a block's input and
/// leaves its adapters' gradients.
std::uint64_t most_inputs_and_gradients(const std::vector<std::uint64_t>& inputs, const std::vector<std::uint64_t>& gradients) {
  std::uint64_t left = std::accumulate(inputs.begin(), inputs.end(), std::uint64_t{0}), made = 0, most = 0;
  for (std::size_t b = inputs.size(); b-- > 0;) {
    made += gradients[b];
    most = std::max(most, left + made);
    left -= inputs[b];
  }
  return most;
}

/// Tensors that are no quantized linear: norms, embeddings, convolutions.
std::uint64_t rest_bytes(const Architecture& model, std::uint64_t element) {
  std::uint64_t elements = 0;
  for (const TensorShape& tensor : model.tensors()) {
    const std::string_view name = tensor.name;
    if (model.is_linear(name.substr(0, name.rfind('.')))) continue;
    std::uint64_t count = 1;
    for (const std::uint64_t dimension : tensor.shape) count *= dimension;
    elements += count;
  }
  return elements * element;
}

streaming::PlanRequest make_request(const Architecture& model, const Options& options) {
  const std::uint64_t element = options.dtype == "f32" ? 4 : 2;
  streaming::PlanRequest request;
  request.block_bytes = extents(model);
  request.outside_bytes = request.block_bytes.back();
  request.block_bytes.pop_back();
  const Architecture twin = diffusers_twin(model);
  const std::vector<streaming::BlockCost> costs = block_costs(twin, options);
  std::vector<std::uint64_t> inputs;
  std::uint64_t working = 0;
  streaming::Rates rates;
  rates.link_bytes_per_second = options.link * 1e9;
  for (const streaming::BlockCost& cost : costs) {
    inputs.push_back(options.batch * cost.input_elements * element);
    working = std::max(working, cost.working_elements);
    rates.forward_seconds.push_back(static_cast<double>(options.batch) * cost.forward_flops() / (options.tflops * 1e12));
    rates.backward_seconds.push_back(static_cast<double>(options.batch) * cost.backward_flops() / (options.tflops * 1e12));
  }
  request.rates = std::move(rates);
  const std::vector<std::uint64_t> adapters = adapter_bytes(twin, options.rank);
  // A recomputed block holds its values and, as its backward goes, gradients of most of them: 1.78 times its values in FLUX.1-dev's steps of 1536 and
  // 4608 tokens (bench/whole_step).
  request.others = {{"unquantized tensors", rest_bytes(model, element)},
                    {"adapters and their two moments", 3 * std::accumulate(adapters.begin(), adapters.end(), std::uint64_t{0})},
                    {"block inputs and adapter gradients", most_inputs_and_gradients(inputs, adapters)},
                    {"one block's recomputation", options.batch * working * element * 9 / 5}};
  if (!options.budget.empty()) request.budget = streaming::parse_bytes(options.budget, "--budget");
  if (!options.vram.empty()) request.vram = streaming::parse_bytes(options.vram, "--vram");
  request.resident_blocks = options.resident_blocks;
  return request;
}

Json pass_json(const streaming::PassTraffic& traffic, const streaming::Prediction& time) {
  return {{"loads", traffic.loads}, {"bytes", traffic.bytes}, {"compute_seconds", time.compute_seconds}, {"transfer_seconds", time.transfer_seconds},
          {"exposed_seconds", time.exposed_seconds}, {"pass_seconds", time.pass_seconds}};
}

Json plan_json(const streaming::Plan& plan) {
  return {{"slots", plan.slots}, {"slot_bytes", plan.slot_bytes}, {"residents", plan.residents}, {"streamed", plan.streamed}, {"resident_bytes", plan.resident_bytes},
          {"outside_bytes", plan.outside_bytes}, {"weight_bytes", plan.weight_bytes()}, {"other_bytes", plan.other_bytes}, {"device_bytes", plan.device_bytes()},
          {"host_bytes", plan.host_bytes}, {"train_step", pass_json(plan.train_traffic, *plan.train_time)},
          {"forward_pass", pass_json(plan.forward_traffic, *plan.forward_time)}};
}

struct Card {
  std::uint64_t gib = 0;
  std::optional<streaming::Plan> plan;
  std::uint64_t needed = 0;  // bytes of the smallest plan, other consumers included
};

std::vector<Card> cards(streaming::PlanRequest request) {
  request.budget = 0;
  request.resident_blocks = 0;
  std::uint64_t needed = streaming::minimum_weight_bytes(request);
  for (const streaming::Consumer& consumer : request.others) needed += consumer.bytes;
  std::vector<Card> list;
  for (const std::uint64_t gib : kCards) {
    request.vram = gib * kGiB - kContextBytes;
    list.push_back({gib, std::nullopt, needed});
    if (needed <= request.vram) list.back().plan = streaming::make_plan(request);
  }
  return list;
}

void tell_pass(const char* name, const streaming::PassTraffic& traffic, const streaming::Prediction& time) {
  fmt::print("{:<14} {:>4} loads, {:>10}  {:>7.3f} s = {:.3f} s compute + {:.3f} s waiting for blocks\n", name, traffic.loads, bytes_text(traffic.bytes),
             time.pass_seconds, time.compute_seconds, time.exposed_seconds);
}

void tell(const Architecture& model, const Options& options, const streaming::PlanRequest& request, const streaming::Plan& plan) {
  fmt::print("model          {}, {} blocks, {} linears\n", printable(model.id()), model.blocks().size(), model.layers().size());
  fmt::print("assumed        {0} x {0} pixels, batch {1}, {2} text tokens, rank {3}, {4}, link {5} GB/s, {6} TFLOP/s reached\n\n", options.resolution, options.batch,
             text_tokens(options, model.family()), options.rank, options.dtype, options.link, options.tflops);
  fmt::print("{:<36} {:>16} {:>11}\n", "on the device", "bytes", "");
  const auto row = [](const std::string& name, std::uint64_t bytes) { fmt::print("{:<36} {:>16} {:>11}\n", name, bytes, bytes_text(bytes)); };
  row(fmt::format("{} slots for {} streamed blocks", plan.slots, plan.streamed.size()), plan.slot_total());
  row(fmt::format("{} resident blocks", plan.residents.size()), plan.resident_bytes);
  row("linears outside blocks", plan.outside_bytes);
  row("weights (bounded by --budget)", plan.weight_bytes());
  for (const streaming::Consumer& consumer : request.others) row(consumer.name, consumer.bytes);
  row("all but the CUDA context (--vram)", plan.device_bytes());
  row("host memory for streamed blocks", plan.host_bytes);
  fmt::print("\n");
  tell_pass("training step", plan.train_traffic, *plan.train_time);
  tell_pass("forward pass", plan.forward_traffic, *plan.forward_time);
  fmt::print("\n{:<8} {:>6} {:>10} {:>12} {:>14} {:>9} {:>9}   (training; {} kept for the CUDA context)\n", "card", "slots", "residents", "device", "moved/step", "s/step",
             "waiting", bytes_text(kContextBytes));
  for (const Card& card : cards(request)) {
    const std::string name = fmt::format("{} GiB", card.gib);
    if (!card.plan) {
      fmt::print("{:<8} does not fit: needs {}\n", name, bytes_text(card.needed));
      continue;
    }
    const streaming::Plan& p = *card.plan;
    fmt::print("{:<8} {:>6} {:>10} {:>12} {:>14} {:>9.3f} {:>9.3f}\n", name, p.slots, p.residents.size(), bytes_text(p.device_bytes()), bytes_text(p.train_traffic.bytes),
               p.train_time->pass_seconds, p.train_time->exposed_seconds);
  }
}

Json answer(const Architecture& model, const Options& options, const streaming::PlanRequest& request, const streaming::Plan& plan) {
  Json out;
  out["model"] = printable(options.model, 1024);
  out["architecture"] = printable(model.id());
  out["blocks"] = model.blocks().size();
  out["linears"] = model.layers().size();
  out["assumed"] = {{"resolution", options.resolution}, {"batch", options.batch}, {"text_tokens", text_tokens(options, model.family())}, {"rank", options.rank},
                    {"dtype", options.dtype}, {"link_gb_per_second", options.link}, {"tflops", options.tflops}};
  out["consumers"] = {{{"name", "slots"}, {"bytes", plan.slot_total()}}, {{"name", "resident blocks"}, {"bytes", plan.resident_bytes}},
                      {{"name", "linears outside blocks"}, {"bytes", plan.outside_bytes}}};
  for (const streaming::Consumer& consumer : request.others) out["consumers"].push_back({{"name", consumer.name}, {"bytes", consumer.bytes}});
  out["minimum_weight_bytes"] = streaming::minimum_weight_bytes(request);
  out["plan"] = plan_json(plan);
  out["cards"] = Json::array();
  for (const Card& card : cards(request))
    out["cards"].push_back({{"gib", card.gib}, {"fits", card.plan.has_value()}, {"minimum_bytes", card.needed}, {"plan", card.plan ? plan_json(*card.plan) : Json(nullptr)}});
  return out;
}

}  // namespace

void add_plan_command(CLI::App& app, const Common& common, int& status) {
  CLI::App* command = app.add_subcommand("plan", "What a model needs on a card, what streaming it costs, and what fits");
  const auto options = std::make_shared<Options>();
  command->add_option("--model", options->model, "a known model's name, a checkpoint, or a slab")->required();
  command->add_option("--base", options->base, "the checkpoint that a slab without companion was made from");
  command->add_option("--budget", options->budget, "bound on weight bytes on the device: slots, residents, linears outside blocks (8GiB, 512MiB, 8GB)");
  command->add_option("--vram", options->vram, "bound on everything on the device but the CUDA context");
  command->add_option("--resident-blocks", options->resident_blocks, "slots in all, each of the largest block's size (default: chosen from the bounds)");
  command->add_option("--link", options->link, "GB/s from page-locked host memory to the device")->check(CLI::PositiveNumber)->capture_default_str();
  command->add_option("--tflops", options->tflops, "TFLOP/s that matrix products reach, about 0.65 of the data sheet's dense peak")->check(CLI::PositiveNumber)->capture_default_str();
  command->add_option("--resolution", options->resolution, "pixels on each side")->check(CLI::Range(64, 8192))->capture_default_str();
  command->add_option("--text-tokens", options->text_tokens, "tokens of the prompt (default: the model's usual number)")->check(CLI::Range(1, 65536));
  command->add_option("--batch", options->batch, "samples per step")->check(CLI::Range(1, 1024))->capture_default_str();
  command->add_option("--rank", options->rank, "LoRA rank, on the default targets: attention and MLP linears of the blocks")->check(CLI::Range(1, 4096))->capture_default_str();
  command->add_option("--dtype", options->dtype, "of activations")->check(CLI::IsMember({"bf16", "f32"}))->capture_default_str();
  command->callback([options, &common, &status] {
    const Architecture model = find_architecture(*options);
    const streaming::PlanRequest request = make_request(model, *options);
    const streaming::Plan plan = streaming::make_plan(request);
    if (common.json) fmt::print("{}\n", answer(model, *options, request, plan).dump(2));
    else tell(model, *options, request, plan);
    status = 0;
  });
}

}  // namespace squareq::cli
