#include <algorithm>

#include "squareq/contract.h"
#include "squareq/slab/check.hpp"
#include "squareq/slab/limits.hpp"

namespace squareq {
namespace {

using Field = ParsedManifest::Field;

constexpr std::pair<Field, std::string_view> roles[] = {
    {Field::qweight_key, ".qweight"}, {Field::scale_key, ".scale"}, {Field::zero_point_key, ".zero_point"}, {Field::bias_key, ".bias"}};

std::string shape_words(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

const std::string* key_of(const ManifestLayer& layer, Field role) {
  switch (role) {
    case Field::qweight_key: return &layer.qweight_key;
    case Field::scale_key: return &layer.scale_key;
    case Field::zero_point_key: return &layer.zero_point_key;
    default: return layer.bias_key ? &*layer.bias_key : nullptr;
  }
}

class PairChecker {
 public:
  PairChecker(const ParsedManifest& manifest, const SafetensorsFile& slab, Report& report)
      : manifest_(manifest), slab_(slab), file_(slab.path().string()), report_(report), claimed_(manifest.claimed) {
    std::sort(claimed_.begin(), claimed_.end());
  }

  LayerTensors layer(const ParsedManifest::Layer& layer) {
    const ManifestLayer& f = layer.fields;
    const std::vector<std::uint64_t> packed(f.packed_shape.begin(), f.packed_shape.end());
    const std::vector<std::uint64_t> rows{f.orig_shape[0]};
    const std::vector<std::uint64_t>* vector_shape = layer.has(Field::orig_shape) ? &rows : nullptr;
    LayerTensors t;
    t.qweight = tensor(layer, Field::qweight_key, FileDtype::I8, layer.has(Field::packed_shape) ? &packed : nullptr);
    t.scale = tensor(layer, Field::scale_key, FileDtype::F32, vector_shape);
    t.zero_point = tensor(layer, Field::zero_point_key, FileDtype::F32, vector_shape);
    t.bias = tensor(layer, Field::bias_key, FileDtype::F32, vector_shape);
    return t;
  }

  void orphans() {
    std::vector<std::string> named = manifest_.claimed;
    for (const ParsedManifest::Layer& layer : manifest_.layers) {
      for (const auto& [role, suffix] : roles) {
        const std::string* key = key_of(layer.fields, role);
        if (layer.has(role) && key) named.push_back(*key);
        // The key is malformed or absent, and that was reported: its tensor is not an orphan as well.
        if (!layer.has(role) && layer.has(Field::canonical_name)) named.push_back(layer.fields.canonical_name + std::string(suffix));
      }
    }
    std::sort(named.begin(), named.end());
    for (const TensorRecord& t : slab_.header().tensors)
      if (!std::binary_search(named.begin(), named.end(), t.name)) orphan(t);
  }

 private:
  const TensorRecord* tensor(const ParsedManifest::Layer& layer, Field role, FileDtype dtype, const std::vector<std::uint64_t>* shape) {
    const ManifestLayer& f = layer.fields;
    const std::string* key = layer.has(role) ? key_of(f, role) : nullptr;
    if (!key) return nullptr;
    const TensorRecord* t = slab_.header().find(*key);
    if (!t) {
      bad(Code::MF_KEY_ABSENT, f, *key, "is not in the slab");
      return nullptr;
    }
    bool good = shape != nullptr;
    if (t->dtype != dtype) {
      bad(Code::MF_DTYPE, f, *key, "has dtype " + std::string(dtype_name(t->dtype)) + "; " + std::string(dtype_name(dtype)) + " is required");
      good = false;
    }
    if (shape && t->shape != *shape) {
      bad(Code::MF_SHAPE, f, *key, "has shape " + shape_words(t->shape) + "; the manifest requires " + shape_words(*shape));
      if (role == Field::qweight_key && layer.has(Field::orig_shape) && t->shape == std::vector<std::uint64_t>(f.orig_shape.begin(), f.orig_shape.end()))
        bad(Code::MF_PACK, f, *key, "is not padded to a multiple of pad_k " + std::to_string(f.pad_k));
      good = false;
    }
    return good ? t : nullptr;
  }

  void orphan(const TensorRecord& t) {
    for (const auto& [role, suffix] : roles) {
      if (!t.name.ends_with(suffix)) continue;
      const std::string base = t.name.substr(0, t.name.size() - suffix.size());
      if (std::binary_search(claimed_.begin(), claimed_.end(), base)) return;  // the whole layer was unusable, and that was reported
      report_.add(Code::MF_ORPHAN, "tensor " + in_quotes(t.name) + " is in the slab and no layer of the manifest names it", file_, base, t.name);
      return;
    }
    report_.add(Code::MF_ORPHAN_OTHER, "tensor " + in_quotes(t.name) + " is in the slab and no layer of the manifest names it; it is ignored", file_, {}, t.name);
  }

  void bad(Code code, const ManifestLayer& layer, const std::string& key, const std::string& what) {
    report_.add(code, "tensor " + in_quotes(key) + " of layer " + in_quotes(layer.canonical_name) + " " + what, file_, layer.canonical_name, key);
  }

  const ParsedManifest& manifest_;
  const SafetensorsFile& slab_;
  const std::string file_;
  Report& report_;
  std::vector<std::string> claimed_;
};

}  // namespace

void check_slab_tensors(const SafetensorsFile& slab, Report& report) {
  const std::string file = slab.path().string();
  for (const TensorRecord& t : slab.header().tensors) {
    if (!is_slab_name(t.name)) report.add(Code::MF_NAME, "tensor " + in_quotes(t.name) + " has a name that may not stand in a slab", file, {}, t.name);
    if (t.shape.size() > limits::slab_rank)
      report.add(Code::ST_RANK, "tensor " + in_quotes(t.name) + " has rank " + std::to_string(t.shape.size()) + "; a slab's tensors have at most " + std::to_string(limits::slab_rank), file, {}, t.name);
  }
}

std::vector<LayerTensors> check_pair(const ParsedManifest& manifest, const SafetensorsFile& slab, Report& report) {
  PairChecker checker(manifest, slab, report);
  std::vector<LayerTensors> tensors;
  tensors.reserve(manifest.layers.size());
  for (const ParsedManifest::Layer& layer : manifest.layers) tensors.push_back(checker.layer(layer));
  if (manifest.layers_known) checker.orphans();
  return tensors;
}

}  // namespace squareq
