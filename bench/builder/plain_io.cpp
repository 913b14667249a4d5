#include "bench/builder/plain_io.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <functional>

#include "squareq/slab/file.hpp"

namespace squareq::bench {
namespace {

constexpr std::uint64_t call_bytes = 8u << 20;

UniqueFd open_file(const std::filesystem::path& path, int flags) {
  UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, 0644));
  if (!fd) throw_errno(errno, "open", path);
  return fd;
}

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

void forget(const std::filesystem::path& file) {
  const UniqueFd fd = open_file(file, O_RDONLY);
  if (::fsync(fd.get()) != 0) throw_errno(errno, "fsync", file);
  if (const int error = ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED)) throw_errno(error, "forget", file);
}

double read_seconds(const std::vector<std::filesystem::path>& files) {
  std::vector<std::byte> buffer(call_bytes);
  return seconds_of([&] {
    for (const auto& path : files) {
      const UniqueFd fd = open_file(path, O_RDONLY);
      for (ssize_t n; (n = ::read(fd.get(), buffer.data(), buffer.size())) != 0;)
        if (n < 0) throw_errno(errno, "read", path);
    }
  });
}

double write_seconds(const std::filesystem::path& file, std::uint64_t bytes) {
  std::vector<std::uint64_t> buffer(call_bytes / 8);
  std::uint64_t state = 88172645463325252ull;
  for (std::uint64_t& word : buffer) word = state = state * 6364136223846793005ull + 1442695040888963407ull;
  const double seconds = seconds_of([&] {
    const UniqueFd fd = open_file(file, O_WRONLY | O_CREAT | O_TRUNC);
    if (::fallocate(fd.get(), 0, 0, static_cast<off_t>(bytes)) != 0) throw_errno(errno, "reserve", file);
    for (std::uint64_t done = 0; done < bytes;) {
      const ssize_t n = ::write(fd.get(), buffer.data(), std::min(call_bytes, bytes - done));
      if (n < 0) throw_errno(errno, "write", file);
      done += static_cast<std::uint64_t>(n);
    }
    if (::fsync(fd.get()) != 0) throw_errno(errno, "fsync", file);
  });
  std::filesystem::remove(file);
  return seconds;
}

}  // namespace squareq::bench
