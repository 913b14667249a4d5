// The checks that need more than one file: tensors against manifest, numbers inside tensors, companion against pair.
// Internal to squareq/slab; slab.hpp is the door.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/slab/companion.hpp"
#include "squareq/slab/manifest.hpp"
#include "squareq/slab/slab.hpp"

namespace squareq {

/// Names and ranks of a slab's tensors: MF_NAME, ST_RANK.
void check_slab_tensors(const SafetensorsFile& slab, Report& report);

/// Section 4.3: presence, dtype and shape of every layer's tensors, and tensors that no layer names. Returns, per layer, the tensors
/// that are fit to be read (null where they are not).
std::vector<LayerTensors> check_pair(const ParsedManifest& manifest, const SafetensorsFile& slab, Report& report);

/// Section 5, what is scanned at open: scale, zero point and bias of one layer.
void check_numbers(const ManifestLayer& layer, const LayerTensors& tensors, const SafetensorsFile& slab, Report& report);

/// Codes and padding of one qweight, fed in pieces of any size and in any order.
class CodeScan {
 public:
  explicit CodeScan(const ManifestLayer& layer) : columns_(layer.packed_shape[1]), used_(layer.orig_shape[1]) {}
  /// `bytes` codes that start at element `offset` of the tensor.
  void feed(std::uint64_t offset, const std::int8_t* codes, std::size_t bytes);
  void tell(const ManifestLayer& layer, const std::string& file, Report& report) const;

 private:
  struct Fault {
    std::uint64_t elements = 0, row = 0, column = 0;
    void note(std::uint64_t r, std::uint64_t c);
  };
  std::uint64_t columns_, used_;
  Fault minimum_, padding_;
};

/// MF_PAIR, MF_INTEGRITY: the companion's record against the slab and manifest beside it.
void check_companion(const Companion& companion, const SafetensorsFile& slab, std::string_view manifest, Report& report);

/// Reads every byte of slab and companion: DT_CHECKSUM where there is a companion, codes and padding always.
void check_bytes(const ParsedManifest& manifest, const std::vector<LayerTensors>& tensors, const SafetensorsFile& slab, const Companion* companion,
                 const ValidateOptions& options, Report& report);

}  // namespace squareq
