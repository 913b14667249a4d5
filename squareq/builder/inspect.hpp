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

/// Names and shapes of the slab's and its companion's tensors as the checkpoint had them: a layer stands for its weight and bias.
std::vector<TensorShape> original_shapes(const Slab& slab);

/// The architecture that the companion records, checked against the tensors. None for a bare pair or a slab of the generic rule.
/// Throws MD_ARCH (the record is malformed or names another model than the tensors) and MD_TENSOR (a tensor is missing or of a wrong size).
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
  /// In the order of a forward pass where the architecture is known, else in natural order; without the layers outside blocks.
  std::vector<std::string> names() const;
  /// The block that a tensor of the companion belongs to: "transformer_blocks.3.norm.weight" -> "transformer_blocks.3".
  std::string of_tensor(const std::string& tensor) const;
  static const char* outside();
  bool by_architecture() const { return architecture_.has_value(); }

 private:
  std::optional<Architecture> architecture_;
  std::vector<Group> groups_;
  std::vector<std::string> block_names_;
};

/// How scales are distributed: rows by the power of two at or below their scale.
struct ScaleHistogram {
  struct Bin {
    int exponent = 0;  ///< scales in [2^exponent, 2^(exponent + 1))
    std::uint64_t rows = 0;
  };
  std::vector<Bin> bins;  ///< ascending, without gaps from the smallest to the largest scale
  std::uint64_t rows = 0;
  std::uint64_t floored = 0;  ///< rows on the builder's floor, 1e-8
  float min = 0, max = 0;
  void add(const std::vector<float>& scales);
};

/// Scales of one layer, read from the slab. They are finite and positive: that is checked at open.
std::vector<float> layer_scales(const Slab& slab, std::size_t layer);

/// The object of `squareq inspect --json`.
nlohmann::ordered_json inspect_json(const Slab& slab);

}  // namespace squareq
