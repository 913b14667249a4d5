// A file that appears under its name only when it is complete and on the disk, and the lock that keeps two writers of a folder apart.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "squareq/slab/file.hpp"

namespace squareq {

/// Points where tests inject failures. Empty functions mean the real thing.
struct WriteSeams {
  /// Called before each named step ("create", "reserve", "write", "fsync", "remove manifest", "rename", "fsync folder").
  std::function<void(std::string_view step, const std::filesystem::path& target)> step;
  /// Instead of renameat(2) in the folder; returns 0 or an errno.
  std::function<int(const std::string& from, const std::string& to)> rename;
};

/// flock(LOCK_EX) on the folder itself: leaves no file behind and ends with the process.
class FolderLock {
 public:
  /// IO_LOCKED when another process holds it for `timeout` (monotonic clock); IO_MISSING, IO_PERM, IO_NOT_REGULAR for a bad folder.
  FolderLock(const std::filesystem::path& folder, std::chrono::milliseconds timeout);

 private:
  UniqueFd fd_;
};

class AtomicFile {
 public:
  /// Creates `.<final>.<pid>.<random>.tmp` in the target's folder, or opens `partial_name` there to start or continue it, and
  /// reserves `bytes` (IO_NO_SPACE now, not after an hour). IO_LOCKED when another process is writing the same partial file.
  AtomicFile(const std::filesystem::path& target, std::uint64_t bytes, const std::string& partial_name = {}, WriteSeams seams = {});
  AtomicFile(AtomicFile&&) noexcept = default;
  AtomicFile& operator=(AtomicFile&&) = delete;
  /// Removes a unique temporary that was not published; leaves a named partial file.
  ~AtomicFile();

  const std::filesystem::path& target() const { return target_; }
  std::filesystem::path temporary() const;
  bool resumed() const { return resumed_; }
  void restart();  ///< a continued partial file turned out to be another one: empties it and reserves again

  void write(std::uint64_t offset, const void* data, std::uint64_t bytes);  ///< loops; thread-safe
  void read(std::uint64_t offset, void* destination, std::uint64_t bytes) const;
  void sync();
  /// fsync + close; the temporary stays until rename_into_place.
  void finish();
  /// Renames to the target and fsyncs the folder. IO_RENAME (temporary kept and named) where the file system cannot.
  void rename_into_place();
  /// Removes the temporary or partial file now.
  void discard();

 private:
  void reserve();
  void note(std::string_view step) const;

  std::filesystem::path target_;
  std::uint64_t bytes_;
  WriteSeams seams_;
  std::string name_;  ///< of the temporary, in the target's folder; empty once it is gone
  bool stable_ = false;
  bool resumed_ = false;
  UniqueFd folder_;
  UniqueFd fd_;
};

/// Writes a small file atomically (manifest, journal).
void write_text_file(const std::filesystem::path& target, std::string_view text, const WriteSeams& seams = {});

/// Removes temporaries that writers of `final_name` left in `folder` when they died. Those of a living writer are locked and stay.
/// Returns how many went.
int remove_stale_temporaries(const std::filesystem::path& folder, const std::string& final_name);

}  // namespace squareq
