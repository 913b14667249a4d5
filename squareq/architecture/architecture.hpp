// What is known about a diffusion transformer from the names and shapes of its tensors: family and variant, blocks, linears, sizes,
// and the map between the names of diffusers, of the original publisher ("native": BFL, SAI, sgm) and of kohya's LoRA files.
// The knowledge itself is data, spec/registry/architectures/*.json, compiled in. No torch; immutable values, safe to share.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "squareq/error.hpp"

namespace squareq {

/// A tensor of a checkpoint: its name without the file's prefix, and its shape in PyTorch order.
struct TensorShape {
  std::string name;
  std::vector<std::uint64_t> shape;
};

/// Sizes of a model. 0 or empty: the architecture has no such size, or the keys do not tell (rope_axes of an unusual head_dim).
struct ArchitectureConfig {
  std::int64_t hidden = 0;       ///< channels of the token stream (SDXL: of the first level)
  std::int64_t heads = 0;        ///< hidden / head_dim
  std::int64_t head_dim = 0;     ///< length of the qk-norm where there is one
  std::int64_t mlp_hidden = 0;   ///< width of the MLP's second linear's input
  std::int64_t in_channels = 0;  ///< features of one token or latent channels
  std::int64_t out_channels = 0;
  std::int64_t context_dim = 0;  ///< features of encoder_hidden_states
  std::int64_t pooled_dim = 0;   ///< features of pooled_projections (SDXL: of the added embedding)
  std::int64_t patch_size = 1;
  std::vector<std::int64_t> rope_axes;
  double rope_theta = 0;
  bool guidance = false;
  bool qk_norm = false;
  std::map<std::string, std::int64_t> depths;  ///< by kind of block: {"double", 19}, {"single", 38}
};

/// One linear layer: y = x W^T + b, W [out, in].
struct ArchitectureLayer {
  std::string name;  ///< module path in the checkpoint's own naming scheme
  std::uint64_t out = 0, in = 0;
  bool bias = false;
  std::optional<std::size_t> block;  ///< index into blocks(); none for linears outside
};

/// One of the repeated transformer blocks, in the order in which a forward pass visits them.
struct ArchitectureBlock {
  std::string name;                 ///< "transformer_blocks.0", "double_blocks.0"
  std::string kind;                 ///< "double", "single", "joint", "transformer"
  std::size_t index = 0;            ///< within its kind
  std::vector<std::size_t> layers;  ///< indices into layers()
};

/// Where a tensor lies: rows [first_row, first_row + rows) of `tensor`, which has `total_rows`. With `swap_halves` the two halves
/// of these rows stand in the opposite order there (final adaLN: (shift, scale) against (scale, shift)).
struct RowView {
  std::string tensor;
  std::uint64_t first_row = 0, rows = 0, total_rows = 0;
  bool swap_halves = false;

  bool whole() const { return rows == total_rows && !swap_halves; }
  bool operator==(const RowView&) const = default;
};

class Architecture {
 public:
  /// "flux1-dev", "flux1-schnell", "flux2-dev", "flux2-klein-4b", "flux2-klein-9b", "sd3-medium", "sd3.5-medium", "sd3.5-large",
  /// "sdxl". A model of the same structure and other sizes gets the id of its structural twin and published() == false.
  const std::string& id() const;
  const std::string& family() const;         ///< "flux1", "flux2", "sd3", "sdxl"
  const std::string& scheme() const;         ///< "diffusers", "bfl", "sai", "sgm": how this checkpoint names its tensors
  const std::string& native_scheme() const;  ///< the family's other scheme
  bool published() const;                    ///< every size is that of the published model
  const ArchitectureConfig& config() const;

  /// Every linear, outside ones first, then block by block; and the blocks. Names in scheme().
  const std::vector<ArchitectureLayer>& layers() const;
  const std::vector<ArchitectureBlock>& blocks() const;
  const ArchitectureLayer* find_layer(std::string_view name) const;
  std::optional<std::size_t> block_of(std::string_view layer) const;
  /// True for the module path of a linear; false for embeddings, convolutions, norms, positional tables and unknown names.
  bool is_linear(std::string_view module) const { return find_layer(module) != nullptr; }

  /// Every tensor that a checkpoint in scheme() holds, in model order.
  const std::vector<TensorShape>& tensors() const;
  /// Every tensor by its diffusers name and shape, in model order, whatever the scheme.
  const std::vector<TensorShape>& diffusers_tensors() const;
  /// Where the checkpoint (in scheme()) holds the tensor that diffusers calls `name`; none for an unknown name.
  std::optional<RowView> locate(std::string_view name) const;
  /// Where the native layout holds the tensor that diffusers calls `name`; none for an unknown name.
  std::optional<RowView> native(std::string_view name) const;
  /// kohya's module ("lora_unet_double_blocks_0_img_attn_qkv") and the rows of it that the layer called `layer` in scheme() makes up.
  std::optional<RowView> kohya(std::string_view layer) const;

  /// Missing, unexpected and mis-shaped tensors as MD_TENSOR, all of them. Empty: the checkpoint is exactly this model.
  std::vector<Problem> check(std::span<const TensorShape> tensors, const std::string& file = {}) const;

  /// {"id","family","scheme","published","config":{...}[,"config_json":{...}]}: what a slab's companion records. `config_json`
  /// is the source's own, already accepted by recognise().
  std::string json(std::string_view config_json = {}) const;

  struct Data;
  explicit Architecture(std::shared_ptr<const Data> data) : data_(std::move(data)) {}

 private:
  std::shared_ptr<const Data> data_;
};

/// The prefix that the file puts before the model's own names: "model.diffusion_model.", "diffusion_model." or "".
std::string_view detect_prefix(std::span<const TensorShape> tensors);

/// Recognises names without prefix. `config_json` is the text of diffusers' config.json where there is one: it supplies what keys
/// cannot tell (RoPE axes) and must agree with them. None where no family matches. Throws MD_ARCH (config.json malformed, or a
/// size that contradicts the tensors: both values named) and MD_TENSOR (block numbers with holes, sizes that cannot be).
/// Call check() for the tensor-by-tensor comparison.
std::optional<Architecture> recognise(std::span<const TensorShape> tensors, std::string_view config_json = {});

/// Recognises the tensors of a slab and its companion, given the record that json() wrote. Throws MD_ARCH where the record is
/// malformed or names another architecture than the tensors.
Architecture recognise_recorded(std::span<const TensorShape> tensors, std::string_view record);

/// A published model by id, in "diffusers" or its native scheme. Throws MD_ARCH naming the known ids.
Architecture published_architecture(std::string_view id, std::string_view scheme = "diffusers");

/// Ids of all published models, in registry order.
std::vector<std::string> architecture_ids();

}  // namespace squareq
