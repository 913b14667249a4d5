#include "squareq/streaming/bytes.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <utility>

#include "squareq/error.hpp"
#include "squareq/text.hpp"

namespace squareq::streaming {
namespace {

constexpr std::array<std::pair<std::string_view, double>, 10> kUnits{{{"", 1.0}, {"b", 1.0}, {"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"tb", 1e12},
  {"kib", 1024.0}, {"mib", 1048576.0}, {"gib", 1073741824.0}, {"tib", 1099511627776.0}}};

}  // namespace

std::uint64_t parse_bytes(std::string_view text, std::string_view what) {
  const auto refuse = [&](const char* why) -> Error {
    return Error(Code::CFG_VALUE, std::string(what) + ": '" + printable(text, 60) + "' " + why + " (write for example 8GiB, 512MiB, 8GB or 4096)");
  };
  const char* const end = text.data() + text.size();
  double number = 0;
  const auto [rest, failure] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  if (failure != std::errc() || !std::isfinite(number)) throw refuse("is not a size");
  if (std::signbit(number)) throw refuse("is negative");
  std::string unit(rest, end);
  unit.erase(0, unit.find_first_not_of(' ') == std::string::npos ? unit.size() : unit.find_first_not_of(' '));
  for (char& c : unit) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  for (const auto& [name, factor] : kUnits) {
    if (unit != name) continue;
    // A double holds whole numbers only up to 2^53; plain byte counts are read as integers.
    std::uint64_t exact = 0;
    const auto [integer_end, integer_failure] = std::from_chars(text.data(), end, exact);
    if (factor == 1.0 && integer_failure == std::errc() && integer_end == rest && exact < (1ull << 63)) return exact;
    const double bytes = std::floor(number * factor);
    if (bytes >= 9223372036854775808.0) throw refuse("is 2^63 bytes or more");
    return static_cast<std::uint64_t>(bytes);
  }
  throw refuse("has an unknown unit");
}

std::string bytes_text(std::uint64_t bytes) {
  static constexpr std::array<const char*, 4> names{"KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return std::to_string(bytes) + " B";
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < names.size()) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit >= 2 ? "%.2f %s" : "%.1f %s", value, names[unit]);
  return text;
}

}  // namespace squareq::streaming
