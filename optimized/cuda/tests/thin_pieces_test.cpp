// How the branch's products are cut into pieces: host arithmetic, so these run without a GPU.
#include <gtest/gtest.h>

#include <string>

#include "optimized/cuda/kernels/thin_product.hpp"

namespace squareq::cuda_tests {
namespace {

constexpr std::int64_t kRows[] = {1, 16, 63, 512, 1536, 2048, 2049, 4608, 8192}, kColumns[] = {16, 1280, 3072, 12288, 21504, 55296};

std::string text(std::int64_t rows, std::int64_t columns) { return std::to_string(rows) + " x " + std::to_string(columns); }

TEST(ThinPieces, AreWholeTilesThatCoverTheSum) {
  for (const std::int64_t rows : kRows)
    for (const std::int64_t columns : kColumns)
      for (const bool over_rows : {false, true}) {
        SCOPED_TRACE(text(rows, columns));
        const std::int64_t depth = over_rows ? rows : columns, piece = cuda::thin_piece(over_rows, rows, columns), pieces = cuda::thin_pieces(over_rows, rows, columns);
        EXPECT_EQ(piece % 64, 0);
        EXPECT_GE(pieces * piece, depth);
        EXPECT_LT((pieces - 1) * piece, depth) << "an empty piece";
      }
}

TEST(ThinPieces, FillAnH200InWholeTurns) {
  EXPECT_EQ(cuda::thin_pieces(false, 16, 3072), 24);     // of two tiles, the shortest: one tile of rows gives no more blocks
  EXPECT_EQ(cuda::thin_pieces(false, 4608, 3072), 7);    // x 72 tiles of rows: 504 of 528 places
  EXPECT_EQ(cuda::thin_pieces(false, 4608, 12288), 7);
  EXPECT_EQ(cuda::thin_pieces(true, 4608, 55296), 1);    // 864 tiles of columns are two turns anyway
  EXPECT_EQ(cuda::pair_column_pieces(16, 512, 3072), 24);
  EXPECT_EQ(cuda::pair_column_pieces(16, 4608, 12288), 39);  // x 9 pieces of rows: 351 of 396 places
}

TEST(ThinPieces, StayBelowTheBytesThatTheReadmeNames) {
  for (const std::int64_t rows : kRows)
    for (const std::int64_t columns : kColumns) {
      SCOPED_TRACE(text(rows, columns));
      const std::int64_t row = 16 * 4;
      EXPECT_LE((cuda::pair_column_pieces(16, rows, columns) * rows + cuda::pair_row_pieces(16, rows) * columns) * row, std::int64_t{70} * 1000 * 1000);
      EXPECT_LE(cuda::thin_pieces(false, rows, columns) * rows * row, std::int64_t{9} * 1000 * 1000);
      EXPECT_LE(cuda::thin_pieces(true, rows, columns) * columns * row, std::int64_t{9} * 1000 * 1000);
    }
}

}  // namespace
}  // namespace squareq::cuda_tests
