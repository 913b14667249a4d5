// Is this slab of this checkpoint? By topology (names and shapes), and by numbers: every layer is quantized again and compared.
#pragma once

#include <atomic>
#include <optional>
#include <string>

#include "squareq/builder/checkpoint.hpp"
#include "squareq/builder/selection.hpp"
#include "squareq/slab/slab.hpp"

namespace squareq {

/// The checkpoint's linears as the slab was built from them: recognised, or by the generic rule where only its signature is the slab's.
Selection select_like(const Checkpoint& checkpoint, const std::string& slab_signature);

/// Every layer of the manifest against the model's linears: MD_LAYER for one that the model has not, or has with another shape or bias.
/// Compares nothing where the signatures differ (MF_SIGNATURE is validate()'s to report, see ValidateOptions).
void check_topology(const Selection& model, const ParsedManifest& manifest, const std::string& file, Report& report);

struct SourceCheckOptions {
  std::string backend = "cpu";                   ///< whose quantize does the arithmetic, as in a build
  unsigned threads = 0;                          ///< 0: all cores; each holds a chunk of at most 8 MiB of weights and its codes
  const std::atomic<bool>* cancelled = nullptr;  ///< set: IO_INTERRUPTED
  Progress progress;                             ///< source bytes
};

/// Quantizes every layer of the slab again from the checkpoint and compares codes, scales, zero points and biases bit for bit, and the
/// companion's tensors, if there is a companion, with the rest of the checkpoint (same dtype: bytes; else as fp32 numbers). Differences go
/// to `report` as MD_BASE, one per tensor, with the first row and both values; a companion tensor that is missing, superfluous or of
/// another shape as MD_TENSOR. Throws IO_*, CFG_BACKEND, DT_WEIGHT_NONFINITE. Layers that check_topology refuses are passed over.
void compare_with_source(const Slab& slab, const Checkpoint& checkpoint, const Selection& model, const SourceCheckOptions& options,
                         Report& report);

/// The checkpoint's tensors that are neither weight nor bias of one of the slab's layers, in source order: what its companion holds.
std::vector<const Checkpoint::Tensor*> rest_of(const Checkpoint& checkpoint, const Manifest& manifest);

}  // namespace squareq
