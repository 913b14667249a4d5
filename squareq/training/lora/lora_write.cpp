#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "squareq/error.hpp"
#include "squareq/slab/digest.hpp"
#include "squareq/slab/writer.hpp"
#include "squareq/text.hpp"
#include "squareq/training/data/float_convert.hpp"
#include "squareq/training/lora/lora_file.hpp"

namespace squareq::training {

namespace {

/// An adapter under the name that the file will give it.
struct Entry {
  std::string module;
  double alpha = 0;
  std::uint64_t rank = 0, in = 0, out = 0;
  std::vector<float> down, up;
};

/// One layer's place in its native module.
struct Piece {
  const LoraLayer* layer;
  LoraPart part;
};

void check(const LoraLayer& layer, std::uint64_t out, std::uint64_t in) {
  const auto rows = static_cast<std::uint64_t>(layer.out), columns = static_cast<std::uint64_t>(layer.in);
  const auto rank = static_cast<std::uint64_t>(layer.rank);
  if (layer.rank <= 0 || rows != out || columns != in || layer.down.size() != rank * columns || layer.up.size() != rows * rank)
    throw Error(Code::LR_SHAPE,
                fmt::format("adapter of '{}' is [{}, {}] at rank {}, the layer is [{}, {}]", printable(layer.layer), layer.out, layer.in,
                            layer.rank, out, in),
                {}, printable(layer.layer));
  for (const std::vector<float>* matrix : {&layer.down, &layer.up})
    for (float x : *matrix)
      if (!std::isfinite(x))
        throw Error(Code::NUM_NONFINITE, fmt::format("adapter of '{}' holds {}; not written", printable(layer.layer), x), {},
                    printable(layer.layer));
}

/// Row of the native module for row r of a part, and back: swapping halves is its own inverse.
std::uint64_t native_row(const LoraPart& part, std::uint64_t r) {
  if (!part.swap_halves) return part.first_row + r;
  return part.first_row + (r + part.rows / 2) % part.rows;
}

/// One layer's own adapter needs no fusing; several become [sum of ranks] with a block-diagonal up. The file has one alpha for all:
/// alpha' / rank' is the first part's scaling, and parts that scale otherwise carry the ratio in their up rows.
Entry fuse(const LoraModule& module, const std::vector<Piece>& pieces) {
  const LoraLayer& first = *pieces.front().layer;
  Entry e{{}, 0, 0, module.in, module.out, {}, {}};
  for (const Piece& piece : pieces) e.rank += static_cast<std::uint64_t>(piece.layer->rank);
  e.alpha = first.alpha * static_cast<double>(e.rank) / static_cast<double>(first.rank);
  e.up.assign(module.out * e.rank, 0.0f);
  std::uint64_t column = 0;
  for (const auto& [layer, part] : pieces) {
    const auto rank = static_cast<std::uint64_t>(layer->rank);
    const auto ratio = static_cast<float>(layer->scaling() / first.scaling());
    e.down.insert(e.down.end(), layer->down.begin(), layer->down.end());
    for (std::uint64_t r = 0; r < part.rows; ++r)
      for (std::uint64_t c = 0; c < rank; ++c) e.up[native_row(part, r) * e.rank + column + c] = ratio * layer->up[r * rank + c];
    column += rank;
  }
  return e;
}

std::vector<Entry> native_entries(const std::vector<LoraLayer>& layers, const LoraNames& names, LoraFormat format) {
  std::map<const LoraModule*, std::vector<Piece>> split;
  std::map<const LoraModule*, const LoraLayer*> whole;
  for (const LoraLayer& layer : layers) {
    if (const LoraModule* module = names.by_layer(layer.layer)) {
      for (const LoraPart& part : module->parts)
        if (part.layer == layer.layer) {
          check(layer, part.rows, module->in);
          split[module].push_back({&layer, part});
        }
    } else if (const LoraModule* native = names.by_native(layer.layer)) {
      check(layer, native->out, native->in);
      whole[native] = &layer;
    } else {
      throw Error(Code::LR_KEY, fmt::format("the model has no layer '{}'", printable(layer.layer)), {}, printable(layer.layer));
    }
  }
  std::vector<Entry> entries;
  for (const LoraModule& module : names.modules()) {
    const auto as_whole = whole.find(&module);
    const auto as_parts = split.find(&module);
    if (as_whole != whole.end() && as_parts != split.end())
      throw Error(Code::LR_KEY, fmt::format("module '{}' has an adapter of its own and one of its layer '{}'", module.native,
                                            as_parts->second.front().layer->layer));
    if (as_whole != whole.end()) {
      const LoraLayer& l = *as_whole->second;
      entries.push_back({{}, l.alpha, static_cast<std::uint64_t>(l.rank), module.in, module.out, l.down, l.up});
    } else if (as_parts != split.end()) {
      std::sort(as_parts->second.begin(), as_parts->second.end(),
                [](const Piece& a, const Piece& b) { return a.part.first_row < b.part.first_row; });
      entries.push_back(fuse(module, as_parts->second));
    } else {
      continue;
    }
    entries.back().module = format == LoraFormat::kohya ? module.kohya : "diffusion_model." + module.native;
  }
  return entries;
}

std::vector<Entry> diffusers_entries(const std::vector<LoraLayer>& layers, const LoraNames& names) {
  std::vector<Entry> entries;
  for (const LoraLayer& layer : layers) {
    const auto rank = static_cast<std::uint64_t>(layer.rank);
    if (const LoraModule* module = names.by_layer(layer.layer)) {
      for (const LoraPart& part : module->parts)
        if (part.layer == layer.layer) check(layer, part.rows, module->in);
      entries.push_back(
          {"transformer." + layer.layer, layer.alpha, rank, module->in, static_cast<std::uint64_t>(layer.out), layer.down, layer.up});
    } else if (const LoraModule* native = names.by_native(layer.layer)) {
      check(layer, native->out, native->in);
      for (const LoraPart& part : native->parts) {
        Entry e{"transformer." + part.layer, layer.alpha, rank, native->in, part.rows, layer.down, {}};
        for (std::uint64_t r = 0; r < part.rows; ++r) {
          const auto row = layer.up.begin() + static_cast<std::ptrdiff_t>(native_row(part, r) * rank);
          e.up.insert(e.up.end(), row, row + static_cast<std::ptrdiff_t>(rank));
        }
        entries.push_back(std::move(e));
      }
    } else {
      throw Error(Code::LR_KEY, fmt::format("the model has no layer '{}'", printable(layer.layer)), {}, printable(layer.layer));
    }
  }
  return entries;
}

/// diffusers hands these fields to peft.LoraConfig as they are: no field may be unknown there.
std::string peft_metadata(const std::vector<Entry>& entries) {
  nlohmann::json config;  // sorts its keys, as diffusers does
  const std::size_t prefix = std::string_view("transformer.").size();
  const Entry& first = entries.front();
  nlohmann::json targets = nlohmann::json::array(), ranks = nlohmann::json::object(), alphas = nlohmann::json::object();
  for (const Entry& e : entries) {
    const std::string layer = e.module.substr(prefix);
    targets.push_back(layer);
    if (e.rank != first.rank) ranks[layer] = e.rank;
    if (e.alpha != first.alpha) alphas[layer] = e.alpha;
  }
  config["transformer.r"] = first.rank;
  config["transformer.lora_alpha"] = first.alpha;
  config["transformer.target_modules"] = targets;
  config["transformer.rank_pattern"] = ranks;
  config["transformer.alpha_pattern"] = alphas;
  config["transformer.bias"] = "none";
  config["transformer.lora_dropout"] = 0.0;
  config["transformer.use_rslora"] = false;
  config["transformer.use_dora"] = false;
  return config.dump(2);
}

std::string_view modelspec_architecture(const LoraNames& names) {
  if (names.family() == "flux1") return "flux-1-dev/lora";
  if (names.family() == "flux2") return "flux-2-dev/lora";
  if (names.family() == "sdxl") return "stable-diffusion-xl-v1-base/lora";
  if (names.id() == "sd3-medium") return "stable-diffusion-3-m/lora";
  if (names.id() == "sd3.5-medium") return "stable-diffusion-3-5-medium/lora";
  return "stable-diffusion-3-5-large/lora";
}

std::map<std::string, std::string> kohya_metadata(const std::vector<LoraLayer>& layers, const LoraNames& names) {
  const LoraLayer& first = layers.front();
  const bool mixed_rank = std::any_of(layers.begin(), layers.end(), [&](const LoraLayer& l) { return l.rank != first.rank; });
  const bool mixed_alpha = std::any_of(layers.begin(), layers.end(), [&](const LoraLayer& l) { return l.alpha != first.alpha; });
  const std::string& family = names.family();
  return {{"ss_v2", "False"},
          {"ss_base_model_version", family == "sdxl" ? "sdxl_base_v1-0" : family},
          {"ss_network_module", family == "sdxl"    ? "networks.lora"
                                : family == "sd3"   ? "networks.lora_sd3"
                                : family == "flux2" ? "networks.lora_flux_2"
                                                    : "networks.lora_flux"},
          {"ss_network_dim", mixed_rank ? "Dynamic" : std::to_string(first.rank)},
          {"ss_network_alpha", mixed_alpha ? "Dynamic" : fmt::format("{}", first.alpha)},
          {"ss_network_args", "{}"}};
}

/// A file in memory: what the hashes are taken of, and what is then written.
struct Image {
  std::vector<TensorSpec> specs;
  std::map<std::string, std::string> data;  ///< bytes by tensor name
};

void put(Image& image, const std::string& name, FileDtype dtype, std::vector<std::uint64_t> shape, const float* values, std::size_t count) {
  std::string& bytes = image.data[name];
  bytes.resize(count * (dtype == FileDtype::F32 ? 4 : 2));
  for (std::size_t i = 0; i < count; ++i) {
    if (dtype == FileDtype::F32) {
      std::memcpy(bytes.data() + 4 * i, values + i, 4);
    } else {
      const std::uint16_t half = dtype == FileDtype::BF16 ? bf16_from_float(values[i]) : f16_from_float(values[i]);
      if ((half & (dtype == FileDtype::BF16 ? 0x7F80 : 0x7C00)) == (dtype == FileDtype::BF16 ? 0x7F80 : 0x7C00))
        throw Error(Code::NUM_NONFINITE,
                    fmt::format("{} of '{}' does not fit {}; write the adapter in F32", values[i], name, dtype_name(dtype)), {}, {}, name);
      std::memcpy(bytes.data() + 2 * i, &half, 2);
    }
  }
  image.specs.push_back({name, dtype, std::move(shape)});
}

Metadata as_metadata(const std::map<std::string, std::string>& map) { return {map.begin(), map.end()}; }

/// sd-scripts' two hashes: of the tensor bytes, and of 64 KiB at 1 MiB of the file as it would be with the ss_ entries alone.
void add_hashes(std::map<std::string, std::string>& metadata, const Image& image) {
  std::map<std::string, std::string> training;
  for (const auto& [key, value] : metadata)
    if (key.starts_with("ss_")) training.emplace(key, value);
  const FileLayout layout = make_layout(image.specs, as_metadata(training));
  Sha256 model, legacy;
  std::uint64_t position = layout.prefix.size();
  constexpr std::uint64_t begin = 0x100000, end = begin + 0x10000;
  const auto window = [&](std::string_view bytes, std::uint64_t at) {
    const std::uint64_t low = std::max(at, begin), high = std::min(at + bytes.size(), end);
    if (low < high) legacy.update(bytes.data() + (low - at), high - low);
  };
  window(layout.prefix, 0);
  for (const TensorRecord& tensor : layout.header.tensors) {
    const std::string& bytes = image.data.at(tensor.name);
    model.update(bytes.data(), bytes.size());
    window(bytes, position);
    position += bytes.size();
  }
  metadata["sshs_model_hash"] = model.hex();
  metadata["sshs_legacy_hash"] = legacy.hex().substr(0, 8);
}

}  // namespace

LoraFormat parse_lora_format(std::string_view name) {
  if (name == "kohya") return LoraFormat::kohya;
  if (name == "peft") return LoraFormat::peft;
  if (name == "comfy") return LoraFormat::comfy;
  throw Error(Code::CFG_VALUE, fmt::format("LoRA format '{}' is none of kohya, peft, comfy", printable(name)));
}

void write_lora(const std::filesystem::path& path, const std::vector<LoraLayer>& layers, const LoraNames& names,
                const LoraWriteOptions& options) {
  if (layers.empty()) throw Error(Code::LR_KEY, "no adapter to write", printable_path(path));
  if (options.dtype != FileDtype::F32 && options.dtype != FileDtype::BF16 && options.dtype != FileDtype::F16)
    throw Error(Code::CALL_VALUE, fmt::format("adapters are written as F32, BF16 or F16, not {}", dtype_name(options.dtype)),
                printable_path(path));
  const bool peft = options.format == LoraFormat::peft, kohya = options.format == LoraFormat::kohya;
  const std::vector<Entry> entries = peft ? diffusers_entries(layers, names) : native_entries(layers, names, options.format);

  Image image;
  for (const Entry& e : entries) {
    put(image, e.module + (kohya ? ".lora_down.weight" : ".lora_A.weight"), options.dtype, {e.rank, e.in}, e.down.data(), e.down.size());
    put(image, e.module + (kohya ? ".lora_up.weight" : ".lora_B.weight"), options.dtype, {e.out, e.rank}, e.up.data(), e.up.size());
    const auto alpha = static_cast<float>(e.alpha);
    if (!peft) put(image, e.module + ".alpha", FileDtype::F32, {}, &alpha, 1);
  }

  std::map<std::string, std::string> metadata{{"format", "pt"}};
  if (peft) {
    metadata["lora_adapter_metadata"] = peft_metadata(entries);
  } else {
    metadata.merge(kohya_metadata(layers, names));
    metadata["modelspec.sai_model_spec"] = "1.0.1";
    metadata["modelspec.architecture"] = modelspec_architecture(names);
    metadata["modelspec.implementation"] = "https://github.com/black-forest-labs/flux";
    if (names.family() == "flux2") metadata["modelspec.implementation"] = "https://github.com/black-forest-labs/flux2";
    if (names.family() == "sdxl" || names.family() == "sd3")
      metadata["modelspec.implementation"] = "https://github.com/Stability-AI/generative-models";
    metadata["modelspec.title"] = options.title.empty() ? path.stem().string() : options.title;
    if (!options.resolution.empty()) metadata["modelspec.resolution"] = options.resolution;
  }
  for (const auto& [key, value] : options.metadata) metadata[key] = value;
  if (!peft) add_hashes(metadata, image);

  SafetensorsWriter writer(path, image.specs, as_metadata(metadata));
  for (const auto& [name, bytes] : image.data) writer.write(name, 0, bytes.data(), bytes.size());
  writer.commit();
}

}  // namespace squareq::training
