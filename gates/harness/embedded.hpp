// Data files that travel inside the program, so that an installed suite needs no folder of fixtures. The list: gates/CMakeLists.txt.
#pragma once

#include <string_view>
#include <vector>

namespace squareq::gates {

/// The file's bytes. Throws Error(INTERNAL) for a name that was not embedded.
std::string_view embedded(std::string_view name);
/// Names that start with `prefix`, sorted.
std::vector<std::string_view> embedded_names(std::string_view prefix);

}  // namespace squareq::gates
