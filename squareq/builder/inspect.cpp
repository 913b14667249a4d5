#include "squareq/builder/inspect.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "squareq/text.hpp"

namespace squareq {
namespace {

using Json = nlohmann::ordered_json;

std::uint64_t layer_bytes(const LayerTensors& t) {
  return t.qweight->bytes() + t.scale->bytes() + t.zero_point->bytes() + (t.bias ? t.bias->bytes() : 0);
}

/// "blocks.12" -> ("blocks", 12), so that block 2 stands before block 10.
std::pair<std::string, std::uint64_t> natural(const std::string& name) {
  const std::size_t dot = name.rfind('.');
  if (dot == std::string::npos || name.size() - dot > 10 || name.find_first_not_of("0123456789", dot + 1) != std::string::npos ||
      dot + 1 == name.size())
    return {name, 0};
  return {name.substr(0, dot), std::stoul(name.substr(dot + 1))};
}

Json companion_json(const Slab& slab) {
  if (!slab.companion()) return nullptr;
  const Companion& c = *slab.companion();
  const auto object = [](const std::string& text) { return text.empty() ? Json(nullptr) : Json::parse(text); };
  Json answer = {
      {"file", printable_path(slab.paths().companion)}, {"bytes", c.file.header().file_bytes}, {"id_sha256", c.integrity.id_sha256},
      {"architecture", object(c.architecture_json)},    {"source", object(c.source_json)},     {"tensors", Json::array()}};
  for (const TensorRecord& t : c.file.header().tensors)
    answer["tensors"].push_back(
        {{"name", printable(t.name, 512)}, {"dtype", dtype_name(t.dtype)}, {"shape", t.shape}, {"bytes", t.bytes()}});
  return answer;
}

}  // namespace

std::vector<TensorShape> original_shapes(const Slab& slab) {
  std::vector<TensorShape> tensors;
  for (const ManifestLayer& layer : slab.manifest().layers) {
    tensors.push_back({layer.canonical_name + ".weight", {layer.orig_shape[0], layer.orig_shape[1]}});
    if (layer.bias_key) tensors.push_back({layer.canonical_name + ".bias", {layer.orig_shape[0]}});
  }
  if (slab.companion())
    for (const TensorRecord& t : slab.companion()->file.header().tensors) tensors.push_back({t.name, t.shape});
  return tensors;
}

std::optional<Architecture> slab_architecture(const Slab& slab) {
  if (!slab.companion() || slab.companion()->architecture_json.empty()) return std::nullopt;
  return recognise_recorded(original_shapes(slab), slab.companion()->architecture_json);
}

void ScaleHistogram::add(const std::vector<float>& scales) {
  for (const float s : scales) {
    min = rows == 0 ? s : std::min(min, s);
    max = rows == 0 ? s : std::max(max, s);
    ++rows;
    floored += s == 1e-8f;
    const int exponent = std::ilogb(s);
    while (!bins.empty() && exponent < bins.front().exponent) bins.insert(bins.begin(), {bins.front().exponent - 1, 0});
    while (!bins.empty() && exponent > bins.back().exponent) bins.push_back({bins.back().exponent + 1, 0});
    if (bins.empty()) bins.push_back({exponent, 0});
    ++bins[static_cast<std::size_t>(exponent - bins.front().exponent)].rows;
  }
}

std::vector<float> layer_scales(const Slab& slab, std::size_t layer) {
  const TensorRecord& tensor = *slab.tensors(layer).scale;
  std::vector<float> scales(tensor.elements());
  slab.file().read(tensor, 0, scales.data(), tensor.bytes());
  return scales;
}

const char* SlabBlocks::outside() { return "(outside blocks)"; }

std::vector<std::string> SlabBlocks::names() const {
  std::vector<std::string> all;
  if (architecture_)
    for (const ArchitectureBlock& block : architecture_->blocks()) all.push_back(block.name);
  else
    for (const Group& group : groups_)
      if (group.name != outside()) all.push_back(group.name);
  return all;
}

std::string SlabBlocks::of_tensor(const std::string& tensor) const {
  for (std::size_t dot = tensor.rfind('.'); dot != std::string::npos && dot > 0; dot = tensor.rfind('.', dot - 1))
    for (const std::string& name : block_names_)
      if (tensor.compare(0, dot, name) == 0) return name;
  return outside();
}

SlabBlocks::SlabBlocks(const Slab& slab) : architecture_(slab_architecture(slab)) {
  std::map<std::pair<std::string, std::uint64_t>, Group> groups;
  for (std::size_t i = 0; i < slab.layer_count(); ++i) {
    const std::string name = of(slab.layer(i).canonical_name);
    Group& group = groups[natural(name)];
    group.name = name;
    ++group.layers;
    group.bytes += layer_bytes(slab.tensors(i));
  }
  for (auto& [key, group] : groups) groups_.push_back(std::move(group));
  block_names_ = names();
}

std::string SlabBlocks::of(const std::string& layer) const {
  if (architecture_) {
    const auto block = architecture_->block_of(layer);
    return block ? architecture_->blocks()[*block].name : outside();
  }
  for (std::size_t dot = layer.find('.'); dot != std::string::npos; dot = layer.find('.', dot + 1)) {
    const std::size_t end = std::min(layer.find('.', dot + 1), layer.size());
    if (end > dot + 1 && layer.find_first_not_of("0123456789", dot + 1) >= end) return layer.substr(0, end);
  }
  return outside();
}

Json inspect_json(const Slab& slab) {
  const SlabBlocks blocks(slab);
  const Manifest& m = slab.manifest();
  Json answer = {{"file", printable_path(slab.paths().slab)},
                 {"bytes", slab.file().header().file_bytes},
                 {"model_signature", m.model_signature},
                 {"architecture_id", printable(m.architecture_id, 256)},
                 {"quant_version", quant_version_v2},
                 {"total_qweight_bytes", m.total_qweight_bytes()},
                 {"blocks_by", blocks.source()},
                 {"scales", nullptr},
                 {"blocks", Json::array()},
                 {"layers", Json::array()}};
  for (const SlabBlocks::Group& g : blocks.groups())
    answer["blocks"].push_back({{"name", printable(g.name, 512)}, {"layers", g.layers}, {"bytes", g.bytes}});
  ScaleHistogram all;
  for (std::size_t i = 0; i < slab.layer_count(); ++i) {
    const ManifestLayer& layer = slab.layer(i);
    const std::vector<float> scales = layer_scales(slab, i);
    ScaleHistogram own;
    own.add(scales);
    all.add(scales);
    answer["layers"].push_back({{"name", printable(layer.canonical_name, 512)},
                                {"block", printable(blocks.of(layer.canonical_name), 512)},
                                {"orig_shape", layer.orig_shape},
                                {"packed_shape", layer.packed_shape},
                                {"bias", layer.bias_key.has_value()},
                                {"bytes", layer_bytes(slab.tensors(i))},
                                {"scale_min", own.min},
                                {"scale_max", own.max}});
  }
  answer["scales"] = {{"rows", all.rows}, {"min", all.min}, {"max", all.max}, {"floored", all.floored}, {"log2", Json::array()}};
  for (const ScaleHistogram::Bin& bin : all.bins) answer["scales"]["log2"].push_back({{"exponent", bin.exponent}, {"rows", bin.rows}});
  answer["companion"] = companion_json(slab);
  return answer;
}

}  // namespace squareq
