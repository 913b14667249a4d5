// A new slab put together from the bytes of open ones: rows move, no number is computed. Behind `squareq convert` and `squareq splice`.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "squareq/slab/slab.hpp"

namespace squareq {

struct AssembleOptions {
  unsigned threads = 0;                          ///< 0: all cores. Each holds one piece of at most 8 MiB or one row
  const std::atomic<bool>* cancelled = nullptr;  ///< set: IO_INTERRUPTED, and no file is left
  Progress progress;                             ///< source bytes
};

struct AssembleResult {
  SlabPaths paths;
  std::string id_sha256;
  std::uint64_t slab_bytes = 0, companion_bytes = 0;  ///< 0: no companion
};

class SlabAssembly {
 public:
  /// Target tensors: those that `manifest` names, and the companion's. Layers as they shall stand in the manifest.
  explicit SlabAssembly(Manifest manifest) : manifest_(std::move(manifest)) {}
  /// Without this call the result is a bare pair. The JSON texts may be empty.
  void with_companion(std::vector<TensorSpec> tensors, std::string architecture_json, std::string source_json);

  enum class Part { slab, companion };
  /// Bytes [from, from + bytes) of a tensor of `slab` (of its companion where `part` says so) go to byte `to` of `target` in the same
  /// part of the result. `slab` must live until write().
  void take(const Slab& slab, Part part, const TensorRecord& source, std::uint64_t from, const std::string& target, std::uint64_t to,
            std::uint64_t bytes);
  void take(const Slab& slab, Part part, const TensorRecord& source, const std::string& target) {
    take(slab, part, source, 0, target, 0, source.bytes());
  }

  /// Copies in bounded memory and publishes atomically. Every source tensor is read whole and checked on the way: DT_CHECKSUM where a
  /// companion has its digest, DT_Q_MIN128 and DT_PAD_NONZERO for codes. Throws IO_*, and INTERNAL where the pieces do not cover a target
  /// tensor exactly and once, leave their source tensor, or go to a tensor that the result does not have.
  AssembleResult write(const SlabPaths& paths, const AssembleOptions& options);

 private:
  struct Piece {
    std::uint64_t from, to, bytes;
    std::string target;
  };
  struct Source {
    const Slab* slab;
    Part part;
    const TensorRecord* tensor;
    std::vector<Piece> pieces;
  };
  class Copy;
  std::vector<TensorSpec> slab_tensors() const;
  void check_cover(const FileLayout& slab, const FileLayout* companion) const;

  Manifest manifest_;
  bool companion_ = false;
  std::vector<TensorSpec> companion_tensors_;
  std::string architecture_json_, source_json_;
  std::vector<Source> sources_;
  std::unordered_map<const TensorRecord*, std::size_t> by_tensor_;
};

}  // namespace squareq
