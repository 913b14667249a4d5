// squareq inspect: what is in a slab. Layers and shapes, bytes by block, what the companion adds.

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "squareq/architecture/architecture.hpp"
#include "squareq/cli/command.hpp"
#include "squareq/slab/slab.hpp"
#include "squareq/text.hpp"

namespace squareq::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Group {
  std::string name;
  std::uint64_t layers = 0, bytes = 0;
};

std::uint64_t layer_bytes(const LayerTensors& t) {
  std::uint64_t bytes = t.qweight->bytes() + t.scale->bytes() + t.zero_point->bytes();
  return t.bias ? bytes + t.bias->bytes() : bytes;
}

// The recorded architecture knows the blocks. For a bare pair the name up to its first number is taken, and `source` says so.
class Blocks {
 public:
  explicit Blocks(const Slab& slab) {
    if (!slab.companion() || slab.companion()->architecture_json.empty()) return;
    std::vector<TensorShape> tensors;
    for (const ManifestLayer& layer : slab.manifest().layers) {
      tensors.push_back({layer.canonical_name + ".weight", {layer.orig_shape[0], layer.orig_shape[1]}});
      if (layer.bias_key) tensors.push_back({layer.canonical_name + ".bias", {layer.orig_shape[0]}});
    }
    for (const TensorRecord& t : slab.companion()->file.header().tensors) tensors.push_back({t.name, t.shape});
    try {
      architecture_ = recognise_recorded(tensors, slab.companion()->architecture_json);
    } catch (const Error&) {
      architecture_.reset();
    }
  }

  const char* source() const { return architecture_ ? "architecture" : "names"; }

  std::string of(const std::string& layer) const {
    if (architecture_) {
      const auto block = architecture_->block_of(layer);
      return block ? architecture_->blocks()[*block].name : "(outside blocks)";
    }
    for (std::size_t dot = layer.find('.'); dot != std::string::npos; dot = layer.find('.', dot + 1)) {
      const std::size_t end = std::min(layer.find('.', dot + 1), layer.size());
      if (end > dot + 1 && layer.find_first_not_of("0123456789", dot + 1) >= end) return layer.substr(0, end);
    }
    return "(outside blocks)";
  }

 private:
  std::optional<Architecture> architecture_;
};

// Blocks in natural order of their numbers, as they first appear otherwise.
std::vector<Group> group_by_block(const Slab& slab, const Blocks& blocks) {
  std::map<std::pair<std::string, std::uint64_t>, Group> groups;
  for (std::size_t i = 0; i < slab.layer_count(); ++i) {
    const std::string name = blocks.of(slab.layer(i).canonical_name);
    const std::size_t dot = name.rfind('.');
    const bool numbered = dot != std::string::npos && name.size() - dot <= 10 && name.find_first_not_of("0123456789", dot + 1) == std::string::npos;
    Group& group = groups[numbered ? std::pair(name.substr(0, dot), static_cast<std::uint64_t>(std::stoul(name.substr(dot + 1)))) : std::pair(name, std::uint64_t{0})];
    group.name = name;
    ++group.layers;
    group.bytes += layer_bytes(slab.tensors(i));
  }
  std::vector<Group> list;
  for (auto& [key, group] : groups) list.push_back(std::move(group));
  return list;
}

Json tensor_json(const TensorRecord& t) { return {{"name", printable(t.name, 512)}, {"dtype", dtype_name(t.dtype)}, {"shape", t.shape}, {"bytes", t.bytes()}}; }

Json companion_json(const Slab& slab) {
  if (!slab.companion()) return nullptr;
  const Companion& c = *slab.companion();
  const auto object = [](const std::string& text) { return text.empty() ? Json(nullptr) : Json::parse(text); };
  Json tensors = Json::array();
  for (const TensorRecord& t : c.file.header().tensors) tensors.push_back(tensor_json(t));
  Json answer;
  answer["file"] = printable_path(slab.paths().companion);
  answer["bytes"] = c.file.header().file_bytes;
  answer["id_sha256"] = c.integrity.id_sha256;
  answer["architecture"] = object(c.architecture_json);
  answer["source"] = object(c.source_json);
  answer["tensors"] = std::move(tensors);
  return answer;
}

