// Writes safetensors files byte-identical to the reference serializer, atomically: the target's name only ever shows a complete,
// fsynced file (spec/20-slab-format.md sections 2.3 and 6).
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/slab/atomic_file.hpp"
#include "squareq/slab/dtype.hpp"
#include "squareq/slab/safetensors.hpp"

namespace squareq {

struct TensorSpec {
  std::string name;
  FileDtype dtype = FileDtype::F32;
  std::vector<std::uint64_t> shape;
};

/// Where everything of a file stands, known before its data: `prefix` is the length field and the padded header.
struct FileLayout {
  std::string prefix;
  Header header;  ///< tensors in file order
};

/// Orders tensors (dtype descending, then name bytes), assigns offsets without gaps and serializes the header.
/// CALL_VALUE: a name twice, a name `__metadata__`, a metadata key twice, invalid UTF-8, an overflow, a header over its cap.
FileLayout make_layout(std::vector<TensorSpec> tensors, const Metadata& metadata = {});

/// The same bytes from a parsed header: write(read(x)) of a file that the reference wrote.
FileLayout make_layout(const Header& header);

/// One file under construction. write() is thread-safe; everything else is not. Destruction before commit() removes a unique
/// temporary and leaves a named partial file alone.
class SafetensorsWriter {
 public:
  struct Options {
    /// Continue or start a partial file of this stable name in the target's folder (".NAME.partial"), instead of a unique
    /// temporary. It survives a crash; the caller's journal says which bytes of it are good.
    std::string partial_name;
    WriteSeams seams;
  };

  SafetensorsWriter(const std::filesystem::path& target, std::vector<TensorSpec> tensors, const Metadata& metadata, const Options& options);
  SafetensorsWriter(const std::filesystem::path& target, std::vector<TensorSpec> tensors, const Metadata& metadata = {})
      : SafetensorsWriter(target, std::move(tensors), metadata, Options{}) {}

  const FileLayout& layout() const { return layout_; }
  /// The partial file existed, has this layout's size and its header bytes: data that the caller's journal vouches for is there.
  bool resumed() const { return file_.resumed(); }
  /// Index into layout().header.tensors. CALL_VALUE for an unknown name.
  std::size_t index(std::string_view name) const;

  /// Writes `bytes` at byte `offset` of a tensor. Any order, thread-safe. CALL_VALUE outside the tensor; IO_NO_SPACE, IO_ERROR.
  void write(std::size_t index, std::uint64_t offset, const void* data, std::uint64_t bytes);
  void write(std::string_view name, std::uint64_t offset, const void* data, std::uint64_t bytes) { write(index(name), offset, data, bytes); }
  /// Reads back what was written (resuming, hashing).
  void read(std::size_t index, std::uint64_t offset, void* destination, std::uint64_t bytes) const;
  /// XXH3-64 of a tensor as it now stands in the file.
  std::uint64_t digest(std::size_t index) const;
  /// Rewrites the header with other metadata of exactly the same serialized size (digests known only at the end). CALL_VALUE otherwise.
  void replace_metadata(const Metadata& metadata);

  /// fsync without publishing: what was written so far survives a power cut (before a journal entry says so).
  void sync() { file_.sync(); }
  /// fsync, close, rename to the target under the folder's lock, fsync of the folder. For a pair or triple use publish_slab.
  void commit(std::chrono::milliseconds lock_timeout = std::chrono::seconds(30));
  AtomicFile& file() { return file_; }

 private:
  FileLayout layout_;
  AtomicFile file_;
};

}  // namespace squareq
