// A float checkpoint, whatever its packaging: one .safetensors file, a sharded *.safetensors.index.json, or a folder with either.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "squareq/architecture/architecture.hpp"
#include "squareq/slab/safetensors.hpp"

namespace squareq {

class Checkpoint {
 public:
  struct Tensor {
    std::string name;  ///< without prefix()
    FileDtype dtype = FileDtype::F32;
    std::vector<std::uint64_t> shape;
    std::uint64_t bytes = 0;
    std::size_t file = 0;    ///< index into files()
    std::size_t record = 0;  ///< index into that file's header
  };

  /// A folder is searched for one index or one .safetensors (diffusers' own names first), then its transformer/ or unet/ subfolder;
  /// the config.json beside it is read. Throws IO_MISSING (nothing found: names what lies there instead; a shard is absent),
  /// IO_ESCAPE (an index names a file outside its folder), MD_INDEX (index malformed), MD_TENSOR (a tensor that the index names is
  /// not in its shard, that a shard holds twice over, or that no index entry names), ST_* and IO_* of the files.
  static Checkpoint open(const std::filesystem::path& source);

  /// "model.diffusion_model.", "diffusion_model." or "". Tensors outside a prefix (text encoders, VAE) are not listed.
  const std::string& prefix() const { return prefix_; }
  std::size_t tensors_outside_prefix() const { return outside_; }
  /// In file and offset order.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  /// Null when absent.
  const Tensor* find(std::string_view name) const;
  /// Names and shapes, for recognise().
  std::vector<TensorShape> shapes() const;

  /// `bytes` of a tensor from its byte `offset`, in the source's dtype. Thread-safe. CALL_VALUE outside; IO_*.
  void read(const Tensor& tensor, std::uint64_t offset, void* destination, std::uint64_t bytes) const;
  /// Asks the kernel to start reading these bytes (clipped to the tensor). Never fails.
  void prefetch(const Tensor& tensor, std::uint64_t offset, std::uint64_t bytes) const;
  /// IO_CHANGED when the tensor's file is no longer what it was at open.
  void check_unchanged(const Tensor& tensor) const { files_[tensor.file].check_unchanged(); }

  const std::vector<SafetensorsFile>& files() const { return files_; }
  /// Text of config.json; empty when there is none.
  const std::string& config_json() const { return config_json_; }
  const std::filesystem::path& source() const { return source_; }
  /// Warnings of the files' headers.
  std::vector<Problem> warnings() const;

 private:
  void add_file(SafetensorsFile file);
  void finish();

  std::filesystem::path source_;
  std::vector<SafetensorsFile> files_;
  std::vector<Tensor> tensors_;
  std::unordered_map<std::string, std::size_t> by_name_;
  std::string prefix_, config_json_;
  std::size_t outside_ = 0;
};

}  // namespace squareq
