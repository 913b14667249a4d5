// squareq inspect: what is in a slab. Layers and shapes, bytes by block, what the companion adds.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "squareq/builder/inspect.hpp"
#include "squareq/cli/command.hpp"
#include "squareq/slab/slab.hpp"
#include "squareq/text.hpp"

namespace squareq::cli {
namespace {

using Json = nlohmann::ordered_json;

Json tensor_json(const TensorRecord& t) { return {{"name", printable(t.name, 512)}, {"dtype", dtype_name(t.dtype)}, {"shape", t.shape}, {"bytes", t.bytes()}}; }

double megabytes(std::uint64_t bytes) { return static_cast<double>(bytes) * 1e-6; }

/// Rows by the power of two of their scale, as bars of at most 50 characters.
void tell_scales(const Slab& slab) {
  ScaleHistogram histogram;
  for (std::size_t i = 0; i < slab.layer_count(); ++i) histogram.add(layer_scales(slab, i));
  std::uint64_t most = 1;
  for (const ScaleHistogram::Bin& bin : histogram.bins) most = std::max(most, bin.rows);
  fmt::print("\nscales        {} rows, {:.6g} to {:.6g}{}\n", histogram.rows, histogram.min, histogram.max,
             histogram.floored ? fmt::format(", {} on the floor 1e-8", histogram.floored) : "");
  for (const ScaleHistogram::Bin& bin : histogram.bins) {
    const auto length = static_cast<std::size_t>((bin.rows * 50 + most - 1) / most);
    fmt::print("  [2^{:<4}, 2^{:<4}) {:>10}  {}\n", bin.exponent, bin.exponent + 1, bin.rows, std::string(length, '#'));
  }
}

void tell_record(const char* title, const std::string& json) {
  if (!json.empty()) fmt::print("{:<13} {}\n", title, printable(json, 2000));
}

void tell_slab(const Slab& slab) {
  const SlabBlocks blocks(slab);
  const Manifest& m = slab.manifest();
  fmt::print("slab          {}  {:.2f} MB\n", printable_path(slab.paths().slab), megabytes(slab.file().header().file_bytes));
  fmt::print("architecture  {}\nsignature     {}\nlayers        {}, {:.2f} MB of codes\n\n", printable(m.architecture_id, 256), m.model_signature, m.layers.size(), megabytes(m.total_qweight_bytes()));
  fmt::print("{:<44} {:>7} {:>12}\n", std::string("block (by ") + blocks.source() + ")", "layers", "MB");
  for (const SlabBlocks::Group& g : blocks.groups()) fmt::print("{:<44} {:>7} {:>12.3f}\n", printable(g.name, 44), g.layers, megabytes(g.bytes));
  fmt::print("\n{:<60} {:>8} {:>8} {:>8}  {}\n", "layer", "out", "in", "padded", "bias");
  for (const ManifestLayer& layer : m.layers)
    fmt::print("{:<60} {:>8} {:>8} {:>8}  {}\n", printable(layer.canonical_name, 60), layer.orig_shape[0], layer.orig_shape[1], layer.packed_shape[1], layer.bias_key ? "yes" : "no");
  tell_scales(slab);
  if (!slab.companion()) return fmt::print("\nno companion: a bare V2 pair, without checksums and the unquantized rest of the model\n");
  const Companion& c = *slab.companion();
  fmt::print("\ncompanion     {}  {:.2f} MB\nidentity      {}\n", printable_path(slab.paths().companion), megabytes(c.file.header().file_bytes), c.integrity.id_sha256);
  tell_record("architecture", c.architecture_json);
  tell_record("source", c.source_json);
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
  CLI::App* command = app.add_subcommand("inspect", "Show a slab: layers, shapes, bytes by block, its scales, its companion");
  command->footer("squareq inspect slabs/flux1-dev            every layer, bytes by block, scales as bars, the companion's records\n"
                  "squareq inspect slabs/flux1-dev --json     the same as one JSON object\n"
                  "squareq inspect lora.safetensors           the tensors of any safetensors file");
  command->add_option("PATH", *path, "the slab's .safetensors, its manifest, or both names' common stem; or any safetensors file")->required();
  command->callback([path, &common, &status] {
    const SlabPaths paths = SlabPaths::resolve(*path);
    if (path->extension() == ".safetensors" && !std::filesystem::exists(paths.manifest)) {
      inspect_container(*path, common.json);
    } else {
      const Slab slab = Slab::open(*path);
      if (common.json) fmt::print("{}\n", inspect_json(slab).dump(2, ' ', true));
      else tell_slab(slab);
      for (const Problem& p : slab.warnings()) fmt::print(stderr, "squareq: warning: {}: {}\n", public_code_name(p.code), printable(p.message, 2048));
    }
    status = 0;
  });
}

}  // namespace squareq::cli
