#include "squareq/slab/atomic_file.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <utility>

namespace squareq {
namespace {

namespace fs = std::filesystem;

UniqueFd open_folder(const fs::path& folder) {
  UniqueFd fd(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) {
    const int error = errno;
    if (error == ENOTDIR) throw Error(Code::IO_NOT_REGULAR, "'" + printable_path(folder) + "' is not a folder", folder.string());
    throw_errno(error, "open folder", folder);
  }
  return fd;
}

std::string random_hex() {
  static constexpr char digits[] = "0123456789abcdef";
  std::random_device device;
  std::string text;
  for (int word = 0; word < 2; ++word)
    for (std::uint32_t bits = device(), i = 0; i < 8; ++i, bits >>= 4) text += digits[bits & 15];
  return text;
}

// Every temporary is locked by its writer for as long as the writer lives, so that a cleaner can tell the living from the dead.
bool lock_now(int fd) { return ::flock(fd, LOCK_EX | LOCK_NB) == 0; }

// Opens `name` in the folder and locks it. A cleaner may remove the file between the two steps: then the name is tried again.
UniqueFd open_locked(int folder, const std::string& name, int flags, const fs::path& shown) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    UniqueFd fd(::openat(folder, name.c_str(), flags | O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644));
    if (!fd) throw_errno(errno, "create", shown);
    struct stat s {};
    if (fstat(fd.get(), &s) != 0) throw_errno(errno, "stat", shown);
    if (!S_ISREG(s.st_mode)) throw Error(Code::IO_NOT_REGULAR, "'" + printable_path(shown) + "' is not a regular file", shown.string());
    if (!lock_now(fd.get())) {
      if (errno == EWOULDBLOCK) throw Error(Code::IO_LOCKED, "another process is writing '" + printable_path(shown) + "'", shown.string());
      throw_errno(errno, "lock", shown);
    }
    if (fstat(fd.get(), &s) != 0) throw_errno(errno, "stat", shown);
    if (s.st_nlink > 0) return fd;
  }
  throw Error(Code::IO_ERROR, "'" + printable_path(shown) + "' is removed as fast as it is created", shown.string());
}

}  // namespace

