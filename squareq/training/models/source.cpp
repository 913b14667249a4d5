#include "squareq/training/models/source.hpp"

#include <fmt/format.h>

#include <cstring>

#include "squareq/builder/checkpoint.hpp"
#include "squareq/error.hpp"
#include "squareq/slab/slab.hpp"
#include "squareq/tensor.hpp"
#include "squareq/text.hpp"
#include "squareq/training/tensor_bridge.hpp"

namespace squareq::training {

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kConfigLimit = 1u << 20;

std::string without_suffix(std::string name, std::string_view suffix) {
  if (name.ends_with(suffix)) name.resize(name.size() - suffix.size());
  return name;
}

Placement placement_of(const RowView& view) {
  const auto first = static_cast<std::int64_t>(view.first_row), rows = static_cast<std::int64_t>(view.rows);
  Placement place{without_suffix(view.tensor, ".weight"), {{first, rows}}, static_cast<std::int64_t>(view.total_rows)};
  if (view.swap_halves) place.rows = {{first + rows / 2, rows - rows / 2}, {first, rows / 2}};
  return place;
}

ModelConfig config_of(const Architecture& architecture, const std::string& file) {
  const ArchitectureConfig& a = architecture.config();
  const auto depth = [&](const char* kind) {
    const auto at = a.depths.find(kind);
    return at == a.depths.end() ? 0 : at->second;
  };
  ModelConfig c;
  c.architecture = architecture.family();
  c.patch_size = a.patch_size;
  c.in_channels = a.in_channels;
  c.out_channels = a.out_channels;
  c.num_layers = depth("double");
  c.num_single_layers = depth("single");
  c.attention_head_dim = a.head_dim;
  c.num_attention_heads = a.heads;
  c.joint_attention_dim = a.context_dim;
  c.pooled_projection_dim = a.pooled_dim;
  c.guidance_embeds = a.guidance;
  c.axes_dims_rope = a.rope_axes;
  std::int64_t sum = 0;
  for (const std::int64_t axis : c.axes_dims_rope) sum += axis;
  if (c.axes_dims_rope.empty())
    throw Error(Code::MD_ARCH,
                fmt::format("the RoPE axes of head size {} are not known; give a config.json with axes_dims_rope (--config)", a.head_dim),
                file);
  if (sum != a.head_dim) throw Error(Code::MD_ARCH, fmt::format("axes_dims_rope sums to {}, the head size is {}", sum, a.head_dim), file);
  return c;
}

}  // namespace

bool is_slab(const fs::path& path) {
  const std::string name = path.filename().string();
  if (name.ends_with(".manifest.json") || name.ends_with(".companion.safetensors")) return true;
  std::error_code ignored;
  return !fs::is_directory(path, ignored) && fs::exists(SlabPaths::resolve(path).manifest, ignored);
}

TensorFiles TensorFiles::open_checkpoint(const fs::path& path) {
  const auto checkpoint = std::make_shared<const Checkpoint>(Checkpoint::open(path));
  TensorFiles files;
  files.path_ = path.string();
  files.shapes_ = checkpoint->shapes();
  files.config_json_ = checkpoint->config_json();
  for (const Checkpoint::Tensor& tensor : checkpoint->tensors())
    files.entries_.emplace(tensor.name, Entry{tensor.dtype, tensor.shape, tensor.bytes,
                                              [checkpoint, &tensor](std::uint64_t offset, void* to, std::uint64_t bytes) {
                                                checkpoint->read(tensor, offset, to, bytes);
                                              }});
  return files;
}

TensorFiles TensorFiles::of(std::shared_ptr<const SafetensorsFile> file) {
  TensorFiles files;
  files.path_ = file->path().string();
  for (const TensorRecord& record : file->header().tensors) {
    files.shapes_.push_back({record.name, record.shape});
    files.entries_.emplace(record.name, Entry{record.dtype, record.shape, record.bytes(),
                                              [file, &record](std::uint64_t offset, void* to, std::uint64_t bytes) {
                                                file->read(record, offset, to, bytes);
                                              }});
  }
  return files;
}

