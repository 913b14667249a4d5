// What a call left: its problem, the files of a folder, and the bytes of a tensor, read without the reader under test.
#pragma once

#include <algorithm>
#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "squareq/error.hpp"
#include "squareq/slab/tests/scratch.hpp"

namespace squareq::test {

/// The problem that the call throws; code OK where it throws none.
template <class Call>
Problem problem_of(Call&& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.problem();
  }
  return {};
}

/// The text holds every part: a message that names the thing and both values.
inline bool holds(const std::string& text, const std::vector<std::string>& parts) {
  return std::all_of(parts.begin(), parts.end(), [&](const std::string& part) { return text.find(part) != std::string::npos; });
}

inline std::vector<std::string> files_of(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

inline nlohmann::json header_of(const std::string& file) {
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  return nlohmann::json::parse(file.substr(8, length));
}

inline std::string tensor_bytes(const std::filesystem::path& path, const std::string& name) {
  const std::string file = read_file(path);
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  const auto range = header_of(file).at(name).at("data_offsets").get<std::array<std::uint64_t, 2>>();
  return file.substr(8 + length + range[0], range[1] - range[0]);
}

/// Changes one byte of a tensor where it lies in the file.
inline void change_byte(const std::filesystem::path& path, const std::string& name, std::size_t at, char value) {
  std::string file = read_file(path);
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  file[8 + length + header_of(file).at(name).at("data_offsets")[0].get<std::uint64_t>() + at] = value;
  write_file(path, file);
}

}  // namespace squareq::test
