// Small files for tests.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "squareq/error.hpp"
#include "squareq/slab/writer.hpp"

namespace squareq::training {

/// A folder of its own that goes away with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string text = (std::filesystem::temp_directory_path() / "squareq-test-XXXXXX").string();
    if (!mkdtemp(text.data())) throw std::runtime_error("mkdtemp");
    path_ = text;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

struct NamedTensor {
  std::string name;
  FileDtype dtype = FileDtype::F32;
  std::vector<std::uint64_t> shape;
  std::string bytes;
};

inline NamedTensor f32(const std::string& name, std::vector<std::uint64_t> shape, const std::vector<float>& values) {
  NamedTensor t{name, FileDtype::F32, std::move(shape), std::string(values.size() * 4, '\0')};
  std::memcpy(t.bytes.data(), values.data(), t.bytes.size());
  return t;
}

inline void write_file(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors, const Metadata& metadata = {}) {
  std::vector<TensorSpec> specs;
  for (const NamedTensor& t : tensors) specs.push_back({t.name, t.dtype, t.shape});
  SafetensorsWriter writer(path, specs, metadata);
  for (const NamedTensor& t : tensors) writer.write(t.name, 0, t.bytes.data(), t.bytes.size());
  writer.commit();
}

inline void write_plain(const std::filesystem::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

/// The code an action fails with; its message must hold every one of `words`.
template <class Action>
Code failure(Action&& action, std::initializer_list<const char*> words = {}) {
  try {
    action();
  } catch (const Error& e) {
    for (const char* word : words)
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << "'" << word << "' not in: " << e.what();
    return e.code();
  }
  return Code::OK;
}

}  // namespace squareq::training
