#include "squareq/training/data/cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "squareq/error.hpp"
#include "squareq/text.hpp"
#include "squareq/training/data/tensor_reader.hpp"
#include "squareq/training/trainer/strict_json.hpp"

namespace squareq::training {

namespace {

constexpr const char* latents_key = "latents";
constexpr const char* noise_key = "noise";
constexpr const char* text_key = "encoder_hidden_states";
constexpr const char* pooled_key = "pooled_projections";

/// A tensor of the given rank and a 16- or 32-bit float dtype, or null where it is absent and `required` is false.
const TensorRecord* find(const SafetensorsFile& file, const char* name, std::size_t rank, bool required) {
  const std::string shown = printable_path(file.path());
  const TensorRecord* tensor = file.header().find(name);
  if (!tensor) {
    if (required) throw Error(Code::DS_TENSOR, fmt::format("{}: no tensor '{}'", shown, name), shown, {}, name);
    return nullptr;
  }
  if (tensor->shape.size() != rank)
    throw Error(Code::DS_SHAPE, fmt::format("{}: '{}' has {} dimensions, expected {}", shown, name, tensor->shape.size(), rank), shown, {},
                name);
  if (tensor->dtype != FileDtype::F16 && tensor->dtype != FileDtype::BF16 && tensor->dtype != FileDtype::F32)
    throw Error(Code::DS_SHAPE, fmt::format("{}: '{}' is {}, expected F16, BF16 or F32", shown, name, dtype_name(tensor->dtype)), shown, {},
                name);
  for (std::size_t d = 1; d < rank; ++d)
    if (tensor->shape[d] == 0 || tensor->shape[d] > (std::uint64_t{1} << 31))
      throw Error(Code::DS_SHAPE, fmt::format("{}: '{}' has size {} in dimension {}", shown, name, tensor->shape[d], d), shown, {}, name);
  return tensor;
}

std::int64_t dimension(const TensorRecord& tensor, std::size_t d) { return static_cast<std::int64_t>(tensor.shape[d]); }

std::vector<std::string> read_captions(const std::filesystem::path& path, std::int64_t rows) {
  const std::string shown = printable_path(path);
  const auto root = parse_strict(read_text(path, 256 << 20, Code::DS_CAPTIONS), shown, Code::DS_CAPTIONS);
  if (!root.is_array()) throw Error(Code::DS_CAPTIONS, shown + ": is an object, expected a list of captions", shown);
  std::vector<std::string> captions;
  for (const auto& item : root) {
    const auto* text = item.is_string()                                                              ? &item
                       : item.is_object() && item.contains("caption") && item["caption"].is_string() ? &item["caption"]
                                                                                                     : nullptr;
    if (!text) throw Error(Code::DS_CAPTIONS, fmt::format("{}: entry {} is no caption", shown, captions.size()), shown);
    captions.push_back(text->template get_ref<const std::string&>());
  }
  if (static_cast<std::int64_t>(captions.size()) != rows)
    throw Error(Code::DS_COUNT, fmt::format("{}: {} captions for {} rows", shown, captions.size(), rows), shown);
  return captions;
}

}  // namespace

Cache Cache::open(const std::vector<std::filesystem::path>& files, CacheUse use) {
  if (files.empty()) throw Error(Code::DS_TENSOR, "the data set names no file");
  Cache cache;
  bool first = true;
  for (const std::filesystem::path& path : files) {
    const std::string shown = printable_path(path);
    SafetensorsFile file = SafetensorsFile::open(path);
    const TensorRecord* latents = find(file, latents_key, 3, use == CacheUse::training);
    const TensorRecord* noise = find(file, noise_key, 3, false);
    const TensorRecord* text = find(file, text_key, 3, true);
    const TensorRecord* pooled = find(file, pooled_key, 2, true);

    CacheShape shape;
    if (const TensorRecord* grid = latents ? latents : noise) shape.tokens = dimension(*grid, 1), shape.channels = dimension(*grid, 2);
    shape.text_tokens = dimension(*text, 1), shape.text_dim = dimension(*text, 2);
    shape.pooled_dim = dimension(*pooled, 1);
    const std::int64_t rows = dimension(*text, 0);
    if (rows == 0) throw Error(Code::DS_COUNT, shown + ": holds no rows", shown);
    for (const TensorRecord* tensor : {latents, noise, pooled})
      if (tensor && dimension(*tensor, 0) != rows)
        throw Error(Code::DS_COUNT,
                    fmt::format("{}: '{}' has {} rows, '{}' has {}", shown, printable(tensor->name), dimension(*tensor, 0), text_key, rows),
                    shown, {}, printable(tensor->name));
    if (latents && noise && latents->shape != noise->shape)
      throw Error(Code::DS_SHAPE,
                  fmt::format("{}: latents are [{}, {}] per row, noise is [{}, {}]", shown, latents->shape[1], latents->shape[2],
                              noise->shape[1], noise->shape[2]),
                  shown, {}, noise_key);
    const auto text_of = [](const CacheShape& s) {
      return fmt::format("{} x {} latents, {} x {} text, {} pooled", s.tokens, s.channels, s.text_tokens, s.text_dim, s.pooled_dim);
    };
    if (!first && !(shape == cache.shape_))
      throw Error(Code::DS_SHAPE,
                  fmt::format("{}: rows have {}; {} has {}", shown, text_of(shape), printable_path(files.front()), text_of(cache.shape_)),
                  shown);
    if (!first && ((latents != nullptr) != cache.has_latents_ || (noise != nullptr) != cache.has_noise_))
      throw Error(Code::DS_TENSOR, fmt::format("{}: holds other tensors than {}", shown, printable_path(files.front())), shown);
    cache.shape_ = shape;
    cache.has_latents_ = latents != nullptr;
    cache.has_noise_ = noise != nullptr;

    std::filesystem::path captions = path;
    captions.replace_extension(".json");
    if (std::error_code ignored; std::filesystem::exists(captions, ignored)) {
      const auto texts = read_captions(captions, rows);
      cache.captions_.resize(static_cast<std::size_t>(cache.rows_));
      cache.captions_.insert(cache.captions_.end(), texts.begin(), texts.end());
    } else if (!cache.captions_.empty()) {
      cache.captions_.resize(static_cast<std::size_t>(cache.rows_ + rows));
    }
    cache.rows_ += rows;
    cache.parts_.push_back({std::move(file), rows});
    first = false;
  }
  return cache;
}

void Cache::read(const char* tensor, std::int64_t row, std::int64_t elements, float* out) const {
  std::int64_t local = row;
  for (const Part& part : parts_) {
    if (local < part.rows && row >= 0) {
      const std::string shown = printable_path(part.file.path());
      const TensorRecord* record = part.file.header().find(tensor);
      if (!record) throw Error(Code::DS_TENSOR, fmt::format("{}: no tensor '{}'", shown, tensor), shown, {}, tensor);
      read_floats(part.file, *record, static_cast<std::uint64_t>(local * elements), static_cast<std::uint64_t>(elements), out);
      if (!std::all_of(out, out + elements, [](float x) { return std::isfinite(x); }))
        throw Error(Code::NUM_NONFINITE, fmt::format("{}: row {} of '{}' holds NaN or infinity", shown, local, tensor), shown, {}, tensor);
      return;
    }
    local -= part.rows;
  }
  throw Error(Code::CALL_VALUE, fmt::format("row {} of a data set of {}", row, rows_));
}

void Cache::require_sizes(std::int64_t channels, std::int64_t text_dim, std::int64_t pooled_dim) const {
  const std::string shown = printable_path(parts_.front().file.path());
  const auto require = [&](const char* tensor, std::int64_t have, std::int64_t want) {
    if (have != want && have != 0 && want != 0)
      throw Error(Code::DS_SHAPE, fmt::format("{}: '{}' has {} features, the model takes {}", shown, tensor, have, want), shown, {},
                  tensor);
  };
  require(has_latents_ ? latents_key : noise_key, shape_.channels, channels);
  require(text_key, shape_.text_dim, text_dim);
  require(pooled_key, shape_.pooled_dim, pooled_dim);
}

TokenGrid token_grid(std::int64_t tokens, std::int64_t height, std::int64_t width) {
  if (height == 0 && width == 0) {
    const auto side = static_cast<std::int64_t>(std::llround(std::sqrt(static_cast<double>(tokens))));
    if (side * side != tokens)
      throw Error(Code::DS_SHAPE, fmt::format("{} tokens make no square picture; set data.height and data.width", tokens));
    return {side, side};
  }
  if (height * width != tokens)
    throw Error(Code::DS_SHAPE,
                fmt::format("data.height {} x data.width {} is {} tokens, the latents have {}", height, width, height * width, tokens));
  return {height, width};
}

}  // namespace squareq::training
