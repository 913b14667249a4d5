// What the tests of `forward` and of the transformer share: fixture folders, slabs built from them, comparison of tensor files.
#pragma once

#include <gtest/gtest.h>

#include <unistd.h>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fixtures/places.hpp"
#include "squareq/builder/build.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/training/forward.hpp"

namespace squareq::training::testing {

inline std::filesystem::path fixture(const std::string& name) { return test::fixtures() / name; }

/// A folder of this process's own, removed at exit of the test.
class Scratch {
 public:
  Scratch() {
    std::string text = (std::filesystem::temp_directory_path() / "squareq-forward-XXXXXX").string();
    path_ = mkdtemp(text.data());
  }
  ~Scratch() { std::filesystem::remove_all(path_); }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Every tensor of a file as doubles (F64, F32 or BF16).
inline std::map<std::string, std::vector<double>> numbers(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  std::map<std::string, std::vector<double>> out;
  for (const TensorRecord& record : file.header().tensors) {
    const std::vector<std::byte> bytes = file.read_all(record.name);
    std::vector<double>& values = out[record.name];
    values.resize(record.elements());
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (record.dtype == FileDtype::F64) {
        std::memcpy(&values[i], &bytes[8 * i], 8);
      } else {
        std::uint32_t bits = 0;
        const std::size_t width = record.dtype == FileDtype::F32 ? 4 : 2;  // BF16 is the upper half of an F32
        std::memcpy(reinterpret_cast<std::byte*>(&bits) + (4 - width), &bytes[width * i], width);
        float value;
        std::memcpy(&value, &bits, 4);
        values[i] = value;
      }
    }
  }
  return out;
}

inline double relative_l2(const std::vector<double>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return INFINITY;
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

/// Builds a slab of a fixture's checkpoint.
inline std::filesystem::path build_slab(const std::filesystem::path& model, const Scratch& scratch, const std::string& name,
                                        bool companion = true, std::vector<std::string> prefixes = {}) {
  BuildOptions options;
  options.model = model;
  options.out = scratch.path();
  options.name = name;
  options.companion = companion;
  options.include_prefixes = std::move(prefixes);
  options.threads = 1;
  build(options);
  return scratch / name;
}

/// The code that `work` throws; OK where it throws nothing. `message` gets the text.
template <class Work>
Code code_of(Work&& work, std::string* message = nullptr) {
  try {
    work();
  } catch (const Error& e) {
    if (message) *message = e.what();
    return e.code();
  }
  return Code::OK;
}

}  // namespace squareq::training::testing
