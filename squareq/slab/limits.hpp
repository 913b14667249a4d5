// Caps that hold before any allocation (spec/20-slab-format.md, SQ-FMT-011, 017, 029, 041, 048).
#pragma once

#include <cstddef>
#include <cstdint>

namespace squareq::limits {

inline constexpr std::uint64_t header_bytes = 100'000'000;
inline constexpr std::uint64_t manifest_bytes = 64ull << 20;
inline constexpr std::uint32_t json_depth = 64;
inline constexpr std::size_t slab_rank = 8;
inline constexpr std::size_t name_bytes = 512;
inline constexpr std::size_t architecture_id_bytes = 256;
inline constexpr std::size_t problems = 1000;
inline constexpr std::size_t smallest_record_bytes = 50;  ///< no tensor record is shorter, so a header of N bytes has at most N/50

}  // namespace squareq::limits
