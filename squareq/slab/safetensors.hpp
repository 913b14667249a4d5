// The strict safetensors reader (spec/20-slab-format.md section 2). What it accepts is a subset of what the reference
// implementation accepts; every stricter rule is listed there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "squareq/slab/dtype.hpp"
#include "squareq/slab/file.hpp"
#include "squareq/slab/report.hpp"

namespace squareq {

/// One tensor of a file: little endian, row-major. [begin, end) are bytes relative to Header::data_start; no alignment is
/// promised, so elements are copied out, never cast in place.
struct TensorRecord {
  std::string name;
  FileDtype dtype = FileDtype::F32;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  std::uint64_t bytes() const { return end - begin; }
  std::uint64_t elements() const;  ///< product of shape; 1 for rank 0
};

using Metadata = std::vector<std::pair<std::string, std::string>>;

struct Header {
  std::uint64_t data_start = 0;  ///< 8 + N
  std::uint64_t file_bytes = 0;
  std::vector<TensorRecord> tensors;  ///< in offset order: sorted by (begin, end), equal ranges by name
  Metadata metadata;                  ///< in file order
  std::vector<std::uint32_t> by_name; ///< indexes of `tensors`, sorted by name bytes

  const TensorRecord* find(std::string_view name) const;           ///< O(log n); null when absent
  const std::string* find_metadata(std::string_view key) const;    ///< null when absent
};

/// Parses a header: `text` is the N bytes after the length field, `file_bytes` the size of the whole file (8 + N <= file_bytes is
/// the caller's to check). Findings go to `report` under `file`; nullopt when any of them is a problem.
/// O(N log N) time, at most 8 N + 64 KiB of memory beside the report, no recursion, no exceptions from malformed input.
std::optional<Header> parse_header(std::span<const std::byte> text, std::uint64_t file_bytes, Report& report, const std::string& file = {});

/// An open, checked safetensors file. Reads are thread-safe; movable.
class SafetensorsFile {
 public:
  /// Throws Error with the first problem (ST_*, IO_*). Warnings go to warnings().
  static SafetensorsFile open(const std::filesystem::path& path);
  static SafetensorsFile open(InputFile file);
  /// Collects all problems instead; nullopt when there is one. I/O failures are problems too.
  static std::optional<SafetensorsFile> open(const std::filesystem::path& path, Report& report);
  static std::optional<SafetensorsFile> open(InputFile file, Report& report);

  const Header& header() const { return header_; }
  const std::filesystem::path& path() const { return file_.path(); }
  const InputFile& file() const { return file_; }
  /// XXH3-64 of the file's bytes [0, data_start).
  std::uint64_t header_xxh3() const { return header_xxh3_; }
  const std::vector<Problem>& warnings() const { return warnings_; }

  /// `bytes` of the tensor from its byte `offset`. CALL_VALUE outside the tensor; IO_SHORT_READ, IO_CHANGED, IO_ERROR.
  void read(const TensorRecord& tensor, std::uint64_t offset, void* destination, std::uint64_t bytes) const;
  /// The whole tensor, from a throwing find: MD_TENSOR when `name` is absent.
  std::vector<std::byte> read_all(std::string_view name) const;
  /// Absolute byte in the file where the tensor starts.
  std::uint64_t position(const TensorRecord& tensor) const { return header_.data_start + tensor.begin; }
  /// IO_CHANGED when size, mtime or inode differ from those at open.
  void check_unchanged() const { file_.check_unchanged(); }

 private:
  SafetensorsFile(InputFile file, Header header, std::uint64_t header_xxh3)
      : file_(std::move(file)), header_(std::move(header)), header_xxh3_(header_xxh3) {}

  InputFile file_;
  Header header_;
  std::uint64_t header_xxh3_;
  std::vector<Problem> warnings_;
};

}  // namespace squareq
