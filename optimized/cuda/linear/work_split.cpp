#include "optimized/cuda/linear/work_split.hpp"

#include <algorithm>

namespace squareq::cuda {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// What a tile of so many rows costs on an H200, in units of 10 ns, fitted to bench/cuda: a slice of 128 bytes of depth (forward and transposed 16-bit
/// activations, codes), a tile's start and end, and a split's: once, and per part that a tile has.
struct TileCost {
  int rows, slice, transposed_slice, code_slice, ends, split, part;
};
constexpr TileCost kCosts[] = {{256, 60, 66, 58, 330, 600, 300}, {128, 40, 50, 32, 250, 500, 170}, {64, 35, 48, 23, 220, 500, 100}};
constexpr int kLeastShare = 4;  // slices worth a cluster of their own

}  // namespace

WorkSplit share_out(const ProductSize& size, int multiprocessors) {
  const std::int64_t most = std::max(1, multiprocessors / 2), slices = ceil_div(size.depth * size.width, 128);
  WorkSplit best;
  std::int64_t least = 0;
  const auto consider = [&](int rows, std::int64_t clusters, std::int64_t tiles, std::int64_t cost) {
    if (best.rows && cost >= least) return;
    best.rows = rows, best.clusters = static_cast<std::int32_t>(clusters), best.tiles = static_cast<std::int32_t>(tiles);
    least = cost;
  };
  for (const TileCost& cost : kCosts) {
    const int slice = size.width == 1 ? cost.code_slice : size.transposed ? cost.transposed_slice : cost.slice;
    const std::int64_t tiles = ceil_div(size.rows, cost.rows) * ceil_div(size.columns, 256), whole = slices * slice + cost.ends;
    consider(cost.rows, std::min(most, tiles), 0, ceil_div(tiles, most) * whole);
    if (slices < kLeastShare) continue;
    // The last full turn is shared out together with what is left over: no share is then smaller than a tile, and few tiles have more than two parts.
    const std::int64_t turns = std::max<std::int64_t>(0, tiles / most - 1), split = tiles - turns * most;
    const std::int64_t clusters = std::min(most, split * slices / kLeastShare);
    const std::int64_t share = ceil_div(split * slices, clusters);
    consider(cost.rows, clusters, split, turns * whole + share * slice + (share / slices + 1) * cost.ends + cost.split + ceil_div(slices, share) * cost.part);
  }
  if (best.tiles) {
    const std::int64_t all = best.tiles * slices;
    best.share = static_cast<std::int32_t>(all / best.clusters), best.longer = static_cast<std::int32_t>(all % best.clusters);
    best.reciprocal = static_cast<std::uint32_t>(((std::uint64_t{1} << 32) + static_cast<std::uint64_t>(slices) - 1) / static_cast<std::uint64_t>(slices));
  }
  return best;
}

}  // namespace squareq::cuda
