// What a shared library offers to others.
#pragma once

#include <string>
#include <vector>

namespace squareq::gates {

/// Names of the symbols that a 64-bit ELF file defines for others. Throws std::runtime_error for a file that is none.
std::vector<std::string> exported_symbols(const std::string& path);

}  // namespace squareq::gates
