// SQ-STR extents: alignment, real block sizes, delivery of any byte range.

#include "squareq/streaming/extent.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cstring>
#include <numeric>

#include "squareq/error.hpp"

namespace squareq::streaming {
namespace {

Layer linear(std::string name, std::int64_t out, std::int64_t in, bool bias) {
  Layer layer{std::move(name), "bp8_v2", out, in, {{"qweight", SQ_I8, {out, in}}, {"scale", SQ_F32, {out}}, {"zero_point", SQ_F32, {out}}}};
  if (bias) layer.parts.push_back({"bias", SQ_F32, {out}});
  return layer;
}

Code code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.code();
  }
  return Code::OK;
}

Block flux1_double() {
  Block block{"double", {linear("norm1.linear", 18432, 3072, true), linear("norm1_context.linear", 18432, 3072, true)}};
  for (const char* name : {"to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"})
    block.layers.push_back(linear(name, 3072, 3072, true));
  for (const std::string ff : {"ff", "ff_context"}) {
    block.layers.push_back(linear(ff + ".0", 12288, 3072, true));
    block.layers.push_back(linear(ff + ".2", 3072, 12288, true));
  }
  return block;
}

Block flux1_single() {
  Block block{"single", {linear("norm.linear", 9216, 3072, true), linear("proj_mlp", 12288, 3072, true), linear("proj_out", 3072, 15360, true)}};
  for (const char* name : {"s.to_q", "s.to_k", "s.to_v"}) block.layers.push_back(linear(name, 3072, 3072, true));
  return block;
}

Block flux2_single() { return {"single2", {linear("to_qkv_mlp_proj", 55296, 6144, false), linear("to_out", 6144, 24576, false)}}; }

TEST(BlockTable, RealBlocksNeedNoPadding) {  // facts: V2 slab bytes per block
  const BlockTable table({flux1_double(), flux1_single(), flux2_single()});
  EXPECT_EQ(table.extent_bytes(0), 340844544u);
  EXPECT_EQ(table.extent_bytes(1), 141963264u);
  EXPECT_EQ(table.extent_bytes(2), 491225088u);
}

TEST(BlockTable, PartsStartAtMultiplesOf256AndDoNotOverlap) {  // SQ-STR-002, SQ-STR-003
  BlockTable made({{"b", {linear("x", 3, 5, true), linear("y", 65, 7, false)}}});
  const BlockTable table = std::move(made);
  const sq_block_desc& block = table.descs()[0];
  EXPECT_STREQ(block.name, "b");
  EXPECT_EQ(block.extent_bytes % 256, 0u);
  // x: 15 -> 256, 12, 12, 12 -> 256 each; y: 455 -> 512, 260 -> 512 each.
  EXPECT_EQ(block.extent_bytes, 4 * 256u + 3 * 512u);
  std::uint64_t end = 0;
  for (std::uint32_t l = 0; l < block.layer_count; ++l) {
    const sq_layer_desc& layer = block.layers[l];
    for (std::uint32_t p = 0; p < layer.part_count; ++p) {
      EXPECT_EQ(layer.parts[p].offset % 256, 0u);
      EXPECT_GE(layer.parts[p].offset, end);
      end = layer.parts[p].offset + part_bytes(table.block(0).layers[l].parts[p], "x");
    }
  }
  EXPECT_STREQ(block.layers[1].parts[1].name, "scale");
  EXPECT_EQ(block.layers[1].out_features, 65);
  EXPECT_EQ(block.layers[1].in_features, 7);
}

