#include "squareq/slab/dtype.hpp"

#include <array>

namespace squareq {
namespace {

struct Row {
  std::string_view name;
  std::uint32_t bits;
  std::int32_t contract;  // sq_dtype, or -1
};

// In enum order.
constexpr std::array<Row, file_dtype_count> table = {{
    {"BOOL", 8, -1},        {"F4", 4, -1},          {"F6_E2M3", 6, -1}, {"F6_E3M2", 6, -1}, {"U8", 8, SQ_U8},    {"I8", 8, SQ_I8},
    {"F8_E5M2", 8, -1},     {"F8_E4M3", 8, -1},     {"F8_E8M0", 8, -1}, {"F8_E4M3FNUZ", 8, -1}, {"F8_E5M2FNUZ", 8, -1}, {"I16", 16, -1},
    {"U16", 16, -1},        {"F16", 16, SQ_F16},    {"BF16", 16, SQ_BF16}, {"I32", 32, SQ_I32}, {"U32", 32, -1},  {"F32", 32, SQ_F32},
    {"C64", 64, -1},        {"F64", 64, SQ_F64},    {"I64", 64, SQ_I64}, {"U64", 64, -1},
}};

}  // namespace

std::uint32_t dtype_bits(FileDtype dtype) { return table[static_cast<std::size_t>(dtype)].bits; }
std::string_view dtype_name(FileDtype dtype) { return table[static_cast<std::size_t>(dtype)].name; }

std::optional<FileDtype> parse_dtype(std::string_view name) {
  for (std::size_t i = 0; i < table.size(); ++i)
    if (table[i].name == name) return static_cast<FileDtype>(i);
  return std::nullopt;
}

std::optional<sq_dtype> to_sq_dtype(FileDtype dtype) {
  const std::int32_t contract = table[static_cast<std::size_t>(dtype)].contract;
  if (contract < 0) return std::nullopt;
  return static_cast<sq_dtype>(contract);
}

FileDtype from_sq_dtype(sq_dtype dtype) {
  for (std::size_t i = 0; i < table.size(); ++i)
    if (table[i].contract == static_cast<std::int32_t>(dtype)) return static_cast<FileDtype>(i);
  return FileDtype::U8;
}

}  // namespace squareq
