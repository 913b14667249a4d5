// Where a command puts a new slab: --out DIR --name NAME, checked as `squareq build` checks them.
#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <string>

#include "squareq/slab/slab.hpp"
#include "squareq/text.hpp"

namespace squareq::cli {

/// CFG_VALUE for a name that is not one plain file name, IO_MISSING for a folder that does not exist.
inline SlabPaths output_place(const std::filesystem::path& folder, const std::string& name) {
  const bool bad = !is_slab_name(name) || name.size() > 200 || name.find(':') != std::string::npos || printable(name) != name;
  if (bad) throw Error(Code::CFG_VALUE, "slab name '" + printable(name) + "' is not one plain file name of 1 to 200 bytes");
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored))
    throw Error(Code::IO_MISSING, "output folder '" + printable_path(folder) + "' does not exist", folder.string());
  return SlabPaths::resolve(folder / (name + ".safetensors"));
}

inline std::string size_text(std::uint64_t bytes) {
  const auto size = static_cast<double>(bytes);
  return bytes < 1'000'000'000 ? fmt::format("{:.2f} MB", size * 1e-6) : fmt::format("{:.2f} GB", size * 1e-9);
}

}  // namespace squareq::cli
