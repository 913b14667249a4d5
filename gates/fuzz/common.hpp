// What every fuzz target shares: an invariant that must hold, text that may be printed, and files for readers that take a path.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "squareq/slab/limits.hpp"
#include "squareq/slab/report.hpp"

namespace squareq::fuzz {

inline void require(bool good) {
  if (!good) std::abort();
}

/// Messages never carry raw bytes of the input to a terminal.
inline void require_printable(std::string_view text) {
  for (const char c : text) require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
}

inline void require_report(const Report& report) {
  require(report.problems.size() <= limits::problems && report.warnings.size() <= limits::problems);
  for (const Problem& p : report.problems) require_printable(p.message);
  for (const Problem& p : report.warnings) require_printable(p.message);
}

/// A folder in memory of this process, removed at its end.
inline const std::filesystem::path& folder() {
  static const struct Folder {
    std::filesystem::path path;
    Folder() {
      std::string pattern = std::filesystem::is_directory("/dev/shm") ? "/dev/shm/squareq-fuzz-XXXXXX" : "/tmp/squareq-fuzz-XXXXXX";
      require(mkdtemp(pattern.data()) != nullptr);
      path = pattern;
    }
    ~Folder() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
  } made;
  return made.path;
}

inline std::filesystem::path write(const char* name, std::string_view bytes) {
  const std::filesystem::path path = folder() / name;
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  require(out.good());
  return path;
}

/// The little-endian number in the first `bytes` of `text`, which are taken away; 0 where it is shorter.
inline std::uint64_t take_number(std::string_view& text, std::size_t bytes) {
  if (text.size() < bytes) return 0;
  std::uint64_t value = 0;
  for (std::size_t i = bytes; i-- > 0;) value = (value << 8) | static_cast<unsigned char>(text[i]);
  text.remove_prefix(bytes);
  return value;
}

}  // namespace squareq::fuzz
