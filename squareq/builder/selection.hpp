// Which tensors of a checkpoint are weights and biases of linear layers, which of these are quantized, and what is the rest.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "squareq/builder/checkpoint.hpp"
#include "squareq/slab/report.hpp"

namespace squareq {

struct LinearSource {
  std::string name;                            ///< canonical_name: the module path
  const Checkpoint::Tensor* weight = nullptr;  ///< [out, in]
  const Checkpoint::Tensor* bias = nullptr;    ///< [out]; null for none

  std::uint64_t out() const { return weight->shape[0]; }
  std::uint64_t in() const { return weight->shape[1]; }
};

struct Selection {
  std::optional<Architecture> architecture;
  std::vector<LinearSource> quantized;          ///< in source order
  std::vector<const Checkpoint::Tensor*> rest;  ///< everything else, in source order
  std::string signature;                        ///< over all linears
};

/// True for a 2-D "X.weight" that the generic rule takes for a linear: X's last part is no embedding ("embed", "embedding(s)",
/// "embed_tokens", "wte", "wpe", "shared", "relative_attention_bias"), no position table and no norm.
bool is_generic_linear(const Checkpoint::Tensor& tensor);

/// `architecture`: "auto", "none" or an id (BuildOptions). Warnings go to `report`. Throws MD_ARCH, MD_TENSOR (all findings are
/// counted in the message), MF_NAME, CFG_VALUE.
Selection select(const Checkpoint& checkpoint, const std::string& architecture, const std::vector<std::string>& include_prefixes,
                 Report& report);

}  // namespace squareq
