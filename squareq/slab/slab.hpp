// A slab: the V2 pair (NAME.safetensors, NAME.manifest.json) and its optional companion, opened and checked as one thing.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/slab/companion.hpp"
#include "squareq/slab/manifest.hpp"
#include "squareq/slab/report.hpp"
#include "squareq/slab/safetensors.hpp"

namespace squareq {

struct SlabPaths {
  std::filesystem::path slab, manifest, companion;

  /// From the slab's path, the manifest's, the companion's or the common stem ("slabs/my-slab.v1"; dots are part of the name).
  static SlabPaths resolve(const std::filesystem::path& any);
};

/// Done and total bytes of a long check, and what is being read.
using Progress = std::function<void(std::uint64_t done, std::uint64_t total, std::string_view what)>;

struct ValidateOptions {
  bool quick = false;  ///< stop after headers, manifest, scales, zero points and biases
  std::optional<std::string> expected_signature;     ///< of the model that the slab should be of: MF_SIGNATURE
  std::optional<std::string> expected_architecture;  ///< MF_ARCH
  unsigned threads = 0;                              ///< 0 = all cores
  Progress progress;
};

/// Every problem of slab, manifest and companion at once; never throws for a bad or absent file. Reads everything unless quick.
Report validate(const SlabPaths& paths, const ValidateOptions& options = {});
/// Any safetensors file, no manifest.
Report validate_container(const std::filesystem::path& path);

/// The tensors of one layer, in the slab's header. `bias` is null for a layer without one.
struct LayerTensors {
  const TensorRecord* qweight = nullptr;     ///< I8 [out, padded in]
  const TensorRecord* scale = nullptr;       ///< F32 [out]
  const TensorRecord* zero_point = nullptr;  ///< F32 [out], all 0
  const TensorRecord* bias = nullptr;        ///< F32 [out]
};

/// A checked, open slab. Movable; reads are thread-safe. Codes and padding are not read at open: check_block_bytes does that when a
/// layer's bytes first pass by.
class Slab {
 public:
  /// Throws Error with the first problem of a quick validation.
  static Slab open(const std::filesystem::path& path, const ValidateOptions& options = {});
  /// Collects instead; nullopt when there is a problem.
  static std::optional<Slab> open(const SlabPaths& paths, const ValidateOptions& options, Report& report);

  const SlabPaths& paths() const { return paths_; }
  const Manifest& manifest() const { return manifest_; }
  const SafetensorsFile& file() const { return file_; }
  const Companion* companion() const { return companion_.get(); }  ///< null for a bare pair
  const std::vector<Problem>& warnings() const { return warnings_; }

  std::size_t layer_count() const { return manifest_.layers.size(); }
  const ManifestLayer& layer(std::size_t index) const { return manifest_.layers[index]; }
  const LayerTensors& tensors(std::size_t index) const { return tensors_[index]; }
  std::optional<std::size_t> find_layer(std::string_view canonical_name) const;

  /// The slab's identity (64 hex digits): the companion's, or computed by reading every byte of a bare pair.
  std::string id_sha256() const;
  /// XXH3-64 of a slab tensor from the companion; nullopt for a bare pair.
  std::optional<std::uint64_t> expected_digest(std::string_view tensor) const;

 private:
  Slab(SlabPaths paths, Manifest manifest, SafetensorsFile file) : paths_(std::move(paths)), manifest_(std::move(manifest)), file_(std::move(file)) {}

  SlabPaths paths_;
  Manifest manifest_;
  SafetensorsFile file_;
  std::unique_ptr<Companion> companion_;
  std::vector<LayerTensors> tensors_;
  std::vector<std::uint32_t> by_name_;
  std::vector<Problem> warnings_;
};

/// Checks codes and padding of rows [first_row, first_row + rows) of a layer's qweight as they lie in `codes`
/// ([rows, padded in] I8): DT_Q_MIN128, DT_PAD_NONZERO, each with the first row concerned.
void check_codes(const ManifestLayer& layer, std::uint64_t first_row, std::uint64_t rows, const std::int8_t* codes, const std::string& file,
                 Report& report);

/// Puts a finished build in place under the folder's lock: removes an old manifest and companion of that name, then renames slab,
/// companion (optional) and, last, the manifest, with an fsync of the folder after each. A crash in between leaves a slab without
/// manifest, which is refused on open. The folder must exist.
struct PublishOptions {
  std::chrono::milliseconds lock_timeout = std::chrono::seconds(30);
  WriteSeams seams;
};
void publish_slab(const SlabPaths& paths, SafetensorsWriter& slab, CompanionWriter* companion, std::string_view manifest,
                  const PublishOptions& options = {});

}  // namespace squareq
