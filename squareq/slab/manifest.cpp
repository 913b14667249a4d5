// The manifest as written: layers, order and text of the Python V2 builder.

#include "squareq/slab/manifest.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "squareq/slab/checked.hpp"
#include "squareq/slab/limits.hpp"
#include "squareq/text.hpp"

namespace squareq {

std::uint64_t Manifest::total_qweight_bytes() const {
  std::uint64_t total = 0;
  for (const ManifestLayer& layer : layers) total += layer.packed_shape[0] * layer.packed_shape[1];
  return total;
}

ManifestLayer make_layer(std::string name, std::uint64_t out_features, std::uint64_t in_features, std::uint64_t pack_k, bool bias) {
  const auto padded = checked_round_up(in_features, std::max<std::uint64_t>(pack_k, 1));
  if (!padded || !checked_mul(out_features, *padded))
    throw Error(Code::CALL_VALUE, "layer " + in_quotes(name) + " of " + std::to_string(out_features) + " x " + std::to_string(in_features) + ", padded to multiples of " +
                                      std::to_string(pack_k) + ", overflows 64 bits", {}, name);
  ManifestLayer layer;
  layer.qweight_key = name + ".qweight";
  layer.scale_key = name + ".scale";
  layer.zero_point_key = name + ".zero_point";
  if (bias) layer.bias_key = name + ".bias";
  layer.orig_shape = {out_features, in_features};
  layer.packed_shape = {out_features, *padded};
  layer.pad_k = pack_k;
  layer.canonical_name = std::move(name);
  return layer;
}

void sort_layers(Manifest& manifest) {
  std::sort(manifest.layers.begin(), manifest.layers.end(), [](const ManifestLayer& a, const ManifestLayer& b) { return a.canonical_name < b.canonical_name; });
}

std::string manifest_text(const Manifest& manifest) {
  using Json = nlohmann::ordered_json;
  const auto or_null = [](const std::optional<std::string>& text) { return text ? Json(*text) : Json(nullptr); };
  Json layers = Json::array();
  for (const ManifestLayer& layer : manifest.layers) {
    Json entry;
    entry["canonical_name"] = layer.canonical_name;
    entry["qweight_key"] = layer.qweight_key;
    entry["scale_key"] = layer.scale_key;
    entry["zero_point_key"] = layer.zero_point_key;
    entry["bias_key"] = or_null(layer.bias_key);
    entry["orig_shape"] = layer.orig_shape;
    entry["packed_shape"] = layer.packed_shape;
    entry["pad_k"] = layer.pad_k;
    entry["quant_bits"] = 8;
    entry["quant_scheme"] = "per_row_symmetric";
    entry["quant_axis"] = 0;
    entry["dtype_qweight"] = "int8";
    entry["dtype_scale"] = "float32";
    entry["dtype_zero_point"] = "float32";
    entry["block_id"] = or_null(layer.block_id);
    layers.push_back(std::move(entry));
  }
  Json root;
  root["model_signature"] = manifest.model_signature;
  root["architecture_id"] = manifest.architecture_id;
  root["quant_version"] = quant_version_v2;
  root["kernel_abi_version"] = kernel_abi_version;
  root["min_runtime_version"] = slab_runtime_version;
  root["layer_count"] = manifest.layers.size();
  root["total_qweight_bytes"] = manifest.total_qweight_bytes();
  root["layers"] = std::move(layers);
  return root.dump(2, ' ', true);
}

Manifest to_manifest(ParsedManifest parsed) {
  Manifest manifest;
  manifest.model_signature = std::move(parsed.model_signature);
  manifest.architecture_id = std::move(parsed.architecture_id);
  manifest.layers.reserve(parsed.layers.size());
  for (ParsedManifest::Layer& layer : parsed.layers) manifest.layers.push_back(std::move(layer.fields));
  return manifest;
}

bool is_slab_name(std::string_view name) {
  if (name.empty() || name.size() > limits::name_bytes) return false;
  if (name.front() == '.' || name.back() == '.' || name.find("..") != std::string_view::npos) return false;
  for (std::size_t i = 0; i < name.size();) {
    std::uint32_t c = 0;
    const std::size_t length = decode_utf8(name, i, c);
    if (length == 0 || c < 0x20 || (c >= 0x7F && c < 0xA0) || is_bidi_control(c) || c == '/' || c == '\\') return false;
    i += length;
  }
  return true;
}

}  // namespace squareq
