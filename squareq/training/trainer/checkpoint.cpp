#include "squareq/training/trainer/checkpoint.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "squareq/slab/digest.hpp"
#include "squareq/slab/writer.hpp"
#include "squareq/text.hpp"
#include "squareq/training/trainer/strict_json.hpp"

namespace squareq::training {

using json = nlohmann::ordered_json;

namespace {

constexpr const char* record_key = "squareq.checkpoint";
constexpr const char* losses_name = "losses";
constexpr std::string_view prefix = "step-", suffix = ".safetensors";

json record_of(const Checkpoint& c, const std::map<std::string, std::string>& digests) {
  json layers = json::array();
  for (const RunIdentity::Layer& l : c.identity.layers)
    layers.push_back({{"name", l.name}, {"rank", l.rank}, {"in", l.in}, {"out", l.out}, {"alpha", l.alpha}});
  return {{"version", 1},
          {"step", c.step},
          {"optimizer_step", c.optimizer_step},
          {"skipped", c.skipped},
          {"skipped_in_a_row", c.skipped_in_a_row},
          {"base", c.identity.base},
          {"settings", c.identity.settings},
          {"layers", layers},
          {"xxh3", digests}};
}

/// A checkpoint that cannot be used, whatever is wrong with it.
[[noreturn]] void damaged(const std::filesystem::path& path, const std::string& why) {
  const std::string shown = printable_path(path);
  throw Error(Code::CK_TRUNCATED, fmt::format("{}: {}", shown, why), shown);
}

std::int64_t whole(const json& object, const char* key, const std::filesystem::path& path) {
  if (!object.contains(key) || !object[key].is_number_integer()) damaged(path, fmt::format("its record has no whole number '{}'", key));
  return object[key].get<std::int64_t>();
}

std::string text(const json& object, const char* key, const std::filesystem::path& path) {
  if (!object.contains(key) || !object[key].is_string()) damaged(path, fmt::format("its record has no text '{}'", key));
  return object[key].get<std::string>();
}

/// Step number of a checkpoint's file name, -1 for any other name.
std::int64_t step_of(const std::string& name) {
  if (!name.starts_with(prefix) || !name.ends_with(suffix)) return -1;
  const std::string digits = name.substr(prefix.size(), name.size() - prefix.size() - suffix.size());
  if (digits.empty() || digits.size() > 18 || !std::all_of(digits.begin(), digits.end(), [](unsigned char c) { return std::isdigit(c); }))
    return -1;
  return std::stoll(digits);
}

/// Newest first.
std::vector<std::pair<std::int64_t, std::filesystem::path>> list(const std::filesystem::path& folder) {
  std::vector<std::pair<std::int64_t, std::filesystem::path>> found;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (const std::int64_t step = step_of(it->path().filename().string()); step >= 0) found.emplace_back(step, it->path());
  std::sort(found.rbegin(), found.rend());
  return found;
}

template <class T>
std::vector<T> read_as(const SafetensorsFile& file, const TensorRecord& tensor) {
  std::vector<T> values(tensor.elements());
  file.read(tensor, 0, values.data(), tensor.bytes());
  return values;
}

}  // namespace

std::filesystem::path checkpoint_path(const std::filesystem::path& folder, std::int64_t step) {
  return folder / fmt::format("{}{:08}{}", prefix, step, suffix);
}

void save_checkpoint(const std::filesystem::path& folder, const Checkpoint& c) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw_errno(error.value(), "create folder", folder);
  std::vector<TensorSpec> specs{{losses_name, FileDtype::F64, {c.losses.size()}}};
  std::map<std::string, std::string> digests{{losses_name, digest_hex(xxh3(c.losses.data(), 8 * c.losses.size()))}};
  for (const CheckpointTensor& t : c.tensors) {
    specs.push_back({t.name, FileDtype::F32, t.shape});
    digests[t.name] = digest_hex(xxh3(t.values.data(), 4 * t.values.size()));
  }
  SafetensorsWriter writer(checkpoint_path(folder, c.step), specs, {{record_key, record_of(c, digests).dump()}});
  writer.write(losses_name, 0, c.losses.data(), 8 * c.losses.size());
  for (const CheckpointTensor& t : c.tensors) writer.write(t.name, 0, t.values.data(), 4 * t.values.size());
  writer.commit();

  const auto all = list(folder);
  for (std::size_t i = 2; i < all.size(); ++i) std::filesystem::remove(all[i].second, error);
}

