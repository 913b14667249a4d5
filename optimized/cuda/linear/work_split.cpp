#include "optimized/cuda/linear/work_split.hpp"

#include <algorithm>

namespace squareq::cuda {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Clocks that a tile takes: per slice of 128 bytes of depth, for its start and end, to hand a part over, to take one in.
struct TileCost {
  int rows, slice, ends, give, take;
};
constexpr TileCost kCosts[] = {{256, 1080, 3500, 2000, 2500}, {128, 620, 2500, 1300, 1600}, {64, 400, 2000, 1000, 1200}};
constexpr int kSplitStart = 3000;  // clocks to clear the flags
constexpr int kLeastShare = 4;     // slices worth a cluster of their own

}  // namespace

WorkSplit share_out(std::int64_t rows, std::int64_t columns, std::int64_t depth_bytes, int multiprocessors) {
  const std::int64_t most = std::max(1, multiprocessors / 2), slices = ceil_div(depth_bytes, 128);
  WorkSplit best;
  std::int64_t least = 0;
  const auto consider = [&](const TileCost& cost, std::int64_t clusters, std::int64_t tiles, std::int64_t clocks) {
    if (best.rows && clocks >= least) return;
    best.rows = cost.rows, best.clusters = static_cast<std::int32_t>(clusters), best.tiles = static_cast<std::int32_t>(tiles);
    least = clocks;
  };
  for (const TileCost& cost : kCosts) {
    const std::int64_t tiles = ceil_div(rows, cost.rows) * ceil_div(columns, 256), whole = slices * cost.slice + cost.ends;
    consider(cost, std::min(most, tiles), 0, ceil_div(tiles, most) * whole);
    if (tiles % most == 0 || slices < 2) continue;
    // The last full turn is shared out together with what is left over: no share is then smaller than a tile, and few tiles have more than two parts.
    const std::int64_t turns = std::max<std::int64_t>(0, tiles / most - 1), split = tiles - turns * most;
    const std::int64_t clusters = std::min(most, std::max<std::int64_t>(1, split * slices / kLeastShare));
    if (turns > 0 && clusters < most) continue;
    const std::int64_t share = ceil_div(split * slices, clusters), parts = ceil_div(slices, share);
    consider(cost, clusters, split, turns * whole + share * cost.slice + (share / slices + 1) * cost.ends + cost.give + parts * cost.take + kSplitStart);
  }
  if (best.tiles) {
    const std::int64_t all = best.tiles * slices;
    best.share = static_cast<std::int32_t>(all / best.clusters), best.longer = static_cast<std::int32_t>(all % best.clusters);
    best.reciprocal = static_cast<std::uint32_t>(((std::uint64_t{1} << 32) + static_cast<std::uint64_t>(slices) - 1) / static_cast<std::uint64_t>(slices));
  }
  return best;
}

}  // namespace squareq::cuda
