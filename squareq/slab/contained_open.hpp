// Opening a file that another file named (a shard of an index): the name may not lead out of its folder (SQ-FMT-092).
#pragma once

#include <filesystem>
#include <string_view>

#include "squareq/slab/file.hpp"

namespace squareq {

/// Opens `name` inside `directory` for reading. `name` must be one basename: not empty, `.` or `..`, without `/ \ : NUL`; it is
/// opened relative to the folder's descriptor. A link may resolve only inside `directory`, or, where the folder lies in a Hugging
/// Face cache, inside the same `models--*` folder. Anything else: IO_ESCAPE. Else the errors of InputFile::open.
InputFile contained_open(const std::filesystem::path& directory, std::string_view name);

}  // namespace squareq
