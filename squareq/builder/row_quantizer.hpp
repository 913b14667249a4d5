// Rows of a checkpoint's linear through a backend's quantize: what a build writes, and what a check of a slab against its source compares.
#pragma once

#include <cstdint>
#include <vector>

#include "squareq/builder/selection.hpp"
#include "squareq/contract.hpp"
#include "squareq/slab/manifest.hpp"

namespace squareq {

/// A deterministic context of one thread: the backend runs on the workers' threads.
Context one_thread_context(const Implementation& implementation);

/// Where results go: codes [rows, padded in] I8, scale [rows] and zero_point [rows] F32.
struct QuantizedRows {
  std::int8_t* codes;
  float* scale;
  float* zero_point;
};

/// Not thread-safe; each worker has its own.
class RowQuantizer {
 public:
  explicit RowQuantizer(Context backend) : backend_(std::move(backend)) {}
  /// Reads and quantizes rows [first_row, first_row + rows). Returns how many are on the 1e-8 scale floor. DT_WEIGHT_NONFINITE (layer,
  /// row, column), IO_*.
  std::uint64_t run(const Checkpoint& checkpoint, const LinearSource& source, const ManifestLayer& layer, std::uint64_t first_row,
                    std::uint64_t rows, const QuantizedRows& out);

 private:
  Context backend_;
  std::vector<std::byte> weights_;
};

/// The bias in fp32, as a slab holds it. DT_BIAS_NONFINITE (layer, row), IO_*.
std::vector<float> read_bias(const Checkpoint& checkpoint, const LinearSource& source);

}  // namespace squareq
