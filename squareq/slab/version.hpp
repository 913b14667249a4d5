// Versions compared number by number, numbers of any length: 0.10.0 is newer than 0.9.0 (SQ-FMT-045).
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace squareq {

/// MAJOR.MINOR.PATCH without leading zeros, so that components compare by length and then as text; empty when malformed.
inline std::vector<std::string> version_parts(std::string_view text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == '.') parts.emplace_back();
    else if (c >= '0' && c <= '9') parts.back() += c;
    else return {};
  }
  if (parts.size() != 3) return {};
  for (std::string& part : parts) {
    if (part.empty()) return {};
    part.erase(0, std::min(part.find_first_not_of('0'), part.size() - 1));
  }
  return parts;
}

/// Both of three parts.
inline bool is_newer_version(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  for (std::size_t i = 0; i < 3; ++i) {
    if (a[i].size() != b[i].size()) return a[i].size() > b[i].size();
    if (a[i] != b[i]) return a[i] > b[i];
  }
  return false;
}

}  // namespace squareq
