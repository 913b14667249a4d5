// `NAME.companion.safetensors`: what the V2 pair cannot carry. The pair's integrity record, the architecture and its config, where
// the weights came from, and the model's unquantized tensors (spec/20-slab-format.md section 5).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "squareq/slab/digest.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/slab/writer.hpp"

namespace squareq {

inline constexpr std::string_view integrity_key = "squareq.integrity";
inline constexpr std::string_view companion_integrity_key = "squareq.companion_integrity";
inline constexpr std::string_view architecture_key = "squareq.architecture";
inline constexpr std::string_view source_key = "squareq.source";

using NamedDigests = std::vector<std::pair<std::string, std::uint64_t>>;

/// Ties a companion to one slab and one manifest.
struct IntegrityRecord {
  std::uint64_t slab_bytes = 0;
  std::uint64_t header_xxh3 = 0;    ///< of the slab's bytes [0, 8 + N)
  std::uint64_t manifest_xxh3 = 0;  ///< of the manifest's text
  std::string id_sha256;            ///< identity of the slab, see slab_id
  NamedDigests tensors;             ///< XXH3-64 of every tensor of the slab

  bool operator==(const IntegrityRecord&) const = default;
};

/// SHA-256 (64 hex digits) over the slab's bytes [0, 8 + N), the manifest's text, and the 8-byte big-endian digests of the tensors in
/// offset order.
std::string slab_id(std::string_view slab_prefix, std::string_view manifest, std::span<const std::uint64_t> digests_in_offset_order);

/// The record for a slab whose layout, manifest text and digests (in the layout's tensor order) are known.
IntegrityRecord make_integrity(const FileLayout& slab, std::string_view manifest, std::span<const std::uint64_t> digests);

std::string integrity_text(const IntegrityRecord& record);
/// MF_INTEGRITY for anything but a complete record of version 1.
std::optional<IntegrityRecord> parse_integrity(std::string_view text, Report& report, const std::string& file);

/// An opened companion.
struct Companion {
  SafetensorsFile file;
  IntegrityRecord integrity;
  NamedDigests own_digests;       ///< of the companion's own tensors, sorted by name
  std::string architecture_json;  ///< {"id": ..., "config": {...}}; empty when absent
  std::string source_json;        ///< {"files": [{"name", "bytes", ...}], "signature": ...}; empty when absent

  /// Findings go to `report`; nullopt when there is a problem.
  static std::optional<Companion> open(const std::filesystem::path& path, Report& report);
};

/// Writes a companion beside a slab: stream the tensors, then finish() with the slab's record, then publish_slab.
class CompanionWriter {
 public:
  /// `tensors`: the model's unquantized tensors in their source dtype. The JSON texts are stored as given (must be JSON objects:
  /// CALL_VALUE). `slab` fixes the size of the integrity record.
  CompanionWriter(const std::filesystem::path& target, std::vector<TensorSpec> tensors, const FileLayout& slab, std::string architecture_json,
                  std::string source_json, const SafetensorsWriter::Options& options = {});

  SafetensorsWriter& file() { return file_; }
  /// Any order, thread-safe.
  void write(std::string_view name, std::uint64_t offset, const void* data, std::uint64_t bytes) { file_.write(name, offset, data, bytes); }
  /// Hashes the tensors as they stand in the file and writes the final metadata. Call once, before publishing.
  void finish(const IntegrityRecord& record);

 private:
  std::string architecture_json_, source_json_;
  SafetensorsWriter file_;
};

}  // namespace squareq
