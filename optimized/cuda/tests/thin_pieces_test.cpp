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

TEST(ThinPieces, GiveFewRowsManyBlocks) {
  EXPECT_EQ(cuda::thin_pieces(false, 16, 3072), 24);    // of 128: one tile of rows
  EXPECT_EQ(cuda::thin_pieces(false, 4608, 3072), 6);   // 72 tiles of rows: 432 blocks of the longest pieces
  EXPECT_EQ(cuda::thin_pieces(true, 4608, 3072), 9);    // 48 tiles of columns: 432 blocks
  EXPECT_EQ(cuda::pair_column_pieces(16, 512, 3072), 24);
  EXPECT_EQ(cuda::pair_column_pieces(16, 4608, 3072), 24);  // 9 row pieces x 12 would be too few
  EXPECT_EQ(cuda::pair_column_pieces(16, 4608, 12288), 48);
}

TEST(ThinPieces, OfBothGradientsStayBelowTheBytesThatTheReadmeNames) {
  for (const std::int64_t rows : kRows)
    for (const std::int64_t columns : kColumns) {
      SCOPED_TRACE(text(rows, columns));
      if (rows < 128) continue;  // a tile's padding counts more than its values
      const std::int64_t bytes = (cuda::pair_column_pieces(16, rows, columns) * rows + cuda::pair_row_pieces(16, rows) * columns) * 16 * 4;
      EXPECT_LE(bytes, rows * columns + 128 * (rows + columns));
      EXPECT_LE(bytes, std::int64_t{85} << 20);
    }
}

}  // namespace
}  // namespace squareq::cuda_tests
