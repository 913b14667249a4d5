// What a build has finished: one text line per layer, each with its own checksum, appended after the layer's bytes were written. A
// line cut by a kill is ignored. The bytes are checked against the digests before they are reused, so a journal that outlived its
// data (power loss) costs time, never correctness.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "squareq/slab/file.hpp"

namespace squareq {

struct JournalEntry {
  std::vector<std::uint64_t> digests;  ///< XXH3-64 of qweight, scale, zero_point and, where there is one, bias
  std::uint64_t floored_rows = 0;
  bool operator==(const JournalEntry&) const = default;
};

class Journal {
 public:
  /// Opens or creates the journal. Entries of another `identity` or unreadable lines are dropped and the file is started anew.
  Journal(const std::filesystem::path& path, const std::string& identity);

  /// By layer index. Stable after construction.
  const std::map<std::size_t, JournalEntry>& entries() const { return entries_; }
  /// Forgets everything.
  void restart();
  /// Thread-safe. IO_NO_SPACE, IO_ERROR.
  void append(std::size_t layer, const JournalEntry& entry);
  void remove();

 private:
  void load();
  void rewrite();
  void write(const std::string& line);

  std::filesystem::path path_;
  std::string identity_;
  std::map<std::size_t, JournalEntry> entries_;
  UniqueFd fd_;
  std::mutex mutex_;
};

}  // namespace squareq
