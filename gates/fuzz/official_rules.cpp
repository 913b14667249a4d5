#include "gates/fuzz/official_rules.hpp"

#include <algorithm>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace squareq::fuzz {
namespace {

using nlohmann::json;

int bits_of(const std::string& dtype) {
  static const std::map<std::string, int> bits = {
      {"BOOL", 8},    {"F4", 4},          {"F6_E2M3", 6},     {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},
      {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16}, {"F16", 16}, {"BF16", 16},   {"I32", 32},
      {"U32", 32},    {"F32", 32},        {"C64", 64},        {"F64", 64},    {"I64", 64}, {"U64", 64}};
  const auto found = bits.find(dtype);
  return found == bits.end() ? 0 : found->second;
}

bool natural(const json& value, std::uint64_t& out) {
  if (!value.is_number_unsigned()) return false;
  out = value.get<std::uint64_t>();
  return true;
}

struct Tensor {
  std::uint64_t begin = 0, end = 0, bits = 0;
};

/// One record; false where the package refuses it.
bool read_tensor(const json& record, Tensor& tensor) {
  if (!record.is_object() || !record.contains("dtype") || !record.contains("shape") || !record.contains("data_offsets")) return false;
  if (!record["dtype"].is_string() || !record["shape"].is_array() || !record["data_offsets"].is_array() ||
      record["data_offsets"].size() != 2)
    return false;
  if (!natural(record["data_offsets"][0], tensor.begin) || !natural(record["data_offsets"][1], tensor.end)) return false;
  const int width = bits_of(record["dtype"].get<std::string>());
  if (width == 0) return false;
  tensor.bits = 1;
  for (const json& size : record["shape"]) {
    std::uint64_t n = 0;
    if (!natural(size, n) || __builtin_mul_overflow(tensor.bits, n, &tensor.bits)) return false;
  }
  return !__builtin_mul_overflow(tensor.bits, static_cast<std::uint64_t>(width), &tensor.bits);
}

}  // namespace

bool official_accepts(std::string_view file) {
  if (file.size() < 8) return false;
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = (length << 8) | static_cast<unsigned char>(file[static_cast<std::size_t>(i)]);
  if (length > 100'000'000 || length > file.size() - 8) return false;
  const std::string_view text = file.substr(8, static_cast<std::size_t>(length));
  // The package's parser knows neither a byte order mark nor a NUL that ends the text; this one does.
  if (text.starts_with("\xEF\xBB\xBF") || text.find('\0') != std::string_view::npos) return false;
  const json root = json::parse(text, nullptr, false);
  if (!root.is_object()) return false;
  std::vector<Tensor> tensors;
  for (const auto& [name, record] : root.items()) {
    if (name == "__metadata__") {
      if (record.is_null()) continue;
      if (!record.is_object()) return false;
      for (const auto& [key, value] : record.items())
        if (!value.is_string()) return false;
      continue;
    }
    if (!read_tensor(record, tensors.emplace_back())) return false;
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const Tensor& a, const Tensor& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  std::uint64_t at = 0;
  for (const Tensor& t : tensors) {
    if (t.begin != at || t.end < t.begin || t.bits % 8 != 0 || t.bits / 8 != t.end - t.begin) return false;
    at = t.end;
  }
  return at == file.size() - 8 - length;
}

}  // namespace squareq::fuzz