torch::Tensor TensorFiles::read_rows(const RowView& view, torch::Dtype dtype) const {
  const std::string name = printable(view.tensor);
  const auto at = entries_.find(view.tensor);
  if (at == entries_.end()) throw Error(Code::MD_TENSOR, fmt::format("tensor '{}' is missing", name), path_, {}, name);
  const Entry& entry = at->second;
  const auto sq = to_sq_dtype(entry.dtype);
  if (!sq || (*sq != SQ_F32 && *sq != SQ_F16 && *sq != SQ_BF16 && *sq != SQ_F64))
    throw Error(Code::MD_TENSOR, fmt::format("tensor '{}' is {}, expected F32, F16, BF16 or F64", name, squareq::dtype_name(entry.dtype)),
                path_, {}, name);
  std::vector<std::int64_t> shape(entry.shape.begin(), entry.shape.end());
  if (shape.empty() || view.first_row + view.rows > entry.shape[0])
    throw Error(Code::MD_TENSOR,
                fmt::format("tensor '{}' has shape {}, rows {} to {} are wanted", name, shape_text(shape), view.first_row,
                            view.first_row + view.rows),
                path_, {}, name);
  const std::uint64_t row_bytes = entry.shape[0] ? entry.bytes / entry.shape[0] : 0;
  shape[0] = static_cast<std::int64_t>(view.rows);
  torch::Tensor tensor = torch::empty(shape, to_torch_dtype(*sq));
  if (tensor.numel()) entry.read(view.first_row * row_bytes, tensor.data_ptr(), view.rows * row_bytes);
  return tensor.to(dtype);
}

torch::Tensor TensorFiles::read(const RowView& view, torch::Dtype dtype) const {
  torch::Tensor tensor = read_rows(view, dtype);
  if (!view.swap_halves) return tensor;
  const auto half = static_cast<std::int64_t>(view.rows / 2);
  return torch::cat({tensor.slice(0, half), tensor.slice(0, 0, half)});
}

RowView ModelLayout::locate(const std::string& name) const {
  const auto view = architecture.locate(name);
  if (!view) throw Error(Code::MD_TENSOR, fmt::format("the model has no tensor '{}'", printable(name)), {}, {}, printable(name));
  return *view;
}

ModelLayout layout_of(const std::optional<Architecture>& found, const std::vector<TensorShape>& tensors, const std::string& file) {
  if (!found) throw Error(Code::MD_ARCH, "no known architecture has these tensors", file);
  if (found->family() != "flux1")
    throw Error(Code::MD_ARCH, fmt::format("architecture {} is recognised, but only the flux1 family can be run here", found->id()), file);
  if (const std::vector<Problem> problems = found->check(tensors, file); !problems.empty()) throw Error(problems.front());
  ModelLayout layout{config_of(*found, file), *found, {}, {}, {}};
  const std::optional<Architecture> diffusers = recognise(found->diffusers_tensors());
  if (!diffusers) throw Error(Code::INTERNAL, "the architecture's diffusers names are not recognised", file);
  for (const ArchitectureLayer& layer : diffusers->layers()) {
    layout.linears.push_back({layer.name, static_cast<std::int64_t>(layer.in), static_cast<std::int64_t>(layer.out),
                              layer.block ? static_cast<std::int64_t>(*layer.block) : -1});
    layout.biased.push_back(layer.bias);
    if (const auto native = diffusers->native(layer.name + ".weight")) layout.native.emplace(layer.name, placement_of(*native));
  }
  return layout;
}

std::string config_text(const OpenOptions& options, const std::string& found) {
  return options.config ? read_text(*options.config, kConfigLimit, Code::CFG_JSON) : found;
}

}  // namespace squareq::training
