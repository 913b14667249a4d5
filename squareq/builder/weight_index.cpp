#include "squareq/builder/weight_index.hpp"

#include <set>

#include "squareq/slab/strict_json.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

constexpr std::uint64_t max_index_bytes = 64ull << 20;

class IndexReader : public StrictJson {
 public:
  WeightIndex index;
  std::string problem;
  bool has_map = false;

 protected:
  void on_key(std::uint32_t depth, std::string& key) override {
    if (depth == 1) in_map_ = key == "weight_map";
    if (depth == 2 && in_map_) tensor_ = std::move(key);
  }

  void on_value(std::uint32_t depth, JsonValue value) override {
    if (depth == 0 && value.kind != JsonValue::Kind::object) fail("is no JSON object");
    if (depth == 1 && in_map_) {
      has_map = value.kind == JsonValue::Kind::object;
      if (!has_map) fail("has a weight_map that is no object");
    }
    if (depth != 2 || !in_map_ || !has_map) return;
    if (value.kind != JsonValue::Kind::string) return fail("gives tensor " + printable(tensor_) + " no file name");
    index.file_of[tensor_] = std::move(*value.text);
  }

  void on_end(std::uint32_t depth) override {
    if (depth == 1) in_map_ = false;
  }
  void on_duplicate(std::uint32_t, std::string_view key) override { fail("holds the key " + printable(key) + " twice"); }

 private:
  void fail(const std::string& what) {
    if (problem.empty()) problem = what;
  }

  bool in_map_ = false;
  std::string tensor_;
};

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& what) {
  throw Error(Code::MD_INDEX, printable_path(path) + " " + what, path.string());
}

}  // namespace

WeightIndex read_weight_index(const std::filesystem::path& path) {
  const std::string text = read_text(path, max_index_bytes, Code::MD_INDEX);
  if (const std::size_t at = find_control_byte(text); at != std::string::npos)
    refuse(path, "holds a control byte at byte " + std::to_string(at));
  if (const std::size_t at = find_invalid_utf8(text); at != std::string::npos) refuse(path, "is not UTF-8 at byte " + std::to_string(at));
  IndexReader reader;
  if (const auto failure = reader.scan(text))
    refuse(path, failure->too_deep ? "nests deeper than 64 levels" : "is not valid JSON at byte " + std::to_string(failure->position));
  if (!reader.problem.empty()) refuse(path, reader.problem);
  if (!reader.has_map) refuse(path, "has no weight_map");
  if (reader.index.file_of.empty()) refuse(path, "has an empty weight_map");
  std::set<std::string> files;
  for (const auto& [tensor, file] : reader.index.file_of) files.insert(file);
  reader.index.files.assign(files.begin(), files.end());
  return std::move(reader.index);
}

void check_shard(const WeightIndex& index, const std::string& shard, const SafetensorsFile& file, const std::filesystem::path& index_path) {
  const auto where = [&](const std::string& tensor) {
    const auto found = index.file_of.find(tensor);
    return found == index.file_of.end() ? std::string("not at all") : "in " + printable(found->second);
  };
  for (const TensorRecord& t : file.header().tensors)
    if (const auto found = index.file_of.find(t.name); found == index.file_of.end() || found->second != shard)
      throw Error(Code::MD_TENSOR,
                  printable_path(file.path()) + " holds tensor " + printable(t.name) + ", " + printable_path(index_path) + " lists it " +
                      where(t.name),
                  file.path().string(), "", printable(t.name));
  for (const auto& [tensor, name] : index.file_of)
    if (name == shard && !file.header().find(tensor))
      throw Error(Code::MD_TENSOR,
                  printable_path(index_path) + " lists tensor " + printable(tensor) + " in " + printable(shard) + ", which lacks it",
                  file.path().string(), "", printable(tensor));
}

}  // namespace squareq
