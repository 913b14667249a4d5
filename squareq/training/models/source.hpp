// From files to a recognised model: what a path is, its tensors by the model's own names, and the layout under diffusers names.
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "squareq/architecture/architecture.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/training/models/linears.hpp"

namespace squareq::training {

/// True for a manifest, a companion, or a slab or stem whose manifest exists.
bool is_slab(const std::filesystem::path& path);

/// Float tensors of a checkpoint or a companion, by name without the file's prefix.
class TensorFiles {
 public:
  /// A file, a *.safetensors.index.json, or a folder that holds either. Throws the reader's codes.
  static TensorFiles open_checkpoint(const std::filesystem::path& path);
  /// All tensors of one open file.
  static TensorFiles of(std::shared_ptr<const SafetensorsFile> file);

  const std::vector<TensorShape>& shapes() const { return shapes_; }
  const std::string& config_json() const { return config_json_; }
  /// The rows that `view` names, as a tensor of `dtype` (the file's F64, F32, F16 or BF16 values, rounded where that is narrower).
  /// MD_TENSOR where the tensor is missing or no float tensor.
  torch::Tensor read(const RowView& view, torch::Dtype dtype) const;

 private:
  struct Entry {
    FileDtype dtype;
    std::vector<std::uint64_t> shape;
    std::uint64_t bytes = 0;
    std::function<void(std::uint64_t offset, void* destination, std::uint64_t bytes)> read;
  };
  torch::Tensor read_rows(const RowView& view, torch::Dtype dtype) const;

  std::string path_;
  std::map<std::string, Entry> entries_;
  std::vector<TensorShape> shapes_;
  std::string config_json_;
};

/// A recognised model.
struct ModelLayout {
  ModelConfig config;
  Architecture architecture;                ///< in the file's own naming scheme
  std::vector<LinearInfo> linears;          ///< diffusers names
  std::vector<bool> biased;                 ///< by linear
  std::map<std::string, Placement> native;  ///< by diffusers name

  /// Where the file holds the tensor that diffusers calls `name`; MD_TENSOR for an unknown one.
  RowView locate(const std::string& name) const;
};

/// The layout of a recognised model whose every tensor is compared with `tensors`. Throws MD_ARCH (nothing recognised, not supported
/// here, RoPE axes unknown) or the first MD_TENSOR problem.
ModelLayout layout_of(const std::optional<Architecture>& found, const std::vector<TensorShape>& tensors, const std::string& file);

/// The text of OpenOptions::config, or `found` where that is unset.
std::string config_text(const OpenOptions& options, const std::string& found);

}  // namespace squareq::training
