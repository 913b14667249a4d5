// Any bytes as a LoRA file for a small model: 2 bytes length of the header, the header's text, and what its data is filled with. The
// data gets the size that the header asks for, so that names, shapes, alphas and the adapter's metadata are what is fuzzed. A file is
// read or refused with a code; what is read has the sizes it says and no number that is not finite.
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "gates/fuzz/common.hpp"
#include "squareq/architecture/architecture.hpp"
#include "squareq/training/lora/lora_file.hpp"

using namespace squareq;
using fuzz::require;

namespace {

constexpr std::uint64_t data_limit = 256 << 10;

const training::LoraNames& names() {
  static const training::LoraNames tiny = [] {
    std::ifstream file(SQUAREQ_FUZZ_MODEL);
    const auto keys = nlohmann::json::parse(file);
    std::vector<TensorShape> tensors;
    for (const auto& [name, shape] : keys.items()) tensors.push_back({name, shape.get<std::vector<std::uint64_t>>()});
    return training::LoraNames(recognise(tensors).value());
  }();
  return tiny;
}

/// The end of the last tensor that the header speaks of, as far as it can be told.
std::uint64_t data_bytes(std::string_view header) {
  const auto root = nlohmann::json::parse(header, nullptr, false);
  std::uint64_t bytes = 0;
  if (root.is_object())
    for (const auto& record : root)
      if (record.is_object() && record.contains("data_offsets") && record["data_offsets"].is_array() &&
          record["data_offsets"].size() == 2 && record["data_offsets"][1].is_number_unsigned())
        bytes = std::max(bytes, record["data_offsets"][1].get<std::uint64_t>());
  return std::min(bytes, data_limit);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::uint64_t length = fuzz::take_number(input, 2);
  const std::string_view header = input.substr(0, static_cast<std::size_t>(length < input.size() ? length : input.size()));
  const std::string_view pattern = input.substr(header.size());
  std::string file(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i));
  file += header;
  const std::uint64_t bytes = data_bytes(header);
  for (std::uint64_t i = 0; i < bytes; ++i) file += pattern.empty() ? '\0' : pattern[static_cast<std::size_t>(i % pattern.size())];
  const std::filesystem::path path = fuzz::write("lora.safetensors", file);
  try {
    const auto layers = training::read_lora(path, names());
    require(!layers.empty());
    for (const training::LoraLayer& l : layers) {
      require(l.rank > 0 && l.in > 0 && l.out > 0 && std::isfinite(l.alpha));
      require(l.down.size() == static_cast<std::size_t>(l.rank * l.in) && l.up.size() == static_cast<std::size_t>(l.out * l.rank));
      for (const float v : l.down) require(std::isfinite(v));
      for (const float v : l.up) require(std::isfinite(v));
      require(names().by_layer(l.layer) || names().by_native(l.layer));
    }
    for (std::size_t i = 1; i < layers.size(); ++i) require(layers[i - 1].layer < layers[i].layer);
  } catch (const Error& e) {
    require(e.code() != Code::OK && e.code() != Code::INTERNAL && code_name(e.code()) != "UNKNOWN");
    fuzz::require_printable(e.what());
  }
  return 0;
}
