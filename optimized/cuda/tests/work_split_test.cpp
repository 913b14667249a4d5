// How tiles are shared out over a device: host arithmetic, so these run without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "optimized/cuda/linear/work_split.hpp"

namespace squareq::cuda_tests {
namespace {

using cuda::ProductSize;
using cuda::WorkSplit;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::string text(const ProductSize& s, int multiprocessors) {
  return std::to_string(s.rows) + " x " + std::to_string(s.columns) + " x " + std::to_string(s.depth) + (s.transposed ? " transposed" : "") + ", " +
         std::to_string(s.width) + " bytes, " + std::to_string(multiprocessors) + " multiprocessors";
}

/// What the kernel relies on, from the promises in product.hpp alone.
void expect_whole(const ProductSize& size, int multiprocessors) {
  SCOPED_TRACE(text(size, multiprocessors));
  const WorkSplit s = cuda::share_out(size, multiprocessors);
  ASSERT_TRUE(s.rows == 64 || s.rows == 128 || s.rows == 256);
  ASSERT_GE(s.clusters, 1);
  ASSERT_LE(s.clusters, std::max(1, multiprocessors / 2));  // all of them are resident at once
  const std::int64_t slices = ceil_div(size.depth * size.width, 128), tiles = ceil_div(size.rows, s.rows) * ceil_div(size.columns, 256);
  ASSERT_LE(s.tiles, tiles);
  EXPECT_LE(cuda::split_bytes(s), std::int64_t{64} << 20);
  EXPECT_EQ((tiles - s.tiles) % (s.tiles ? s.clusters : 1), 0) << "whole tiles in uneven turns beside split ones";
  if (!s.tiles) return;
  EXPECT_GE(s.share, 1);
  EXPECT_LT(s.longer, s.clusters);
  EXPECT_EQ(std::int64_t{s.share} * s.clusters + s.longer, s.tiles * slices) << "slices lost or made twice";
  EXPECT_GE(s.share, tiles > s.clusters ? slices : 1) << "with whole turns, a tile has two parts at most";
  for (std::int64_t slice = 0; slice < s.tiles * slices; ++slice)
    ASSERT_EQ(static_cast<std::uint64_t>(slice) * s.reciprocal >> 32, static_cast<std::uint64_t>(slice / slices)) << slice;
}

TEST(WorkSplit, EverySliceIsSharedOutOnce) {
  for (const int multiprocessors : {1, 2, 7, 78, 114, 132, 148})
    for (const std::int64_t rows : {1, 16, 65, 512, 1600, 4608})
      for (const std::int64_t columns : {1, 520, 1280, 3072, 12288})
        for (const std::int64_t depth : {1, 64, 65, 130, 1280, 12288})
          for (const std::int64_t width : {1, 2})
            for (const bool transposed : {false, true}) expect_whole({rows, columns, depth, width, transposed}, multiprocessors);
  for (const std::int64_t depth : {15360, 24576, 55296}) expect_whole({4608, 21504, depth, 2, false}, 132), expect_whole({64, 55296, depth, 2, true}, 132);
}

TEST(WorkSplit, FollowsFromShapeAndDeviceAlone) {
  const ProductSize size{1536, 3072, 12288, 2, false};
  const WorkSplit a = cuda::share_out(size, 132), b = cuda::share_out(size, 132);
  EXPECT_EQ(std::tie(a.rows, a.clusters, a.tiles, a.share, a.longer), std::tie(b.rows, b.clusters, b.tiles, b.share, b.longer));
  EXPECT_EQ(a.rows, 256);
  EXPECT_GT(a.tiles, 0) << "72 tiles on 66 clusters would take two turns";
}

TEST(WorkSplit, TilesThatFillTheDeviceAreNotSplit) { EXPECT_EQ(cuda::share_out({256 * 11, 256 * 12, 3072, 2, false}, 132).tiles, 0); }

}  // namespace
}  // namespace squareq::cuda_tests
