// A training run's state on disk: adapters, optimizer moments and where the run stood, as one safetensors file per checkpoint with a
// JSON record in its header (never a pickle). Random draws need no state: they are functions of seed and step. No torch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "squareq/error.hpp"

namespace squareq::training {

/// What has to be the same for a run to go on.
struct RunIdentity {
  std::string base;                             ///< identity of the frozen weights (slab id_sha256)
  std::map<std::string, std::string> settings;  ///< "seed", "batch", "accumulation", "rows", "dtype", ... as text
  struct Layer {
    std::string name;
    std::int64_t rank = 0, in = 0, out = 0;
    double alpha = 0;
    bool operator==(const Layer&) const = default;
  };
  std::vector<Layer> layers;  ///< ordered by name
};

struct CheckpointTensor {
  std::string name;
  std::vector<std::uint64_t> shape;
  std::vector<float> values;
};

struct Checkpoint {
  RunIdentity identity;
  std::int64_t step = 0;            ///< steps done, skipped ones included
  std::int64_t optimizer_step = 0;  ///< updates done
  std::int64_t skipped = 0;         ///< steps skipped for NaN or infinity, in all
  std::int64_t skipped_in_a_row = 0;
  std::vector<double> losses;  ///< [step], NaN for a skipped one
  std::vector<CheckpointTensor> tensors;
};

/// "FOLDER/step-00000100.safetensors"
std::filesystem::path checkpoint_path(const std::filesystem::path& folder, std::int64_t step);

/// Writes atomically into `folder` (made if absent), then removes all but the two newest checkpoints of it. IO codes.
void save_checkpoint(const std::filesystem::path& folder, const Checkpoint& checkpoint);

/// Reads one file; every tensor's digest is checked. Throws CK_TRUNCATED for anything but a complete checkpoint; IO codes.
Checkpoint load_checkpoint(const std::filesystem::path& path);

/// The newest checkpoint of the folder that is complete; damaged newer ones are listed in `warnings` as CK_TRUNCATED. Throws IO_MISSING
/// (no checkpoint at all) or CK_TRUNCATED (none is complete).
Checkpoint load_newest(const std::filesystem::path& folder, std::vector<Problem>& warnings);

/// True if the folder holds a file named as a checkpoint.
bool has_checkpoints(const std::filesystem::path& folder);

/// Throws CK_MISMATCH that lists every difference, both values named.
void require_same(const RunIdentity& run, const RunIdentity& checkpoint, const std::string& file);

}  // namespace squareq::training
