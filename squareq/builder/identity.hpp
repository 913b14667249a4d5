// What makes two builds the same build, and what a companion records of its source.
#pragma once

#include <string>

#include "squareq/builder/build.hpp"
#include "squareq/builder/checkpoint.hpp"
#include "squareq/builder/selection.hpp"

namespace squareq {

/// SHA-256 over the source files (path, device, inode, size, mtime, header digest) and every option that changes the slab's bytes.
/// Two runs with the same identity would write the same bytes.
std::string build_identity(const Checkpoint& checkpoint, const Selection& selection, const BuildOptions& options);

/// {"files": [{"name", "bytes", "header_xxh3"}], "prefix", "signature", "tensors", "linears"}: no path and no time, so that the
/// companion's bytes depend on the source's content only.
std::string source_record(const Checkpoint& checkpoint, const Selection& selection);

}  // namespace squareq
