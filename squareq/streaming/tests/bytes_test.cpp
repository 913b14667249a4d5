#include "squareq/streaming/bytes.hpp"

#include <gtest/gtest.h>

#include "squareq/error.hpp"

namespace squareq::streaming {
namespace {

TEST(ParseBytes, ReadsUnits) {  // SQ-STR-036
  EXPECT_EQ(parse_bytes("0", "budget"), 0u);
  EXPECT_EQ(parse_bytes("4096", "budget"), 4096u);
  EXPECT_EQ(parse_bytes("9007199254740993", "budget"), 9007199254740993u);  // 2^53 + 1: no double holds it
  EXPECT_EQ(parse_bytes("1GiB", "budget"), 1073741824u);
  EXPECT_EQ(parse_bytes("512MiB", "budget"), 536870912u);
  EXPECT_EQ(parse_bytes("8GB", "budget"), 8000000000u);
  EXPECT_EQ(parse_bytes("1.5 gib", "budget"), 1610612736u);
  EXPECT_EQ(parse_bytes("2 TB", "budget"), 2000000000000u);
  EXPECT_EQ(parse_bytes("3KiB", "budget"), 3072u);
  EXPECT_EQ(parse_bytes("7b", "budget"), 7u);
  EXPECT_EQ(parse_bytes("0.1KB", "budget"), 100u);
}

TEST(ParseBytes, RefusesTheRestAndNamesTheFlag) {
  for (const char* text : {"", "GiB", "-1GiB", "1XB", "1GiBs", "1e3", "nan", "inf", "0x10", "1,5GiB", "9999999999TiB", " 1", "1 GiB ", "9223372036854775808"}) {
    try {
      parse_bytes(text, "--budget");
      ADD_FAILURE() << "accepted '" << text << "'";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::CFG_VALUE) << text;
      EXPECT_NE(std::string(e.what()).find("--budget"), std::string::npos);
    }
  }
}

TEST(BytesText, IsForPeople) {
  EXPECT_EQ(bytes_text(640), "640 B");
  EXPECT_EQ(bytes_text(536870912), "512.0 MiB");
  EXPECT_EQ(bytes_text(11935113984), "11.12 GiB");
}

}  // namespace
}  // namespace squareq::streaming
