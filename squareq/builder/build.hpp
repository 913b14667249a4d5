// Float checkpoint -> slab: every linear quantized by a backend, layer by layer, in bounded memory, on all cores; what a kill leaves
// is continued by the next run of the same build (spec/20-slab-format.md section 6, spec/30-quantization.md).
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/architecture/architecture.hpp"
#include "squareq/slab/report.hpp"
#include "squareq/slab/slab.hpp"

namespace squareq {

struct BuildOptions {
  std::filesystem::path model;                ///< see Checkpoint::open
  std::filesystem::path out;                  ///< folder, must exist
  std::string name;                           ///< of the slab: one path component, may hold dots
  std::string architecture_id = "unknown";    ///< the manifest's architecture_id
  std::uint64_t pack_k = 64;                  ///< row alignment in elements, 1 = none
  std::vector<std::string> include_prefixes;  ///< layers whose name starts with one of them; empty: all linears
  /// "auto": recognised from keys, else the generic rule with a warning; an architecture id: must be that one; "none": the generic
  /// rule (every 2-D "X.weight" that is no embedding, position table or norm by its name).
  std::string architecture = "auto";
  bool companion = true;        ///< write NAME.companion.safetensors
  std::string backend = "cpu";  ///< whose quantize does the arithmetic: a name or a path, see find_backend
  unsigned threads = 0;         ///< workers; 0 = from the number of cores
  std::function<void(std::uint64_t done, std::uint64_t total, std::string_view what)> progress;  ///< source bytes; one thread
  const std::atomic<bool>* cancelled = nullptr;  ///< set: stop with IO_INTERRUPTED, keeping the partial file and its journal
  /// Tests: called with "layer", "rest", "publish" and the seams of the atomic writer; may end the process.
  std::function<void(std::string_view point)> at_point;
};

struct BuildResult {
  SlabPaths paths;  ///< companion is empty without one
  std::optional<Architecture> architecture;
  std::string signature;  ///< of all linears, also those filtered out
  std::string slab_id;    ///< SHA-256 identity
  std::size_t layers = 0, reused_layers = 0, other_tensors = 0;
  std::uint64_t source_bytes = 0, slab_bytes = 0, companion_bytes = 0;
  std::uint64_t floored_rows = 0;  ///< rows on the 1e-8 scale floor: they lose precision
  double seconds = 0;
  Report report;  ///< warnings
};

/// Builds NAME.safetensors, NAME.manifest.json and NAME.companion.safetensors in `out`. The pair is byte-identical to what the Python
/// V2 builder writes for a model with these names. Throws, and leaves no file (after an interruption: one partial file and its
/// journal, which the next run of the same build continues and every other build leaves alone):
/// CFG_VALUE (name, pack_k, a prefix that no layer has), MD_ARCH, MD_TENSOR, MF_NAME, DT_WEIGHT_NONFINITE (layer, row and column),
/// DT_BIAS_NONFINITE, IO_*, CFG_BACKEND.
BuildResult build(const BuildOptions& options);

/// What `squareq build --json` and the contract's format.build answer: paths, sizes, counts, signature, identity, warnings.
nlohmann::ordered_json build_json(const BuildResult& result);

}  // namespace squareq
