// The little arithmetic of the architecture registry: "3*D+M", "D/H", "O/(K*K)".
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace squareq::architecture_detail {

using Sizes = std::map<std::string, std::uint64_t, std::less<>>;

/// Value of an expression of unsigned integers, names, + * / and parentheses. Throws MD_TENSOR where a division is not exact or
/// 64 bits overflow (the sizes come from a file), INTERNAL for an unknown name or a syntax error (the registry is ours).
std::uint64_t evaluate(std::string_view expression, const Sizes& sizes);

}  // namespace squareq::architecture_detail