Json slab_json(const Slab& slab) {
  const Blocks blocks(slab);
  const Manifest& m = slab.manifest();
  Json answer;
  answer["file"] = printable_path(slab.paths().slab);
  answer["bytes"] = slab.file().header().file_bytes;
  answer["model_signature"] = m.model_signature;
  answer["architecture_id"] = printable(m.architecture_id, 256);
  answer["quant_version"] = quant_version_v2;
  answer["total_qweight_bytes"] = m.total_qweight_bytes();
  answer["blocks_by"] = blocks.source();
  answer["blocks"] = Json::array();
  for (const Group& g : group_by_block(slab, blocks)) answer["blocks"].push_back({{"name", printable(g.name, 512)}, {"layers", g.layers}, {"bytes", g.bytes}});
  answer["layers"] = Json::array();
  for (std::size_t i = 0; i < slab.layer_count(); ++i) {
    const ManifestLayer& layer = slab.layer(i);
    Json entry;
    entry["name"] = printable(layer.canonical_name, 512);
    entry["block"] = printable(blocks.of(layer.canonical_name), 512);
    entry["orig_shape"] = layer.orig_shape;
    entry["packed_shape"] = layer.packed_shape;
    entry["bias"] = layer.bias_key.has_value();
    entry["bytes"] = layer_bytes(slab.tensors(i));
    answer["layers"].push_back(std::move(entry));
  }
  answer["companion"] = companion_json(slab);
  return answer;
}

double megabytes(std::uint64_t bytes) { return static_cast<double>(bytes) * 1e-6; }

void tell_slab(const Slab& slab) {
  const Blocks blocks(slab);
  const Manifest& m = slab.manifest();
  fmt::print("slab          {}  {:.2f} MB\n", printable_path(slab.paths().slab), megabytes(slab.file().header().file_bytes));
  fmt::print("architecture  {}\nsignature     {}\nlayers        {}, {:.2f} MB of codes\n\n", printable(m.architecture_id, 256), m.model_signature, m.layers.size(), megabytes(m.total_qweight_bytes()));
  fmt::print("{:<44} {:>7} {:>12}\n", std::string("block (by ") + blocks.source() + ")", "layers", "MB");
  for (const Group& g : group_by_block(slab, blocks)) fmt::print("{:<44} {:>7} {:>12.3f}\n", printable(g.name, 44), g.layers, megabytes(g.bytes));
  fmt::print("\n{:<60} {:>8} {:>8} {:>8}  {}\n", "layer", "out", "in", "padded", "bias");
  for (const ManifestLayer& layer : m.layers)
    fmt::print("{:<60} {:>8} {:>8} {:>8}  {}\n", printable(layer.canonical_name, 60), layer.orig_shape[0], layer.orig_shape[1], layer.packed_shape[1], layer.bias_key ? "yes" : "no");
  if (!slab.companion()) return fmt::print("\nno companion: a bare V2 pair, without checksums and the unquantized rest of the model\n");
  const Companion& c = *slab.companion();
  fmt::print("\ncompanion     {}  {:.2f} MB\nidentity      {}\n", printable_path(slab.paths().companion), megabytes(c.file.header().file_bytes), c.integrity.id_sha256);
  for (const TensorRecord& t : c.file.header().tensors)
    fmt::print("{:<60} {:<8} [{}]\n", printable(t.name, 60), dtype_name(t.dtype), fmt::join(t.shape, ", "));
}

void inspect_container(const std::filesystem::path& path, bool json) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  if (json) {
    Json answer;
    answer["file"] = printable_path(path);
    answer["bytes"] = file.header().file_bytes;
    answer["manifest"] = nullptr;
    answer["metadata"] = Json::object();
    for (const auto& [key, value] : file.header().metadata) answer["metadata"][printable(key, 512)] = printable(value, 4096);
    answer["tensors"] = Json::array();
    for (const TensorRecord& t : file.header().tensors) answer["tensors"].push_back(tensor_json(t));
    return fmt::print("{}\n", answer.dump(2, ' ', true));
  }
  fmt::print("{}  {:.2f} MB, a safetensors file without manifest, {} tensors\n", printable_path(path), megabytes(file.header().file_bytes), file.header().tensors.size());
  for (const auto& [key, value] : file.header().metadata) fmt::print("  {} = {}\n", printable(key), printable(value));
  for (const TensorRecord& t : file.header().tensors) fmt::print("{:<60} {:<8} [{}]\n", printable(t.name, 60), dtype_name(t.dtype), fmt::join(t.shape, ", "));
}

}  // namespace

void add_inspect_command(CLI::App& app, const Common& common, int& status) {
  const auto path = std::make_shared<std::filesystem::path>();
  CLI::App* command = app.add_subcommand("inspect", "Show layers, shapes, bytes by block and the companion of a slab");
  command->add_option("PATH", *path, "the slab's .safetensors, its manifest, or both names' common stem; or any safetensors file")->required();
  command->callback([path, &common, &status] {
    const SlabPaths paths = SlabPaths::resolve(*path);
    if (path->extension() == ".safetensors" && !std::filesystem::exists(paths.manifest)) {
      inspect_container(*path, common.json);
    } else {
      const Slab slab = Slab::open(*path);
      if (common.json) fmt::print("{}\n", slab_json(slab).dump(2, ' ', true));
      else tell_slab(slab);
      for (const Problem& p : slab.warnings()) fmt::print(stderr, "squareq: warning: {}: {}\n", public_code_name(p.code), printable(p.message, 2048));
    }
    status = 0;
  });
}

}  // namespace squareq::cli
