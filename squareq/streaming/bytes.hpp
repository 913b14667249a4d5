// Sizes as people write them: "1GiB", "512MiB", "8GB", "1.5 GiB", "4096".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace squareq::streaming {

/// Parses a byte count: a decimal number and an optional unit B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of
/// 1024), letter case ignored, blanks between number and unit allowed. A fraction is rounded down to whole bytes. Throws CFG_VALUE
/// naming `what` (a flag or configuration key) for anything else, for negative numbers and for 2^63 bytes or more.
std::uint64_t parse_bytes(std::string_view text, std::string_view what);

/// "11.12 GiB", "512.0 MiB", "640 B": binary units, for people.
std::string bytes_text(std::uint64_t bytes);

}  // namespace squareq::streaming
