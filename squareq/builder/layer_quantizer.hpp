// One worker's share of a build: reads a layer in row chunks, lets the backend quantize each, hashes and writes the result.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "squareq/builder/journal.hpp"
#include "squareq/builder/row_quantizer.hpp"
#include "squareq/builder/selection.hpp"
#include "squareq/contract.hpp"
#include "squareq/slab/manifest.hpp"
#include "squareq/slab/writer.hpp"

namespace squareq {

/// What all workers of a build share. `done` counts source bytes.
struct BuildShare {
  const Checkpoint& checkpoint;
  SafetensorsWriter& slab;
  std::atomic<std::uint64_t>& done;
  const std::atomic<bool>& stop;  ///< another worker failed, or the user interrupted
};

/// Thrown through a worker that was told to stop; never leaves build().
struct Stopped {};

class LayerQuantizer {
 public:
  /// Resident memory: about `chunk_bytes` of source and at most as much of codes, plus one layer's scales.
  LayerQuantizer(const BuildShare& share, Context backend, std::uint64_t chunk_bytes = 8u << 20)
      : share_(share), rows_(std::move(backend)), chunk_bytes_(chunk_bytes) {}

  /// Quantizes and writes one layer. DT_WEIGHT_NONFINITE (layer, row, column), DT_BIAS_NONFINITE, IO_*.
  JournalEntry run(const LinearSource& source, const ManifestLayer& layer);
  /// True when the partial file holds the layer that `entry` vouches for.
  bool holds(const ManifestLayer& layer, const JournalEntry& entry) const;

 private:
  void write_bias(const LinearSource& source, const ManifestLayer& layer, JournalEntry& entry);

  BuildShare share_;
  RowQuantizer rows_;
  std::uint64_t chunk_bytes_;
  std::vector<std::int8_t> codes_;
  std::vector<float> scale_, zero_point_;
};

}  // namespace squareq