FolderLock::FolderLock(const fs::path& folder, std::chrono::milliseconds timeout) : fd_(open_folder(folder)) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!lock_now(fd_.get())) {
    if (errno != EWOULDBLOCK && errno != EINTR) throw_errno(errno, "lock", folder);
    if (std::chrono::steady_clock::now() >= deadline)
      throw Error(Code::IO_LOCKED, "another process has held the lock of '" + printable_path(folder) + "' for " + std::to_string(timeout.count()) + " ms",
                  folder.string());
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

AtomicFile::AtomicFile(const fs::path& target, std::uint64_t bytes, const std::string& partial_name, WriteSeams seams)
    : target_(target), bytes_(bytes), seams_(std::move(seams)), stable_(!partial_name.empty()), folder_(open_folder(target.parent_path())) {
  note("create");
  name_ = stable_ ? partial_name : "." + target_.filename().string() + "." + std::to_string(getpid()) + "." + random_hex() + ".tmp";
  fd_ = open_locked(folder_.get(), name_, stable_ ? 0 : O_EXCL, temporary());
  try {
    struct stat s {};
    if (fstat(fd_.get(), &s) != 0) throw_errno(errno, "stat", temporary());
    resumed_ = stable_ && bytes_ > 0 && static_cast<std::uint64_t>(s.st_size) == bytes_;
    if (!resumed_) restart();
  } catch (...) {
    discard();  // nothing was written yet: a full disk keeps no empty shell
    throw;
  }
}

AtomicFile::~AtomicFile() {
  if (fd_ && !stable_) discard();
}

fs::path AtomicFile::temporary() const { return target_.parent_path() / name_; }

void AtomicFile::note(std::string_view step) const {
  if (seams_.step) seams_.step(step, target_);
}

void AtomicFile::restart() {
  resumed_ = false;
  if (::ftruncate(fd_.get(), 0) != 0) throw_errno(errno, "empty", temporary());
  reserve();
}

void AtomicFile::reserve() {
  note("reserve");
  if (bytes_ == 0) return;
  if (::fallocate(fd_.get(), 0, 0, static_cast<off_t>(bytes_)) == 0) return;
  const int error = errno;
  if (error != EOPNOTSUPP && error != ENOSYS && error != EINVAL) throw_errno(error, "reserve " + std::to_string(bytes_) + " bytes for", temporary());
  if (::ftruncate(fd_.get(), static_cast<off_t>(bytes_)) != 0) throw_errno(errno, "size", temporary());
}

void AtomicFile::write(std::uint64_t offset, const void* data, std::uint64_t bytes) {
  note("write");
  constexpr std::uint64_t call_bytes = 1u << 30;
  const auto* in = static_cast<const std::byte*>(data);
  for (std::uint64_t done = 0; done < bytes;) {
    const ssize_t n = ::pwrite(fd_.get(), in + done, static_cast<std::size_t>(std::min(bytes - done, call_bytes)), static_cast<off_t>(offset + done));
    if (n > 0) done += static_cast<std::uint64_t>(n);
    else if (n == 0) throw Error(Code::IO_NO_SPACE, "'" + printable_path(temporary()) + "' takes no more bytes", temporary().string());
    else if (errno != EINTR && errno != EAGAIN) throw_errno(errno, "write", temporary());
  }
}

void AtomicFile::read(std::uint64_t offset, void* destination, std::uint64_t bytes) const {
  auto* out = static_cast<std::byte*>(destination);
  for (std::uint64_t done = 0; done < bytes;) {
    const ssize_t n = ::pread(fd_.get(), out + done, static_cast<std::size_t>(std::min<std::uint64_t>(bytes - done, 1u << 30)), static_cast<off_t>(offset + done));
    if (n > 0) done += static_cast<std::uint64_t>(n);
    else if (n == 0) throw Error(Code::IO_CHANGED, "'" + printable_path(temporary()) + "' became shorter while it was written", temporary().string());
    else if (errno != EINTR && errno != EAGAIN) throw_errno(errno, "read", temporary());
  }
}

void AtomicFile::sync() {
  note("fsync");
  // Final: after a failed fsync the kernel may have dropped the pages, and a second one would lie.
  if (::fsync(fd_.get()) != 0) throw_errno(errno, "fsync", temporary());
}

void AtomicFile::finish() {
  if (!fd_) return;
  sync();
  // The descriptor stays open for its lock; write-back errors have been reported by fsync.
}

void AtomicFile::rename_into_place() {
  note("rename");
  const std::string final_name = target_.filename().string();
  int error = 0;
  if (seams_.rename) error = seams_.rename(name_, final_name);
  else if (::renameat(folder_.get(), name_.c_str(), folder_.get(), final_name.c_str()) != 0) error = errno;
  if (error != 0) {
    stable_ = true;  // complete and fsynced: kept, and named in the message
    if (error == EACCES || error == EPERM || error == EROFS || error == ENOSPC) throw_errno(error, "rename '" + printable_path(temporary()) + "' to", target_);
    throw Error(Code::IO_RENAME, "cannot rename '" + printable_path(temporary()) + "' to '" + printable_path(target_) + "': " + std::strerror(error) +
                                     "; the temporary is complete and was kept", target_.string());
  }
  name_.clear();
  note("fsync folder");
  if (::fsync(folder_.get()) != 0) throw_errno(errno, "fsync the folder of", target_);
  fd_.reset();
}

void AtomicFile::discard() {
  if (!name_.empty()) ::unlinkat(folder_.get(), name_.c_str(), 0);
  name_.clear();
  fd_.reset();
}

void write_text_file(const fs::path& target, std::string_view text, const WriteSeams& seams) {
  AtomicFile file(target, text.size(), {}, seams);
  file.write(0, text.data(), text.size());
  file.finish();
  file.rename_into_place();
}

int remove_stale_temporaries(const fs::path& folder, const std::string& final_name) {
  const UniqueFd fd = open_folder(folder);
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(::fdopendir(::dup(fd.get())), &::closedir);
  if (!listing) throw_errno(errno, "list", folder);
  const std::string prefix = "." + final_name + ".";
  int removed = 0;
  while (const dirent* entry = ::readdir(listing.get())) {
    const std::string_view name = entry->d_name;
    if (!name.starts_with(prefix) || !name.ends_with(".tmp")) continue;
    // `.<final>.<pid>.<random>.tmp` and nothing else: another slab's name may begin with this one's.
    const std::string_view middle = name.substr(prefix.size(), name.size() - prefix.size() - 4);
    const std::size_t dot = middle.find('.');
    const bool ours = dot != std::string_view::npos && dot > 0 && middle.substr(0, dot).find_first_not_of("0123456789") == std::string_view::npos &&
                      middle.size() - dot - 1 == 16 && middle.substr(dot + 1).find_first_not_of("0123456789abcdef") == std::string_view::npos;
    if (!ours) continue;
    const UniqueFd temporary(::openat(fd.get(), entry->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (temporary && lock_now(temporary.get()) && ::unlinkat(fd.get(), entry->d_name, 0) == 0) ++removed;
  }
  return removed;
}

}  // namespace squareq
