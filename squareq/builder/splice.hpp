// Whole blocks of one slab in another of the same model. Behind `squareq splice`.
#pragma once

#include <string>
#include <vector>

#include "squareq/slab/assemble.hpp"

namespace squareq {

struct SpliceResult {
  AssembleResult files;
  std::vector<std::string> blocks;                  ///< taken from `other`, in the order of a forward pass
  std::uint64_t layers = 0, companion_tensors = 0;  ///< taken from `other`
};

/// `spec`: parts between commas, each a number or a range "0-4" of blocks in the order of a forward pass (FLUX.1: the double blocks, then
/// the single ones), a block's name ("transformer_blocks.3"), a range of names ("single_transformer_blocks.0-4"), or "outside" for
/// everything that is in no block. Layers of these blocks, and the companion's tensors in them, come from `other`, everything else,
/// manifest fields too, from `base`. The companion's source record says so: its "spliced" holds the blocks, the other slab's id and source.
/// Throws MF_SIGNATURE, MF_ARCH, MD_ARCH (the architecture records differ; one slab has a companion, the other not), MD_LAYER (a layer is
/// in one only, or shapes, pad_k or biases differ), MD_TENSOR (companion tensors differ in names, dtypes or shapes), CFG_VALUE (the spec is
/// malformed, names no block, or numbers blocks of a slab whose architecture is not known; target is a source), and what SlabAssembly
/// throws.
SpliceResult splice_slab(const Slab& base, const Slab& other, const std::string& spec, const SlabPaths& target,
                         const AssembleOptions& options);

}  // namespace squareq
