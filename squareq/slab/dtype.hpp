// The 22 element types of a safetensors file, in the order of the reference implementation (spec/20-slab-format.md, SQ-FMT-003).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "squareq/contract.h"

namespace squareq {

/// The order is normative: the writer sorts tensors by it, descending.
enum class FileDtype : std::uint8_t {
  BOOL, F4, F6_E2M3, F6_E3M2, U8, I8, F8_E5M2, F8_E4M3, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ,
  I16, U16, F16, BF16, I32, U32, F32, C64, F64, I64, U64
};
inline constexpr int file_dtype_count = 22;

/// Bits per element; not always a multiple of 8 (F4, F6).
std::uint32_t dtype_bits(FileDtype dtype);

/// "F32", "BF16", ... as written in headers.
std::string_view dtype_name(FileDtype dtype);

/// The dtype of that exact (case-sensitive) name.
std::optional<FileDtype> parse_dtype(std::string_view name);

/// The contract's dtype, where it has one.
std::optional<sq_dtype> to_sq_dtype(FileDtype dtype);

/// The file's dtype of a contract dtype. Every sq_dtype has one.
FileDtype from_sq_dtype(sq_dtype dtype);

}  // namespace squareq
