// The yardstick: reading the source and writing as many bytes as the slab has, sequentially, in large calls, and nothing else.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace squareq::bench {

/// Drops a file's clean pages from the page cache (after fsync), so that the next read comes from the disk.
void forget(const std::filesystem::path& file);

/// Seconds to read all files once, 8 MiB a call.
double read_seconds(const std::vector<std::filesystem::path>& files);
/// Seconds to write `bytes` to a new file (reserved first, 8 MiB a call) and fsync it. The file is removed afterwards.
double write_seconds(const std::filesystem::path& file, std::uint64_t bytes);

}  // namespace squareq::bench
