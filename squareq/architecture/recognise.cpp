#include <nlohmann/json.hpp>

#include <algorithm>
#include <unordered_set>

#include "squareq/architecture/data.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

using namespace architecture_detail;
using nlohmann::json;

constexpr std::string_view prefixes[] = {"model.diffusion_model.", "diffusion_model."};

bool same_sizes(const Bindings& b, const Variant& v) {
  return std::equal(b.dims.begin(), b.dims.end(), v.dims.begin(), v.dims.end()) &&
         std::equal(b.counts.begin(), b.counts.end(), v.counts.begin(), v.counts.end());
}

/// The variant with these flags; of several the one whose sizes agree, else the first.
void choose_variant(const Bindings& b, Architecture::Data& data) {
  const Variant* twin = nullptr;
  for (const Variant& v : b.family->variants) {
    if (v.flags != b.flags) continue;
    if (same_sizes(b, v)) {
      data.id = v.id;
      data.published = true;
      return;
    }
    if (!twin) twin = &v;
  }
  if (!twin) throw Error(Code::MD_ARCH, "the tensors are those of a " + b.family->name + " model of no known variant");
  data.id = twin->id;
}

Architecture::Data make(const Bindings& b) {
  Architecture::Data data;
  data.family = b.family->name;
  data.scheme = b.scheme;
  data.native_scheme = b.family->native_scheme;
  expand(b, data);
  configure(b, data);
  return data;
}

}  // namespace

std::string_view detect_prefix(std::span<const TensorShape> tensors) {
  for (const std::string_view prefix : prefixes)
    if (std::any_of(tensors.begin(), tensors.end(), [&](const TensorShape& t) { return t.name.starts_with(prefix); })) return prefix;
  return "";
}

std::optional<Architecture> recognise(std::span<const TensorShape> tensors, std::string_view config_json) {
  std::unordered_set<std::string_view> names;
  for (const TensorShape& t : tensors) names.insert(t.name);
  for (const Family& family : registry())
    for (const auto& [scheme, proof] : family.detect) {
      if (!std::all_of(proof.begin(), proof.end(), [&](const std::string& name) { return names.contains(name); })) continue;
      const Bindings b = bind_model(family, scheme, tensors);
      Architecture::Data data = make(b);
      choose_variant(b, data);
      if (!config_json.empty()) apply_config_json(family, config_json, data);
      return Architecture(std::make_shared<const Architecture::Data>(std::move(data)));
    }
  return std::nullopt;
}

Architecture recognise_recorded(std::span<const TensorShape> tensors, std::string_view record) {
  const json parsed = parse_strict(record, "the slab's architecture record");
  if (!parsed.contains("id") || !parsed["id"].is_string()) throw Error(Code::MD_ARCH, "the slab's architecture record has no id");
  const std::string id = parsed["id"];
  const auto source = parsed.find("config_json");
  const auto found = recognise(tensors, source == parsed.end() || source->is_null() ? std::string() : source->dump());
  if (!found) throw Error(Code::MD_ARCH, "the slab records architecture " + printable(id) + ", its tensors are of no known one");
  if (found->id() != id)
    throw Error(Code::MD_ARCH, "the slab records architecture " + printable(id) + ", its tensors are those of " + found->id());
  return *found;
}

Architecture published_architecture(std::string_view id, std::string_view scheme) {
  std::string known;
  for (const Family& family : registry())
    for (const Variant& v : family.variants) {
      known += (known.empty() ? "" : ", ") + v.id;
      if (v.id != id) continue;
      if (!family.detect.contains(std::string(scheme)))
        throw Error(Code::MD_ARCH, "architecture " + v.id + " has the naming schemes diffusers and " + family.native_scheme + ", not " +
                                       printable(scheme));
      Architecture::Data data = make(bind_model(family, std::string(scheme), v));
      data.id = v.id;
      data.published = true;
      return Architecture(std::make_shared<const Architecture::Data>(std::move(data)));
    }
  throw Error(Code::MD_ARCH, "unknown architecture '" + printable(id) + "'; known: " + known);
}

std::vector<std::string> architecture_ids() {
  std::vector<std::string> ids;
  for (const Family& family : registry())
    for (const Variant& v : family.variants) ids.push_back(v.id);
  return ids;
}

}  // namespace squareq
