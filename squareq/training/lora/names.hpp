// A model's linear layers under the names that LoRA files use: diffusers' own, the publisher's fused modules ("native"), kohya's.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/architecture/architecture.hpp"

namespace squareq::training {

/// One diffusers layer as rows [first_row, first_row + rows) of its native module. `swap_halves`: the module holds the two halves of
/// these rows in the opposite order.
struct LoraPart {
  std::string layer;
  std::uint64_t first_row = 0, rows = 0;
  bool swap_halves = false;
};

/// A linear of the native layout, whole: what a kohya or ComfyUI adapter is attached to.
struct LoraModule {
  std::string native;  ///< "double_blocks.0.img_attn.qkv"
  std::string kohya;   ///< "lora_unet_double_blocks_0_img_attn_qkv"
  std::uint64_t out = 0, in = 0;
  std::vector<LoraPart> parts;  ///< by first_row; together they cover every row

  bool fused() const { return parts.size() > 1; }
};

/// Immutable after construction; safe to share.
class LoraNames {
 public:
  /// Any scheme: modules and parts follow from the model's diffusers names.
  explicit LoraNames(const Architecture& model);

  /// Every native module, in model order.
  const std::vector<LoraModule>& modules() const { return modules_; }
  /// By "double_blocks.0.img_attn.qkv", by kohya's module, or by the diffusers layer that is one of its parts; null for unknown names.
  const LoraModule* by_native(std::string_view name) const { return find(native_, name); }
  const LoraModule* by_kohya(std::string_view name) const { return find(kohya_, name); }
  const LoraModule* by_layer(std::string_view name) const { return find(layer_, name); }
  /// The diffusers layer whose dots became underscores ("transformer_blocks_0_attn_to_q"); empty for unknown names.
  std::string_view layer_by_underscores(std::string_view name) const;

  const std::string& family() const { return family_; }
  /// Id of the published model, or the family's where the sizes are nobody's published ones.
  const std::string& id() const { return id_; }

 private:
  using Index = std::map<std::string, std::size_t, std::less<>>;
  const LoraModule* find(const Index& index, std::string_view name) const;

  std::string family_, id_;
  std::vector<LoraModule> modules_;
  Index native_, kohya_, layer_;
  std::map<std::string, std::string, std::less<>> underscores_;
};

}  // namespace squareq::training
