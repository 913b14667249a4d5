#include "squareq/architecture/architecture.hpp"

#include <nlohmann/json.hpp>

#include "squareq/architecture/data.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

std::string text(const std::vector<std::uint64_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

std::optional<RowView> look_up(const std::unordered_map<std::string, RowView>& views, std::string_view name) {
  const auto found = views.find(std::string(name));
  return found == views.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace

const std::string& Architecture::id() const { return data_->id; }
const std::string& Architecture::family() const { return data_->family; }
const std::string& Architecture::scheme() const { return data_->scheme; }
const std::string& Architecture::native_scheme() const { return data_->native_scheme; }
bool Architecture::published() const { return data_->published; }
const ArchitectureConfig& Architecture::config() const { return data_->config; }
const std::vector<ArchitectureLayer>& Architecture::layers() const { return data_->layers; }
const std::vector<ArchitectureBlock>& Architecture::blocks() const { return data_->blocks; }
const std::vector<TensorShape>& Architecture::tensors() const { return data_->tensors; }
const std::vector<TensorShape>& Architecture::diffusers_tensors() const { return data_->diffusers_tensors; }

const ArchitectureLayer* Architecture::find_layer(std::string_view name) const {
  const auto found = data_->layer_index.find(std::string(name));
  return found == data_->layer_index.end() ? nullptr : &data_->layers[found->second];
}

std::optional<std::size_t> Architecture::block_of(std::string_view layer) const {
  const ArchitectureLayer* found = find_layer(layer);
  return found ? found->block : std::nullopt;
}

std::optional<RowView> Architecture::native(std::string_view name) const { return look_up(data_->native, name); }
std::optional<RowView> Architecture::kohya(std::string_view layer) const { return look_up(data_->kohya, layer); }

std::optional<RowView> Architecture::locate(std::string_view name) const {
  std::optional<RowView> view = native(name);
  if (view && data_->scheme == "diffusers") *view = {std::string(name), 0, view->rows, view->rows, false};
  return view;
}

std::vector<Problem> Architecture::check(std::span<const TensorShape> tensors, const std::string& file) const {
  std::unordered_map<std::string_view, const std::vector<std::uint64_t>*> found;
  for (const TensorShape& t : tensors) found.emplace(t.name, &t.shape);
  std::vector<Problem> problems;
  const auto add = [&](const std::string& what, const std::string& name) {
    problems.push_back({Code::MD_TENSOR, data_->id + " (" + data_->scheme + " names): " + what, file, "", printable(name)});
  };
  for (const TensorShape& expected : data_->tensors) {
    const auto at = found.find(expected.name);
    if (at == found.end()) {
      add("tensor " + expected.name + " " + text(expected.shape) + " is missing", expected.name);
      continue;
    }
    if (*at->second != expected.shape)
      add("tensor " + expected.name + " is " + text(*at->second) + ", expected " + text(expected.shape), expected.name);
    found.erase(at);
  }
  for (const TensorShape& t : tensors)
    if (found.contains(t.name)) add("unexpected tensor " + printable(t.name) + " " + text(t.shape), t.name);
  return problems;
}

std::string Architecture::json(std::string_view config_json) const {
  const ArchitectureConfig& c = data_->config;
  nlohmann::ordered_json record = {{"id", data_->id},
                                   {"family", data_->family},
                                   {"scheme", data_->scheme},
                                   {"published", data_->published},
                                   {"config",
                                    {{"hidden", c.hidden},
                                     {"heads", c.heads},
                                     {"head_dim", c.head_dim},
                                     {"mlp_hidden", c.mlp_hidden},
                                     {"in_channels", c.in_channels},
                                     {"out_channels", c.out_channels},
                                     {"context_dim", c.context_dim},
                                     {"pooled_dim", c.pooled_dim},
                                     {"patch_size", c.patch_size},
                                     {"rope_axes", c.rope_axes},
                                     {"rope_theta", c.rope_theta},
                                     {"guidance", c.guidance},
                                     {"qk_norm", c.qk_norm},
                                     {"depths", c.depths}}}};
  if (!config_json.empty()) record["config_json"] = nlohmann::ordered_json::parse(config_json);
  return record.dump();
}

}  // namespace squareq
