// POSIX files: descriptors that close themselves, regular files only, reads that loop, errno as codes. Never mmap: a file that is
// truncated while mapped kills the process, a file that is read can only fail.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "squareq/error.hpp"

namespace squareq {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  ~UniqueFd() { reset(); }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release();
  void reset();

 private:
  int fd_ = -1;
};

/// The code for an errno of open, read, write, rename: ENOENT -> IO_MISSING, EACCES/EPERM/EROFS -> IO_PERM, ELOOP -> IO_LOOP,
/// ENOSPC/EDQUOT/EFBIG -> IO_NO_SPACE, ENOMEM -> HOST_OOM, else IO_ERROR.
Code code_of_errno(int error);

/// Error "cannot <action> '<path>': <strerror>" with code_of_errno.
[[noreturn]] void throw_errno(int error, const std::string& action, const std::filesystem::path& path);

/// What identifies the bytes behind a descriptor; a change while the file is in use is IO_CHANGED.
struct FileStamp {
  std::uint64_t device = 0, inode = 0, bytes = 0;
  std::int64_t modified_s = 0, modified_ns = 0;
  bool operator==(const FileStamp&) const = default;
};

/// A regular file opened for reading (O_CLOEXEC | O_NONBLOCK, so that a FIFO cannot block). Reads are thread-safe.
class InputFile {
 public:
  /// IO_MISSING, IO_PERM, IO_LOOP, IO_NOT_REGULAR, IO_ERROR.
  static InputFile open(const std::filesystem::path& path);
  /// Takes an open descriptor (contained_open); `path` is for messages. IO_NOT_REGULAR.
  static InputFile adopt(UniqueFd fd, const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t bytes() const { return stamp_.bytes; }
  const FileStamp& stamp() const { return stamp_; }
  int fd() const { return fd_.get(); }

  /// All `bytes` from `offset`. 0 bytes early: IO_CHANGED if size or mtime differ from those at open, else IO_SHORT_READ; IO_ERROR.
  void read(std::uint64_t offset, void* destination, std::uint64_t bytes) const;
  /// IO_CHANGED when device, inode, size or mtime differ from those at open. Callers ask at the first read of each epoch.
  void check_unchanged() const;

 private:
  InputFile(UniqueFd fd, std::filesystem::path path, FileStamp stamp) : fd_(std::move(fd)), path_(std::move(path)), stamp_(stamp) {}

  UniqueFd fd_;
  std::filesystem::path path_;
  FileStamp stamp_;
};

/// A whole small file as text. `limit` is checked against the file's size before anything is allocated; larger: `too_large`.
std::string read_text(const std::filesystem::path& path, std::uint64_t limit, Code too_large);
std::string read_text(const InputFile& file, std::uint64_t limit, Code too_large);

/// The path as it may be printed.
std::string printable_path(const std::filesystem::path& path);

}  // namespace squareq
