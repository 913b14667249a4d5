// The official safetensors package's verdicts on a committed corpus (fixtures/slab/differential.py). SQ-FMT-001, 002.

#include <gtest/gtest.h>

#include <algorithm>

#include "fixtures/places.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/slab/tests/scratch.hpp"

namespace squareq {
namespace {

TEST(Differential, AcceptsOnlyWhatTheReferenceAccepts) {
  const auto corpus = nlohmann::json::parse(test::read_file(test::fixtures() / "slab/differential.json"));
  const test::Scratch scratch;
  // Section 1.2: the only reasons to be stricter.
  const Code stricter[] = {Code::ST_BAD_START, Code::ST_DUP, Code::ST_META_TYPE, Code::ST_FIELD_TYPE, Code::ST_OVERFLOW, Code::ST_DEPTH};
  int both = 0, only_reference = 0, neither = 0;
  for (const auto& entry : corpus.at("cases")) {
    const std::string bytes = test::base64(entry[0].get<std::string>());
    test::write_file(scratch / "x.safetensors", bytes);
    Report report;
    SafetensorsFile::open(scratch / "x.safetensors", report);
    const bool reference = entry[1];
    if (report.ok()) {
      EXPECT_TRUE(reference) << "accepted here, rejected by the reference: " << entry[0];
      ++both;
    } else if (reference) {
      for (const Problem& p : report.problems) EXPECT_NE(std::find(std::begin(stricter), std::end(stricter), p.code), std::end(stricter)) << code_name(p.code) << " " << entry[0];
      ++only_reference;
    } else {
      ++neither;
    }
  }
  EXPECT_GT(both, 100);
  EXPECT_GT(only_reference, 10);
  EXPECT_GT(neither, 1000);
}

}  // namespace
}  // namespace squareq
