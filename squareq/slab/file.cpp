#include "squareq/slab/file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "squareq/text.hpp"

namespace squareq {
namespace {

FileStamp stamp_of(const struct stat& s) {
  return {static_cast<std::uint64_t>(s.st_dev), static_cast<std::uint64_t>(s.st_ino), static_cast<std::uint64_t>(s.st_size),
          static_cast<std::int64_t>(s.st_mtim.tv_sec), static_cast<std::int64_t>(s.st_mtim.tv_nsec)};
}

FileStamp stat_now(int fd, const std::filesystem::path& path) {
  struct stat s {};
  if (fstat(fd, &s) != 0) throw_errno(errno, "stat", path);
  return stamp_of(s);
}

}  // namespace

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

int UniqueFd::release() { return std::exchange(fd_, -1); }

void UniqueFd::reset() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

Code code_of_errno(int error) {
  switch (error) {
    case ENOENT: case ENOTDIR: return Code::IO_MISSING;
    case EACCES: case EPERM: case EROFS: return Code::IO_PERM;
    case ELOOP: return Code::IO_LOOP;
    case ENOSPC: case EDQUOT: case EFBIG: return Code::IO_NO_SPACE;
    case ENOMEM: return Code::HOST_OOM;
    case ENXIO: case EISDIR: return Code::IO_NOT_REGULAR;  // a socket refuses to be opened; a folder to be written
    default: return Code::IO_ERROR;
  }
}

std::string printable_path(const std::filesystem::path& path) { return printable(path.string(), 1024); }

void throw_errno(int error, const std::string& action, const std::filesystem::path& path) {
  throw Error(code_of_errno(error), "cannot " + action + " '" + printable_path(path) + "': " + std::strerror(error), path.string());
}

InputFile InputFile::open(const std::filesystem::path& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) throw_errno(errno, "open", path);
  return adopt(std::move(fd), path);
}

InputFile InputFile::adopt(UniqueFd fd, const std::filesystem::path& path) {
  struct stat s {};
  if (fstat(fd.get(), &s) != 0) throw_errno(errno, "stat", path);
  if (!S_ISREG(s.st_mode)) {
    const char* kind = S_ISDIR(s.st_mode) ? "a folder" : S_ISFIFO(s.st_mode) ? "a FIFO" : S_ISSOCK(s.st_mode) ? "a socket" : "a device";
    throw Error(Code::IO_NOT_REGULAR, "'" + printable_path(path) + "' is " + kind + ", not a regular file", path.string());
  }
  return InputFile(std::move(fd), path, stamp_of(s));
}

void InputFile::read(std::uint64_t offset, void* destination, std::uint64_t bytes) const {
  // One call moves at most this much: Linux stops at 2 GiB - 4 KiB by itself.
  constexpr std::uint64_t call_bytes = 1u << 30;
  auto* out = static_cast<std::byte*>(destination);
  std::uint64_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::pread(fd_.get(), out + done, static_cast<std::size_t>(std::min(bytes - done, call_bytes)),
                              static_cast<off_t>(offset + done));
    if (n > 0) {
      done += static_cast<std::uint64_t>(n);
    } else if (n == 0) {
      const FileStamp now = stat_now(fd_.get(), path_);
      if (!(now == stamp_)) check_unchanged();
      throw Error(Code::IO_SHORT_READ, "'" + printable_path(path_) + "' gave " + std::to_string(done) + " of " + std::to_string(bytes) +
                                           " bytes at offset " + std::to_string(offset), path_.string());
    } else if (errno != EINTR && errno != EAGAIN) {
      throw_errno(errno, "read", path_);
    }
  }
}

void InputFile::check_unchanged() const {
  const FileStamp now = stat_now(fd_.get(), path_);
  if (now == stamp_) return;
  const std::string what = now.bytes != stamp_.bytes
                               ? "it had " + std::to_string(stamp_.bytes) + " bytes when it was opened and has " + std::to_string(now.bytes) + " now"
                               : "its modification time is not the one it had when it was opened";
  throw Error(Code::IO_CHANGED, "'" + printable_path(path_) + "' changed while it was in use: " + what, path_.string());
}

std::string read_text(const InputFile& file, std::uint64_t limit, Code too_large) {
  if (file.bytes() > limit)
    throw Error(too_large, "'" + printable_path(file.path()) + "' has " + std::to_string(file.bytes()) + " bytes; at most " +
                               std::to_string(limit) + " are read", file.path().string());
  std::string text(static_cast<std::size_t>(file.bytes()), '\0');
  file.read(0, text.data(), text.size());
  return text;
}

std::string read_text(const std::filesystem::path& path, std::uint64_t limit, Code too_large) {
  return read_text(InputFile::open(path), limit, too_large);
}

}  // namespace squareq
