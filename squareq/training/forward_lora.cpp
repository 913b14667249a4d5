#include "squareq/training/forward_lora.hpp"

#include <fmt/format.h>

#include <map>
#include <optional>

#include "squareq/error.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/text.hpp"
#include "squareq/training/data/tensor_reader.hpp"
#include "squareq/training/lora/lora_file.hpp"

namespace squareq::training {

namespace {

enum Role { down, up };

struct Suffix {
  std::string_view text;
  Role role;
};
constexpr Suffix kSuffixes[] = {
    {".lora_down.weight", down},      {".lora_up.weight", up},        {".lora_A.weight", down},    {".lora_B.weight", up},
    {".lora_A.default.weight", down}, {".lora_B.default.weight", up}, {".lora.down.weight", down}, {".lora.up.weight", up},
};

/// The layer or fused module that a file's module name means, after read_lora accepted the file.
std::string meant(std::string_view name, const LoraNames& names) {
  if (const LoraModule* module = names.by_kohya(name)) return module->native;
  for (const std::string_view prefix : {"lora_unet_", "lora_transformer_", "lycoris_"})
    if (name.starts_with(prefix)) return std::string(names.layer_by_underscores(name.substr(prefix.size())));
  for (const std::string_view prefix : {"diffusion_model.", "model.diffusion_model."})
    if (name.starts_with(prefix)) return std::string(name.substr(prefix.size()));
  for (const std::string_view prefix : {"transformer.", "unet.", "base_model.model."})
    if (name.starts_with(prefix)) return std::string(name.substr(prefix.size()));
  return std::string(name);
}

/// alpha / rank, which read_lora keeps when it splits a fused module into its layers.
double scaling_of(const std::string& layer, const LoraNames& names, const std::map<std::string, double>& scaling) {
  if (const auto at = scaling.find(layer); at != scaling.end()) return at->second;
  if (const LoraModule* module = names.by_native(layer))
    for (const LoraPart& part : module->parts)
      if (const auto at = scaling.find(part.layer); at != scaling.end()) return at->second;
  throw Error(Code::LR_KEY, fmt::format("'{}' matches no layer of {}", printable(layer), names.id()), {}, printable(layer));
}

torch::Tensor matrix(const SafetensorsFile& file, const TensorRecord& record) {
  const std::vector<float> values = read_floats(file, record);
  return torch::tensor(values).view({static_cast<std::int64_t>(record.shape[0]), static_cast<std::int64_t>(record.shape[1])});
}

}  // namespace

LoraInFile read_lora_as_filed(const std::filesystem::path& path, const Transformer& model) {
  const LoraNames names(model.architecture());
  std::map<std::string, double> scaling;
  for (const LoraLayer& layer : read_lora(path, names)) scaling.emplace(layer.layer, layer.scaling());

  const SafetensorsFile file = SafetensorsFile::open(path);
  std::map<std::string, std::array<const TensorRecord*, 2>> groups;
  for (const TensorRecord& record : file.header().tensors)
    for (const Suffix& suffix : kSuffixes)
      if (record.name.ends_with(suffix.text)) groups[record.name.substr(0, record.name.size() - suffix.text.size())][suffix.role] = &record;

  LoraInFile lora;
  for (const auto& [name, records] : groups) {
    Adapter adapter;
    adapter.layer = meant(name, names);
    adapter.a_t = matrix(file, *records[down]).to(model.device());
    adapter.b_t = matrix(file, *records[up]).to(model.device());
    adapter.alpha = scaling_of(adapter.layer, names, scaling) * static_cast<double>(adapter.rank());
    lora.tensors.emplace_back(records[down]->name, adapter.a_t);
    lora.tensors.emplace_back(records[up]->name, adapter.b_t);
    lora.adapters.add(std::move(adapter));
  }
  return lora;
}

}  // namespace squareq::training
