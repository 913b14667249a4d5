#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "squareq/error.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/tensor.hpp"
#include "squareq/text.hpp"
#include "squareq/training/data/tensor_reader.hpp"
#include "squareq/training/lora/lora_file.hpp"
#include "squareq/training/trainer/strict_json.hpp"

namespace squareq::training {

namespace {

enum class Role { down, up, alpha };

constexpr std::pair<std::string_view, Role> suffixes[] = {
    {".lora_down.weight", Role::down}, {".lora_up.weight", Role::up},          {".lora_A.weight", Role::down},
    {".lora_B.weight", Role::up},      {".lora_A.default.weight", Role::down}, {".lora_B.default.weight", Role::up},
    {".lora.down.weight", Role::down}, {".lora.up.weight", Role::up},          {".alpha", Role::alpha},
};

/// What one module name of the file stands for in this model.
struct Target {
  const LoraModule* module = nullptr;
  const LoraPart* part = nullptr;  ///< set: a diffusers layer; null: the whole native module
};

std::optional<Target> resolve(std::string_view name, const LoraNames& names) {
  const auto layer = [&](std::string_view diffusers) -> std::optional<Target> {
    const LoraModule* module = names.by_layer(diffusers);
    if (!module) return std::nullopt;
    for (const LoraPart& part : module->parts)
      if (part.layer == diffusers) return Target{module, &part};
    return std::nullopt;
  };
  if (const LoraModule* module = names.by_kohya(name)) return Target{module, nullptr};
  for (std::string_view prefix : {"lora_unet_", "lora_transformer_", "lycoris_"})
    if (name.starts_with(prefix)) return layer(names.layer_by_underscores(name.substr(prefix.size())));
  for (std::string_view prefix : {"diffusion_model.", "model.diffusion_model."})
    if (name.starts_with(prefix)) {
      const LoraModule* module = names.by_native(name.substr(prefix.size()));
      return module ? std::optional(Target{module, nullptr}) : std::nullopt;
    }
  for (std::string_view prefix : {"transformer.", "unet.", "base_model.model."})
    if (name.starts_with(prefix)) return layer(name.substr(prefix.size()));
  return layer(name);
}

/// The tensors of one module name.
struct Group {
  const TensorRecord* tensors[3] = {};  ///< by Role
  const TensorRecord* operator[](Role role) const { return tensors[static_cast<int>(role)]; }
};

/// alpha from the header's lora_adapter_metadata (a LoraConfig, keys with or without the component's prefix).
class AdapterMetadata {
 public:
  AdapterMetadata(const std::string& text, const std::string& file) {
    const auto root = parse_strict(text, file + ": lora_adapter_metadata", Code::LR_KEY);
    if (!root.is_object()) throw Error(Code::LR_KEY, file + ": lora_adapter_metadata is no object", file);
    for (const auto& [key, value] : root.items()) {
      const std::string field = key.substr(key.starts_with("transformer.") ? 12 : key.starts_with("unet.") ? 5 : 0);
      if (field == "lora_alpha" && value.is_number()) alpha_ = value.get<double>();
      if (field == "use_rslora" && value.is_boolean()) rslora_ = value.get<bool>();
      if (field == "use_dora" && value.is_boolean() && value.get<bool>())
        throw Error(Code::LR_KEY, file + ": the adapter uses DoRA, which is not supported", file);
      if (field == "alpha_pattern" && value.is_object())
        for (const auto& [pattern, number] : value.items())
          if (number.is_number()) patterns_.emplace_back(pattern.substr(pattern.starts_with("^") ? 1 : 0), number.get<double>());
    }
  }

  /// The alpha that makes alpha / rank the branch's scaling; none where the header does not say.
  std::optional<double> alpha(const std::string& layer, std::int64_t rank) const {
    std::optional<double> alpha = alpha_;
    for (const auto& [pattern, value] : patterns_)
      if (layer == pattern || layer.ends_with("." + pattern)) alpha = value;
    if (alpha && rslora_) *alpha *= std::sqrt(static_cast<double>(rank));
    return alpha;
  }