TEST(BlockTable, ReadsAnyRangeAndZerosBetweenParts) {  // SQ-STR-004
  const BlockTable table({{"b", {linear("x", 3, 5, true), linear("y", 65, 7, false)}}});
  const auto value = [](std::uint32_t l, std::uint32_t p, std::uint64_t i) { return static_cast<unsigned char>(1 + (l * 61 + p * 17 + i * 3) % 255); };
  std::vector<unsigned char> whole(table.extent_bytes(0), 0);
  for (std::uint32_t l = 0; l < 2; ++l)
    for (std::uint32_t p = 0; p < table.block(0).layers[l].parts.size(); ++p)
      for (std::uint64_t i = 0; i < part_bytes(table.block(0).layers[l].parts[p], "x"); ++i)
        whole[table.descs()[0].layers[l].parts[p].offset + i] = value(l, p, i);
  EXPECT_TRUE(rc::check([&] {
    const auto from = *rc::gen::inRange<std::uint64_t>(0, whole.size() + 1);
    const auto bytes = *rc::gen::inRange<std::uint64_t>(0, whole.size() - from + 1);
    std::vector<unsigned char> got(bytes + 1, 0xEE);
    table.read(0, from, got.data(), bytes, [&](std::uint32_t l, std::uint32_t p, std::uint64_t offset, void* out, std::uint64_t count) {
      RC_ASSERT(count > 0);
      for (std::uint64_t i = 0; i < count; ++i) static_cast<unsigned char*>(out)[i] = value(l, p, offset + i);
    });
    RC_ASSERT(std::memcmp(got.data(), whole.data() + from, bytes) == 0);
    RC_ASSERT(got[bytes] == 0xEE);
  }));
}

TEST(BlockTable, RefusesRangesOutsideTheExtent) {
  const BlockTable table({{"b", {linear("x", 3, 5, false)}}});
  std::vector<unsigned char> out(4096);
  const PartReader none = [](auto...) {};
  EXPECT_EQ(code_of([&] { table.read(0, 0, out.data(), 769, none); }), Code::CALL_VALUE);
  EXPECT_EQ(code_of([&] { table.read(0, 769, out.data(), 0, none); }), Code::CALL_VALUE);
  EXPECT_EQ(code_of([&] { table.read(0, 1, out.data(), ~0ull, none); }), Code::CALL_VALUE);
  EXPECT_EQ(code_of([&] { table.read(0, 768, out.data(), 0, none); }), Code::OK);
}

TEST(BlockTable, RefusesWhatCannotBeLaidOut) {
  const auto table = [](Layer layer) { return code_of([&] { BlockTable({{"b", {layer}}}); }); };
  EXPECT_EQ(table(linear("x", -1, 4, false)), Code::CALL_SHAPE);
  EXPECT_EQ(table(linear("x", std::int64_t{1} << 40, std::int64_t{1} << 40, false)), Code::CALL_SHAPE);
  EXPECT_EQ(table({"x", "bp8_v2", 1, 1, {{"qweight", SQ_I8, {1, 1, 1, 1, 1, 1, 1, 1, 1}}}}), Code::CALL_SHAPE);
  EXPECT_EQ(table({"x", "bp8_v2", 1, 1, {{"scale", SQ_F32, {1}}, {"scale", SQ_F32, {1}}}}), Code::CALL_VALUE);
  EXPECT_EQ(table(linear("", 1, 1, false)), Code::CALL_VALUE);
  EXPECT_EQ(code_of([] { BlockTable({{"b", {}}, {"b", {}}}); }), Code::CALL_VALUE);
  EXPECT_EQ(code_of([] { BlockTable({{"a", {linear("x", 1, 1, false)}}, {"b", {linear("x", 1, 1, false)}}}); }), Code::CALL_VALUE);
}

TEST(BlockTable, MarksExactlyTheResidents) {
  BlockTable table({{"a", {}}, {"b", {}}, {"c", {}}});
  const std::uint32_t first[] = {0, 2}, second[] = {1}, wrong[] = {3};
  table.set_residents(first);
  EXPECT_EQ(table.descs()[0].flags, SQ_BLOCK_RESIDENT);
  EXPECT_EQ(table.descs()[1].flags, 0u);
  table.set_residents(second);
  EXPECT_EQ(table.descs()[0].flags, 0u);
  EXPECT_EQ(table.descs()[1].flags, SQ_BLOCK_RESIDENT);
  EXPECT_EQ(code_of([&] { table.set_residents(wrong); }), Code::CALL_VALUE);
  EXPECT_EQ(table.descs()[1].flags, SQ_BLOCK_RESIDENT);
}

}  // namespace
}  // namespace squareq::streaming
