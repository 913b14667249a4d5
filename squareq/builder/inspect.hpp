// What is in a slab, as data: layers, blocks with their bytes, what the companion adds. Behind `squareq inspect` and the contract's
// format.report.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "squareq/architecture/architecture.hpp"
#include "squareq/slab/slab.hpp"

namespace squareq {

/// The architecture that the companion records, checked against the tensors. None for a bare pair or a slab of the generic rule.
/// Throws MD_ARCH where record and tensors disagree.
std::optional<Architecture> slab_architecture(const Slab& slab);

/// Which block a layer belongs to: by the recorded architecture, or, where there is none, by the name up to its first number.
class SlabBlocks {
 public:
  struct Group {
    std::string name;
    std::uint64_t layers = 0, bytes = 0;  ///< bytes of all parts
  };

  explicit SlabBlocks(const Slab& slab);
  const char* source() const { return architecture_ ? "architecture" : "names"; }
  /// "transformer_blocks.3", or "(outside blocks)".
  std::string of(const std::string& layer) const;
  /// Blocks in natural order of their numbers.
  const std::vector<Group>& groups() const { return groups_; }

 private:
  std::optional<Architecture> architecture_;
  std::vector<Group> groups_;
};

/// The object of `squareq inspect --json`.
nlohmann::ordered_json inspect_json(const Slab& slab);

}  // namespace squareq