 private:
  std::optional<double> alpha_;
  bool rslora_ = false;
  std::vector<std::pair<std::string, double>> patterns_;
};

/// The rank that each part of the module has within a fused adapter whose up matrix is block-diagonal (column ranges in the parts'
/// order, as sd-scripts and we write them); empty where a column reaches two parts or the order differs. Columns that reach nothing
/// (an untrained up matrix) say nothing: they are taken for an equal split where one is possible.
std::vector<std::int64_t> split_ranks(const LoraLayer& fused, const LoraModule& module) {
  constexpr std::size_t none = SIZE_MAX;
  const auto rank = static_cast<std::size_t>(fused.rank);
  std::vector<std::size_t> owner(rank, none);
  for (std::size_t p = 0; p < module.parts.size(); ++p)
    for (std::uint64_t row = module.parts[p].first_row; row < module.parts[p].first_row + module.parts[p].rows; ++row)
      for (std::size_t c = 0; c < rank; ++c) {
        if (fused.up[row * rank + c] == 0.0f) continue;
        if (owner[c] != none && owner[c] != p) return {};
        owner[c] = p;
      }
  const std::size_t parts = module.parts.size(), equal = rank / parts;
  bool equal_split = rank % parts == 0;
  for (std::size_t c = 0; c < rank && equal_split; ++c) equal_split = owner[c] == none || owner[c] == c / equal;
  std::vector<std::int64_t> ranks(parts, 0);
  std::size_t last = 0;
  for (std::size_t c = 0; c < rank; ++c) {
    const std::size_t p = equal_split ? c / equal : owner[c] == none ? last : owner[c];
    if (p < last) return {};
    last = p;
    ++ranks[p];
  }
  return ranks;
}

/// The adapter of one part: `rank` of its columns from `column`, its rows, halves back in diffusers' order.
LoraLayer slice(const LoraLayer& fused, const LoraPart& part, std::int64_t column, std::int64_t rank) {
  const double alpha = fused.alpha * static_cast<double>(rank) / static_cast<double>(fused.rank);
  LoraLayer out{part.layer, alpha, rank, fused.in, static_cast<std::int64_t>(part.rows), {}, {}};
  const auto down = fused.down.begin() + static_cast<std::ptrdiff_t>(column * fused.in);
  out.down.assign(down, down + static_cast<std::ptrdiff_t>(rank * fused.in));
  for (std::uint64_t r = 0; r < part.rows; ++r) {
    const std::uint64_t row = part.first_row + (part.swap_halves ? (r + part.rows / 2) % part.rows : r);
    const auto begin =
        fused.up.begin() + static_cast<std::ptrdiff_t>(row * static_cast<std::uint64_t>(fused.rank)) + static_cast<std::ptrdiff_t>(column);
    out.up.insert(out.up.end(), begin, begin + static_cast<std::ptrdiff_t>(rank));
  }
  return out;
}

/// Collects findings and throws them as one error.
class Findings {
 public:
  explicit Findings(std::string file) : file_(std::move(file)) {}
  void add(Code code, const std::string& message) { problems_.push_back({code, message, file_, {}, {}}); }
  void raise() const {
    if (problems_.empty()) return;
    constexpr std::size_t shown = 20;
    std::string text = file_ + ": ";
    for (std::size_t i = 0; i < std::min(shown, problems_.size()); ++i) text += (i ? "; " : "") + problems_[i].message;
    if (problems_.size() > shown) text += fmt::format("; and {} more", problems_.size() - shown);
    throw Error(problems_.front().code, text, file_);
  }

 private:
  std::string file_;
  std::vector<Problem> problems_;
};

std::string shape_of(const TensorRecord& t) {
  std::string text = "[";
  for (std::size_t i = 0; i < t.shape.size(); ++i) text += (i ? ", " : "") + std::to_string(t.shape[i]);
  return text + "]";
}

/// Checks the group's shapes against the model; false (and a finding) where they do not fit.
bool fits(const std::string& name, const Group& group, const Target& target, Findings& findings) {
  const TensorRecord &down = *group[Role::down], &up = *group[Role::up];
  const std::uint64_t in = target.module->in, out = target.part ? target.part->rows : target.module->out;
  for (const TensorRecord* t : {&down, &up})
    if (!is_float_tensor(t->dtype)) {
      findings.add(Code::LR_SHAPE, fmt::format("'{}' is {}, expected F32, BF16, F16 or F64", printable(t->name), dtype_name(t->dtype)));
      return false;
    }
  const bool matrices = down.shape.size() == 2 && up.shape.size() == 2 && down.shape[0] == up.shape[1] && down.shape[0] > 0;
  if (!matrices || down.shape[1] != in || up.shape[0] != out) {
    findings.add(Code::LR_SHAPE, fmt::format("'{}': down {} and up {}, expected [rank, {}] and [{}, rank]", printable(name), shape_of(down),
                                             shape_of(up), in, out));
    return false;
  }
  if (const TensorRecord* alpha = group[Role::alpha]; alpha && alpha->elements() != 1) {
    findings.add(Code::LR_SHAPE, fmt::format("'{}' is {}, expected one number", printable(alpha->name), shape_of(*alpha)));
    return false;
  }
  return true;
}

}  // namespace

std::vector<LoraLayer> read_lora(const std::filesystem::path& path, const LoraNames& names) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  const std::string shown = printable_path(path);
  Findings findings(shown);
  std::map<std::string, Group> groups;
  for (const TensorRecord& tensor : file.header().tensors) {
    const auto* suffix =
        std::find_if(std::begin(suffixes), std::end(suffixes), [&](const auto& s) { return tensor.name.ends_with(s.first); });
    if (suffix == std::end(suffixes)) {
      findings.add(Code::LR_KEY, fmt::format("'{}' is no LoRA tensor", printable(tensor.name)));
      continue;
    }
    const TensorRecord*& place =
        groups[tensor.name.substr(0, tensor.name.size() - suffix->first.size())].tensors[static_cast<int>(suffix->second)];
    if (place) findings.add(Code::LR_KEY, fmt::format("'{}' and '{}' are the same matrix", printable(place->name), printable(tensor.name)));
    place = &tensor;
  }
  if (groups.empty()) findings.add(Code::LR_KEY, "holds no LoRA tensor");

