// A small good pair in memory that tests bend before they write it: two layers, `a` [2, 3] with bias and `b.c` [1, 4] without, pad_k 4.
#pragma once

#include <filesystem>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "squareq/slab/companion.hpp"
#include "squareq/slab/manifest.hpp"
#include "squareq/slab/slab.hpp"
#include "squareq/slab/tests/scratch.hpp"

namespace squareq::test {

struct TensorData {
  FileDtype dtype;
  std::vector<std::uint64_t> shape;
  std::string bytes;
};

inline std::string floats(const std::vector<float>& values) { return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)}; }
inline std::string codes_of(const std::vector<int>& values) {
  std::string bytes;
  for (const int v : values) bytes += static_cast<char>(v);
  return bytes;
}

struct Pair {
  std::map<std::string, TensorData> tensors = {
      {"a.qweight", {FileDtype::I8, {2, 4}, codes_of({127, -3, 4, 0, -127, 0, 1, 0})}},
      {"a.scale", {FileDtype::F32, {2}, floats({0.5f, 0.25f})}},
      {"a.zero_point", {FileDtype::F32, {2}, floats({0, 0})}},
      {"a.bias", {FileDtype::F32, {2}, floats({1, -1})}},
      {"b.c.qweight", {FileDtype::I8, {1, 4}, codes_of({1, 2, 3, 127})}},
      {"b.c.scale", {FileDtype::F32, {1}, floats({1})}},
      {"b.c.zero_point", {FileDtype::F32, {1}, floats({0})}},
  };
  Manifest manifest{"0123456789abcdef", "test", {make_layer("a", 2, 3, 4, true), make_layer("b.c", 1, 4, 4, false)}};
  std::string text = manifest_text(manifest);
  // Of the companion:
  std::string architecture = R"({"id":"test","config":{}})", source = R"({"files":[]})";
  TensorData norm = {FileDtype::BF16, {3}, std::string("\x80\x3f\x80\x3f\x80\x3f", 6)};

  void replace(const std::string& from, const std::string& to) {
    const std::size_t at = text.find(from);
    if (at == std::string::npos) throw std::logic_error("the manifest has no " + from);
    text.replace(at, from.size(), to);
  }

  std::vector<TensorSpec> specs() const {
    std::vector<TensorSpec> list;
    for (const auto& [name, t] : tensors) list.push_back({name, t.dtype, t.shape});
    return list;
  }

  SlabPaths write(const Scratch& scratch, const std::string& stem = "pair") const {
    const SlabPaths paths = SlabPaths::resolve(scratch / stem);
    SafetensorsWriter writer(paths.slab, specs());
    for (const auto& [name, t] : tensors) writer.write(name, 0, t.bytes.data(), t.bytes.size());
    writer.commit();
    write_file(paths.manifest, text);
    return paths;
  }

  /// The same with a companion that holds one BF16 norm, published the way the builder does it.
  SlabPaths publish(const Scratch& scratch, const PublishOptions& options = {}, const std::string& stem = "pair") const {
    const SlabPaths paths = SlabPaths::resolve(scratch / stem);
    SafetensorsWriter::Options with_seams;
    with_seams.seams = options.seams;
    SafetensorsWriter writer(paths.slab, specs(), {}, with_seams);
    for (const auto& [name, t] : tensors) writer.write(name, 0, t.bytes.data(), t.bytes.size());
    std::vector<std::uint64_t> digests;
    for (std::size_t i = 0; i < writer.layout().header.tensors.size(); ++i) digests.push_back(writer.digest(i));
    CompanionWriter companion(paths.companion, {{"norm.weight", norm.dtype, norm.shape}}, writer.layout(), architecture, source, with_seams);
    companion.write("norm.weight", 0, norm.bytes.data(), norm.bytes.size());
    companion.finish(make_integrity(writer.layout(), text, digests));
    publish_slab(paths, writer, &companion, text, options);
    return paths;
  }
};

/// Public code names of all problems, sorted and unique, then "w:" and those of the warnings.
inline std::string code_set(const Report& report) {
  std::set<std::string> names;
  for (const Problem& p : report.problems) names.insert(std::string(public_code_name(p.code)));
  for (const Problem& p : report.warnings) names.insert("w:" + std::string(public_code_name(p.code)));
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

}  // namespace squareq::test
