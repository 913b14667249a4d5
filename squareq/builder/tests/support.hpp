// A scratch folder, a plain safetensors writer of its own (so that sources do not depend on the code under test), and small readers.
#pragma once

#include <gtest/gtest.h>
#include <openssl/sha.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fixtures/places.hpp"
#include "squareq/builder/build.hpp"

namespace squareq::builder_test {

namespace fs = std::filesystem;

class Scratch {
 public:
  Scratch() {
    std::string pattern = (fs::temp_directory_path() / "squareq-builder-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  fs::path operator/(const std::string& name) const { return path_ / name; }
  const fs::path& path() const { return path_; }
  fs::path folder(const std::string& name) const {
    fs::create_directories(path_ / name);
    return path_ / name;
  }

 private:
  fs::path path_;
};

inline std::string slurp(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void spit(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

inline std::string sha256(const std::string& bytes) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest);
  std::string hex;
  for (const unsigned char b : digest) {
    char pair[3];
    std::snprintf(pair, sizeof pair, "%02x", b);
    hex += pair;
  }
  return hex;
}

struct SourceTensor {
  std::string name, dtype;
  std::vector<std::uint64_t> shape;
  std::string data;
};

inline std::string container(const std::vector<SourceTensor>& tensors) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::string data;
  for (const SourceTensor& t : tensors) {
    header[t.name] = {{"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {data.size(), data.size() + t.data.size()}}};
    data += t.data;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string bytes(8, '\0');
  const std::uint64_t length = text.size();
  std::memcpy(bytes.data(), &length, 8);
  return bytes + text + data;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// The tensors of a safetensors file, read without the reader under test; `container` makes a file of them again.
inline std::vector<SourceTensor> tensors_in(const fs::path& path) {
  const std::string file = slurp(path);
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  std::vector<SourceTensor> tensors;
  const auto header = nlohmann::ordered_json::parse(file.substr(8, length));
  for (const auto& [name, t] : header.items()) {
    if (name == "__metadata__") continue;
    const std::uint64_t begin = t.at("data_offsets")[0], end = t.at("data_offsets")[1];
    tensors.push_back({name, t.at("dtype"), t.at("shape"), file.substr(8 + length + begin, end - begin)});
  }
  return tensors;
}

/// Deterministic bf16 values around 0 (uniform in +-0.05, rounded to bf16 by truncation).
inline std::string bf16_noise(std::uint64_t count, std::uint32_t seed) {
  std::vector<std::uint16_t> values(count);
  std::uint64_t state = seed * 0x9E3779B97F4A7C15ull + 1;
  for (auto& v : values) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const float f = (static_cast<float>(state >> 40) / 16777216.0f - 0.5f) * 0.1f;
    std::uint32_t bits;
    std::memcpy(&bits, &f, 4);
    v = static_cast<std::uint16_t>(bits >> 16);
  }
  return bytes_of(values);
}

inline BuildOptions options_for(const fs::path& model, const fs::path& out, const std::string& architecture = "none") {
  BuildOptions o;
  o.model = model;
  o.out = out;
  o.name = "slab";
  o.architecture = architecture;
  o.backend = "reference";
  return o;
}

inline Problem problem_of(const BuildOptions& options) {
  try {
    build(options);
  } catch (const Error& e) {
    return e.problem();
  }
  return {};
}

inline std::size_t files_in(const fs::path& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

inline fs::path emoji() { return test::fixtures() / "emoji/transformer"; }

/// A small FLUX.1 of fixtures/flux: `guided` in diffusers names, `bfl` the same weights in the other ones.
inline fs::path flux(const std::string& name) { return test::fixtures() / "flux" / name; }

/// The checkpoint folder `guided` with other tensors.
inline fs::path changed_flux(const Scratch& scratch, const std::string& name, const std::function<void(SourceTensor&)>& change) {
  const fs::path folder = scratch.folder(name);
  std::vector<SourceTensor> tensors = tensors_in(flux("guided") / "model.safetensors");
  for (SourceTensor& t : tensors) change(t);
  spit(folder / "model.safetensors", container(tensors));
  fs::copy_file(flux("guided") / "config.json", folder / "config.json");
  return folder;
}

/// A slab in the scratch folder, built by the CPU backend.
inline Slab built(const Scratch& scratch, const fs::path& model, const std::string& name, const std::function<void(BuildOptions&)>& change = {}) {
  BuildOptions o = options_for(model, scratch.path(), "auto");
  o.name = name;
  o.backend = "cpu";
  if (change) change(o);
  return Slab::open(build(o).paths.slab);
}

}  // namespace squareq::builder_test
