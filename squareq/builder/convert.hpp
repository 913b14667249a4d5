// A slab under the other names of its model, without a new number: rows move, codes and scales stay. And the companion that a bare pair
// lacks, from the checkpoint that the pair was made from.
#pragma once

#include <filesystem>
#include <string>

#include "squareq/builder/check_source.hpp"
#include "squareq/slab/assemble.hpp"

namespace squareq {

/// Publishes the slab under the names of `scheme` ("diffusers", or the family's other one: "bfl", "sai", "sgm"). The pair is byte-identical
/// to what build() makes from the checkpoint in those names, and so are the companion's tensors and architecture record; its source record
/// stays that of the checkpoint that was read. Fused layers of the other scheme are rows joined in the registry's order; the two halves of
/// a final modulation change places where the schemes hold them in different orders.
/// Throws MD_ARCH (no companion or none that records an architecture), CFG_VALUE (scheme unknown, or the slab's own; target is the source),
/// MD_LAYER (layers to be joined differ: quantized or not, pad_k, bias), MD_TENSOR (dtypes of tensors to be joined differ; not the model's
/// tensors), MF_SIGNATURE (not the signature of the architecture's linears), and what SlabAssembly throws.
AssembleResult convert_slab(const Slab& slab, const std::string& scheme, const SlabPaths& target, const AssembleOptions& options);

/// Writes the companion of the bare pair `slab` beside it, the same bytes that build() would have written with architecture "auto" (a pair
/// does not say which rule chose its layers), after comparing every number of the pair with the checkpoint. Throws CFG_VALUE (there is a companion), MF_SIGNATURE, MD_LAYER, MD_BASE (the checkpoint is not the
/// pair's source: the first finding, and how many more) and the codes of compare_with_source.
AssembleResult add_companion(const Slab& slab, const std::filesystem::path& checkpoint, const SourceCheckOptions& options);

}  // namespace squareq