Checkpoint load_checkpoint(const std::filesystem::path& path) {
  try {
    const SafetensorsFile file = SafetensorsFile::open(path);
    const std::string* metadata = file.header().find_metadata(record_key);
    if (!metadata) damaged(path, "is no checkpoint: its header has no squareq.checkpoint record");
    const json record = parse_strict(*metadata, printable_path(path), Code::CK_TRUNCATED);
    if (!record.is_object()) damaged(path, "its record is no object");
    if (const std::int64_t version = whole(record, "version", path); version != 1)
      damaged(path, fmt::format("version {}, this program reads 1", version));
    Checkpoint c;
    c.step = whole(record, "step", path);
    c.optimizer_step = whole(record, "optimizer_step", path);
    c.skipped = whole(record, "skipped", path);
    c.skipped_in_a_row = whole(record, "skipped_in_a_row", path);
    c.identity.base = text(record, "base", path);
    if (!record.contains("settings") || !record["settings"].is_object()) damaged(path, "its record has no settings");
    for (const auto& [key, value] : record["settings"].items()) {
      if (!value.is_string()) damaged(path, "a setting of its record is no text");
      c.identity.settings[key] = value.get<std::string>();
    }
    if (!record.contains("layers") || !record["layers"].is_array()) damaged(path, "its record has no layers");
    for (const json& l : record["layers"]) {
      if (!l.is_object() || !l.contains("alpha") || !l["alpha"].is_number()) damaged(path, "a layer of its record has no alpha");
      c.identity.layers.push_back(
          {text(l, "name", path), whole(l, "rank", path), whole(l, "in", path), whole(l, "out", path), l["alpha"].get<double>()});
    }
    if (!record.contains("xxh3") || !record["xxh3"].is_object()) damaged(path, "its record has no digests");
    const json& digests = record["xxh3"];
    if (digests.size() != file.header().tensors.size())
      damaged(path, fmt::format("holds {} tensors, its record lists {}", file.header().tensors.size(), digests.size()));
    for (const TensorRecord& t : file.header().tensors) {
      const bool losses = t.name == losses_name;
      if (t.dtype != (losses ? FileDtype::F64 : FileDtype::F32))
        damaged(path, fmt::format("tensor '{}' is {}", printable(t.name), dtype_name(t.dtype)));
      if (!digests.contains(t.name) || digests[t.name] != json(digest_hex(tensor_digest(file, t))))
        damaged(path, fmt::format("bytes of tensor '{}' differ from their checksum", printable(t.name)));
      if (losses)
        c.losses = read_as<double>(file, t);
      else
        c.tensors.push_back({t.name, t.shape, read_as<float>(file, t)});
    }
    if (c.step < 0 || c.losses.size() != static_cast<std::size_t>(c.step))
      damaged(path, fmt::format("{} losses for {} steps", c.losses.size(), c.step));
    return c;
  } catch (const Error& e) {
    // What makes the container unreadable makes the checkpoint incomplete; a missing file or a failing disk stays what it is.
    if (code_class(e.code()) == CodeClass::FORMAT && e.code() != Code::CK_TRUNCATED)
      damaged(path, fmt::format("{} ({})", e.what(), code_name(e.code())));
    if (e.code() == Code::IO_SHORT_READ) damaged(path, e.what());
    throw;
  }
}

Checkpoint load_newest(const std::filesystem::path& folder, std::vector<Problem>& warnings) {
  const auto all = list(folder);
  const std::string shown = printable_path(folder);
  if (all.empty()) throw Error(Code::IO_MISSING, fmt::format("{} holds no checkpoint to resume from", shown), shown);
  for (const auto& [step, path] : all) {
    try {
      return load_checkpoint(path);
    } catch (const Error& e) {
      if (e.code() != Code::CK_TRUNCATED) throw;
      warnings.push_back(e.problem());
    }
  }
  throw Error(Code::CK_TRUNCATED, fmt::format("no checkpoint in {} is complete: {}", shown, warnings.front().message), shown);
}

bool has_checkpoints(const std::filesystem::path& folder) { return !list(folder).empty(); }

void require_same(const RunIdentity& run, const RunIdentity& checkpoint, const std::string& file) {
  std::vector<std::string> differences;
  if (run.base != checkpoint.base)
    differences.push_back(fmt::format("base is {}, the checkpoint's is {}", run.base, printable(checkpoint.base)));
  std::map<std::string, std::pair<std::string, std::string>> settings;
  for (const auto& [key, value] : run.settings) settings[key] = {value, "absent"};
  for (const auto& [key, value] : checkpoint.settings) {
    const auto [at, added] = settings.try_emplace(key, "absent", printable(value));
    if (!added) at->second.second = printable(value);
  }
  for (const auto& [key, values] : settings)
    if (values.first != values.second)
      differences.push_back(fmt::format("{} is {}, the checkpoint's is {}", printable(key), values.first, values.second));

  std::map<std::string, std::pair<const RunIdentity::Layer*, const RunIdentity::Layer*>> layers;
  for (const auto& layer : run.layers) layers[layer.name].first = &layer;
  for (const auto& layer : checkpoint.layers) layers[layer.name].second = &layer;
  std::size_t only_run = 0, only_checkpoint = 0, changed = 0;
  std::string first_run, first_checkpoint;
  for (const auto& [name, pair] : layers) {
    const auto [mine, theirs] = pair;
    if (!theirs) {
      if (only_run++ == 0) first_run = name;
    } else if (!mine) {
      if (only_checkpoint++ == 0) first_checkpoint = printable(name);
    } else if (!(*mine == *theirs) && changed++ < 3) {
      differences.push_back(fmt::format("{} has rank {} alpha {} [{}, {}], the checkpoint's has rank {} alpha {} [{}, {}]", name,
                                        mine->rank, mine->alpha, mine->out, mine->in, theirs->rank, theirs->alpha, theirs->out,
                                        theirs->in));
    }
  }
  if (changed > 3) differences.push_back(fmt::format("{} more layers differ alike", changed - 3));
  if (only_run > 0) differences.push_back(fmt::format("{} layers are not in the checkpoint (first: {})", only_run, first_run));
  if (only_checkpoint > 0)
    differences.push_back(fmt::format("{} layers are in the checkpoint only (first: {})", only_checkpoint, first_checkpoint));
  if (!differences.empty()) throw Error(Code::CK_MISMATCH, fmt::format("{}: {}", file, fmt::join(differences, "; ")), file);
}

}  // namespace squareq::training
