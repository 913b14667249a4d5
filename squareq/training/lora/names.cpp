#include "squareq/training/lora/names.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "squareq/error.hpp"
#include "squareq/text.hpp"

namespace squareq::training {

namespace {

constexpr std::string_view weight = ".weight";

/// The same model under diffusers' names.
Architecture in_diffusers_names(const Architecture& model) {
  if (model.scheme() == "diffusers") return model;
  auto same = recognise(model.diffusers_tensors());
  if (!same) throw Error(Code::MD_ARCH, fmt::format("model '{}' is not recognised under its diffusers names", printable(model.id())));
  return *same;
}

}  // namespace

LoraNames::LoraNames(const Architecture& model) : family_(model.family()), id_(model.published() ? model.id() : model.family()) {
  const Architecture diffusers = in_diffusers_names(model);
  for (const ArchitectureLayer& layer : diffusers.layers()) {
    const auto native = diffusers.native(layer.name + std::string(weight));
    const auto kohya = diffusers.kohya(layer.name);
    if (!native || !kohya) throw Error(Code::INTERNAL, fmt::format("architecture '{}' has no native name for '{}'", id_, layer.name));
    const std::string name = native->tensor.substr(0, native->tensor.size() - weight.size());
    const auto [at, added] = native_.try_emplace(name, modules_.size());
    if (added) {
      modules_.push_back({name, kohya->tensor, native->total_rows, layer.in, {}});
      kohya_.emplace(kohya->tensor, at->second);
    }
    modules_[at->second].parts.push_back({layer.name, native->first_row, native->rows, native->swap_halves});
    layer_.emplace(layer.name, at->second);
    std::string underscores = layer.name;
    std::replace(underscores.begin(), underscores.end(), '.', '_');
    underscores_.emplace(std::move(underscores), layer.name);
  }
  for (LoraModule& module : modules_)
    std::sort(module.parts.begin(), module.parts.end(), [](const LoraPart& a, const LoraPart& b) { return a.first_row < b.first_row; });
}

const LoraModule* LoraNames::find(const Index& index, std::string_view name) const {
  const auto at = index.find(name);
  return at == index.end() ? nullptr : &modules_[at->second];
}

std::string_view LoraNames::layer_by_underscores(std::string_view name) const {
  const auto at = underscores_.find(name);
  return at == underscores_.end() ? std::string_view{} : std::string_view(at->second);
}

}  // namespace squareq::training