  std::optional<AdapterMetadata> metadata;
  if (const std::string* text = file.header().find_metadata("lora_adapter_metadata")) metadata.emplace(*text, shown);

  std::map<std::string, LoraLayer> layers;
  std::set<const LoraModule*> whole, in_parts;
  const auto keep = [&](LoraLayer layer) {
    const std::string name = layer.layer;
    if (!layers.emplace(name, std::move(layer)).second) findings.add(Code::LR_KEY, fmt::format("layer '{}' has two adapters", name));
  };
  for (const auto& [name, group] : groups) {
    const auto target = resolve(name, names);
    if (!target) {
      findings.add(Code::LR_KEY, fmt::format("'{}' matches no layer of {}", printable(name), names.id()));
      continue;
    }
    if (!group[Role::down] || !group[Role::up]) {
      findings.add(Code::LR_PAIR, fmt::format("'{}' lacks its {} matrix", printable(name), group[Role::down] ? "up" : "down"));
      continue;
    }
    if (!fits(name, group, *target, findings)) continue;
    const bool fused = !target->part && target->module->fused();
    (fused ? whole : in_parts).insert(target->module);
    if (whole.contains(target->module) && in_parts.contains(target->module))
      findings.add(Code::LR_KEY, fmt::format("module '{}' has an adapter of its own and one of its layers", target->module->native));

    LoraLayer layer;
    layer.layer = target->part ? target->part->layer : target->module->native;
    layer.rank = static_cast<std::int64_t>(group[Role::down]->shape[0]);
    layer.in = static_cast<std::int64_t>(group[Role::down]->shape[1]);
    layer.out = static_cast<std::int64_t>(group[Role::up]->shape[0]);
    layer.down = read_floats(file, *group[Role::down]);
    layer.up = read_floats(file, *group[Role::up]);
    layer.alpha = 0;
    if (const TensorRecord* alpha = group[Role::alpha]) {
      if (metadata) findings.add(Code::LR_KEY, fmt::format("'{}' and lora_adapter_metadata both give alpha", printable(alpha->name)));
      layer.alpha = read_number(file, *alpha);
    } else if (metadata) {
      layer.alpha = metadata->alpha(layer.layer, layer.rank).value_or(0);
    }
    if (layer.alpha == 0) layer.alpha = static_cast<double>(layer.rank);
    const bool finite = std::isfinite(layer.alpha) &&
                        std::all_of(layer.down.begin(), layer.down.end(), [](float x) { return std::isfinite(x); }) &&
                        std::all_of(layer.up.begin(), layer.up.end(), [](float x) { return std::isfinite(x); });
    if (!finite) findings.add(Code::NUM_NONFINITE, fmt::format("'{}' holds NaN or infinity", printable(name)));

    if (target->part) {
      keep(std::move(layer));
    } else if (!fused) {  // one whole layer under its native name: only the order of its halves may differ
      keep(slice(layer, target->module->parts.front(), 0, layer.rank));
    } else if (const auto ranks = split_ranks(layer, *target->module); !ranks.empty()) {
      std::int64_t column = 0;
      for (std::size_t p = 0; p < ranks.size(); ++p) {
        if (ranks[p] > 0) keep(slice(layer, target->module->parts[p], column, ranks[p]));
        column += ranks[p];
      }
    } else {
      keep(std::move(layer));
    }
  }
  findings.raise();
  std::vector<LoraLayer> list;
  for (auto& [name, layer] : layers) list.push_back(std::move(layer));
  return list;
}

}  // namespace squareq::training
