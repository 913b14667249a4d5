// The mutation points that instrument.py found, and those known to change nothing that spec/ promises (equivalent.json).
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace squareq::gates::mutation {

struct MutationPoint {
  int id = 0;  ///< from 1, without gaps
  std::string file, from, to, source;
  int line = 0, column = 0;
  std::string reason;  ///< why it is equivalent; empty: it must be killed
};

/// Reads both files. An entry of `equivalent` names file, source line (trimmed), from, to, and `occurrence` (from 1; 0: every one) among
/// the points that agree in these. Throws Error(CFG_VALUE) for an entry that names no point or has no reason.
std::vector<MutationPoint> read_points(const std::filesystem::path& points, const std::filesystem::path& equivalent);

/// "reference/numbers.hpp:22:10: `<<` becomes `>>`"
std::string text(const MutationPoint& point);

}  // namespace squareq::gates::mutation
