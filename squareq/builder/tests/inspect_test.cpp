// What squareq inspect reports: shapes, blocks and scales of small slabs, counted by hand.
#include "squareq/builder/inspect.hpp"

#include "squareq/slab/assemble.hpp"
#include "squareq/slab/tests/outcome.hpp"
#include "support.hpp"

namespace squareq::builder_test {
namespace {

using test::holds;
using test::tensor_bytes;

Slab generic(const Scratch& s, bool companion = true) {
  spit(s / "m.safetensors", container({{"blocks.10.q.weight", "BF16", {4, 10}, bf16_noise(40, 1)},
                                       {"blocks.10.q.bias", "BF16", {4}, bf16_noise(4, 2)},
                                       {"blocks.2.q.weight", "BF16", {6, 8}, bf16_noise(48, 3)},
                                       {"blocks.2.k.weight", "BF16", {2, 8}, bf16_noise(16, 4)},
                                       {"blocks.2.norm.weight", "BF16", {8}, bf16_noise(8, 5)},
                                       {"head.weight", "BF16", {3, 8}, bf16_noise(24, 6)}}));
  return built(s, s / "m.safetensors", "slab", [&](BuildOptions& o) {
    o.architecture = "none";
    o.pack_k = 16;
    o.companion = companion;
  });
}

TEST(Inspect, OriginalShapesAreTheCheckpoints) {
  const Scratch s;
  const Slab slab = generic(s);
  std::map<std::string, std::vector<std::uint64_t>> found, wanted;
  for (const TensorShape& t : original_shapes(slab)) found[t.name] = t.shape;
  for (const SourceTensor& t : tensors_in(s / "m.safetensors")) wanted[t.name] = t.shape;
  EXPECT_EQ(found, wanted);
  wanted.erase("blocks.2.norm.weight");  // what only a companion has
  found.clear();
  const Scratch bare;
  for (const TensorShape& t : original_shapes(generic(bare, false))) found[t.name] = t.shape;
  EXPECT_EQ(found, wanted);
}

/// The slab with another architecture record, or without one of the companion's tensors.
Slab recorded(const Scratch& s, const Slab& slab, const std::string& name, const std::string& architecture, const std::string& left_out = {}) {
  SlabAssembly assembly(slab.manifest());
  for (const TensorRecord& t : slab.file().header().tensors) assembly.take(slab, SlabAssembly::Part::slab, t, t.name);
  std::vector<TensorSpec> rest;
  for (const TensorRecord& t : slab.companion()->file.header().tensors) {
    if (t.name == left_out) continue;
    rest.push_back({t.name, t.dtype, t.shape});
    assembly.take(slab, SlabAssembly::Part::companion, t, t.name);
  }
  assembly.with_companion(rest, architecture, slab.companion()->source_json);
  return Slab::open(assembly.write(SlabPaths::resolve(s / name), {}).paths.slab);
}

TEST(Inspect, TheArchitectureIsTheRecordedOne) {
  const Scratch s;
  EXPECT_FALSE(slab_architecture(generic(s)));
  const Slab slab = built(s, flux("guided"), "flux");
  ASSERT_TRUE(slab_architecture(slab));
  EXPECT_EQ(slab_architecture(slab)->id(), "flux1-dev");
  EXPECT_EQ(slab_architecture(slab)->scheme(), "diffusers");
  EXPECT_EQ(slab_architecture(built(s, flux("bfl"), "native"))->scheme(), "bfl");
  EXPECT_FALSE(slab_architecture(built(s, flux("guided"), "bare", [](BuildOptions& o) { o.companion = false; })));
  // A record that the tensors contradict: one norm is missing.
  const Slab other = recorded(s, slab, "other", slab.companion()->architecture_json, "transformer_blocks.0.attn.norm_q.weight");
  const Problem p = test::problem_of([&] { slab_architecture(other); });
  EXPECT_EQ(p.code, Code::MD_TENSOR) << p.message;
  EXPECT_TRUE(holds(p.message, {"transformer_blocks.0.attn.norm_q.weight"})) << p.message;
  EXPECT_EQ(test::problem_of([&] { SlabBlocks blocks(other); }).code, Code::MD_TENSOR);
  EXPECT_EQ(test::problem_of([&] { inspect_json(other); }).code, Code::MD_TENSOR);
  // A record of nothing that is known.
  const Slab unknown = recorded(s, slab, "unknown", R"({"id":"nobody","family":"none"})");
  const Problem q = test::problem_of([&] { slab_architecture(unknown); });
  EXPECT_EQ(q.code, Code::MD_ARCH) << q.message;
  EXPECT_TRUE(holds(q.message, {"nobody"})) << q.message;
}

TEST(Inspect, BlocksByNamesStandInTheOrderOfTheirNumbers) {
  const Scratch s;
  const SlabBlocks blocks(generic(s));
  EXPECT_STREQ(blocks.source(), "names");
  EXPECT_FALSE(blocks.by_architecture());
  EXPECT_EQ(blocks.names(), (std::vector<std::string>{"blocks.2", "blocks.10"}));
  ASSERT_EQ(blocks.groups().size(), 3u);
  std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> groups;
  for (const SlabBlocks::Group& g : blocks.groups()) groups[g.name] = {g.layers, g.bytes};
  // Per layer: out rows of 16 codes, fp32 scale and zero point, and a bias where there is one.
  EXPECT_EQ(groups.at("blocks.10"), (std::pair<std::uint64_t, std::uint64_t>(1, 4 * (16 + 4 + 4 + 4))));
  EXPECT_EQ(groups.at("blocks.2"), (std::pair<std::uint64_t, std::uint64_t>(2, (6 + 2) * (16 + 4 + 4))));
  EXPECT_EQ(groups.at("(outside blocks)"), (std::pair<std::uint64_t, std::uint64_t>(1, 3 * (16 + 4 + 4))));
  EXPECT_EQ(blocks.of("blocks.10.q"), "blocks.10");
  EXPECT_EQ(blocks.of("head"), SlabBlocks::outside());
  EXPECT_EQ(blocks.of("a.b2.c"), SlabBlocks::outside()) << "a number is a whole part of a name";
  EXPECT_EQ(blocks.of("up.1.attn.3.q"), "up.1") << "up to the first number";
  EXPECT_EQ(blocks.of_tensor("blocks.2.norm.weight"), "blocks.2");
  EXPECT_EQ(blocks.of_tensor("blocks.20.norm.weight"), SlabBlocks::outside());
  EXPECT_EQ(blocks.of_tensor("norm.weight"), SlabBlocks::outside());
}

TEST(Inspect, BlocksByArchitectureStandInForwardOrder) {
  const Scratch s;
  const SlabBlocks blocks(built(s, flux("guided"), "flux"));
  EXPECT_STREQ(blocks.source(), "architecture");
  EXPECT_TRUE(blocks.by_architecture());
  EXPECT_EQ(blocks.names(), (std::vector<std::string>{"transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0", "single_transformer_blocks.1"}));
  EXPECT_EQ(blocks.of("transformer_blocks.1.attn.to_out.0"), "transformer_blocks.1");
  EXPECT_EQ(blocks.of("norm_out.linear"), SlabBlocks::outside());
  EXPECT_EQ(blocks.of_tensor("single_transformer_blocks.1.attn.norm_q.weight"), "single_transformer_blocks.1");
  std::uint64_t layers = 0;
  for (const SlabBlocks::Group& g : blocks.groups()) layers += g.layers;
  EXPECT_EQ(layers, 2u * 14 + 2 * 6 + 10);  // double, single, and ten linears outside
}

TEST(Inspect, ScalesAreSortedByPowersOfTwo) {
  ScaleHistogram h;
  h.add({});
  EXPECT_TRUE(h.bins.empty() && h.rows == 0 && h.min == 0 && h.max == 0);
  h.add({1.0f, 1.5f, 1.9999999f});
  h.add({4.0f, 0.5f});
  h.add({1.0f});
  const std::vector<std::pair<int, std::uint64_t>> wanted = {{-1, 1}, {0, 4}, {1, 0}, {2, 1}};  // without a gap
  ASSERT_EQ(h.bins.size(), wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) EXPECT_EQ(std::pair(h.bins[i].exponent, h.bins[i].rows), wanted[i]) << i;
  EXPECT_EQ(h.rows, 6u);
  EXPECT_EQ(h.min, 0.5f);
  EXPECT_EQ(h.max, 4.0f);
  EXPECT_EQ(h.floored, 0u);
  h.add({1e-8f, 1.1e-8f});  // 2^-27 < 1e-8 < 2^-26
  EXPECT_EQ(h.floored, 1u);
  EXPECT_EQ(h.min, 1e-8f);
  EXPECT_EQ(h.bins.front().exponent, -27);
  EXPECT_EQ(h.bins.front().rows, 2u);
  EXPECT_EQ(h.bins.size(), 27u + 3u);
}

TEST(Inspect, TheReportCountsWhatIsInTheFiles) {
  const Scratch s;
  const Slab slab = generic(s);
  const auto report = inspect_json(slab);
  EXPECT_EQ(report.at("bytes"), fs::file_size(slab.paths().slab));
  EXPECT_EQ(report.at("blocks_by"), "names");
  EXPECT_EQ(report.at("total_qweight_bytes"), (4 + 6 + 2 + 3) * 16);
  std::vector<float> all;
  ASSERT_EQ(report.at("layers").size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    const auto& layer = report["layers"][i];
    const std::string bytes = tensor_bytes(slab.paths().slab, layer.at("name").get<std::string>() + ".scale");
    std::vector<float> scales(bytes.size() / 4);
    std::memcpy(scales.data(), bytes.data(), bytes.size());
    EXPECT_EQ(layer_scales(slab, i), scales);
    EXPECT_EQ(layer.at("scale_min").get<float>(), *std::min_element(scales.begin(), scales.end()));
    EXPECT_EQ(layer.at("scale_max").get<float>(), *std::max_element(scales.begin(), scales.end()));
    EXPECT_EQ(layer.at("bias"), layer.at("name") == "blocks.10.q");
    all.insert(all.end(), scales.begin(), scales.end());
  }
  EXPECT_EQ(report["layers"][0].at("name"), "blocks.10.q");
  EXPECT_EQ(report["layers"][0].at("orig_shape").dump(), "[4,10]");
  EXPECT_EQ(report["layers"][0].at("packed_shape").dump(), "[4,16]");
  EXPECT_EQ(report["layers"][0].at("block"), "blocks.10");
  EXPECT_EQ(report.at("scales").at("rows"), all.size());
  EXPECT_EQ(report["scales"].at("min").get<float>(), *std::min_element(all.begin(), all.end()));
  EXPECT_EQ(report["scales"].at("max").get<float>(), *std::max_element(all.begin(), all.end()));
  const auto& companion = report.at("companion");
  EXPECT_EQ(companion.at("bytes"), fs::file_size(slab.paths().companion));
  EXPECT_TRUE(companion.at("architecture").is_null());
  ASSERT_EQ(companion.at("tensors").size(), 1u);
  EXPECT_EQ(companion["tensors"][0].dump(), R"({"name":"blocks.2.norm.weight","dtype":"BF16","shape":[8],"bytes":16})");
  const Scratch bare;
  EXPECT_TRUE(inspect_json(generic(bare, false)).at("companion").is_null());
}

}  // namespace
}  // namespace squareq::builder_test
