// The pair against the Python V2 builder's bytes: the published goldens, and the emoji model built by numpy and the official
// safetensors package (fixtures/builder/emoji_slab.py).
#include "fixtures/places.hpp"
#include "support.hpp"

namespace squareq::builder_test {
namespace {

using nlohmann::json;

std::string floats(const json& hex_rows) {
  std::string bytes;
  for (const json& hex : hex_rows) {
    const auto bits = static_cast<std::uint32_t>(std::stoul(hex.get<std::string>(), nullptr, 16));
    bytes.append(reinterpret_cast<const char*>(&bits), 4);
  }
  return bytes;
}

json pairs() { return json::parse(slurp(test::fixtures() / "builder/v2_builds.json")); }

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, PublishedPairs) {
  std::size_t compared = 0;
  for (const json& golden : pairs()) {
    if (golden.at("model").empty()) continue;  // a slab without layers is for the writer's own tests: the builder refuses it
    Scratch scratch;
    std::vector<SourceTensor> tensors;
    for (const json& layer : golden["model"]) {
      const std::string name = layer["name"];
      std::string weight;
      for (const json& row : layer["weight_f32_hex"]) weight += floats(row);
      tensors.push_back({name + ".weight", "F32", {layer["weight_f32_hex"].size(), layer["weight_f32_hex"][0].size()}, weight});
      if (!layer["bias_f32_hex"].is_null())
        tensors.push_back({name + ".bias", "F32", {layer["bias_f32_hex"].size()}, floats(layer["bias_f32_hex"])});
    }
    spit(scratch / "m.safetensors", container(tensors));
    BuildOptions o = options_for(scratch / "m.safetensors", scratch.folder("out"));
    o.backend = GetParam();
    o.name = golden["name"];
    o.pack_k = golden["pack_k"];
    o.architecture_id = golden["architecture_id"];
    if (!golden["include_prefixes"].is_null()) o.include_prefixes = golden["include_prefixes"].get<std::vector<std::string>>();
    o.companion = false;
    const BuildResult r = build(o);
    EXPECT_EQ(sha256(slurp(r.paths.slab)), golden["safetensors_sha256"]) << o.name;
    EXPECT_EQ(slurp(r.paths.manifest), golden["manifest_text"]) << o.name;
    EXPECT_EQ(files_in(o.out), 2u) << "exactly the pair";
    ++compared;
  }
  EXPECT_EQ(compared, 3u);
}

TEST_P(Golden, EmojiModelBuiltByNumpy) {
  const json cases = json::parse(slurp(test::fixtures() / "builder/emoji_slab.json"));
  ASSERT_EQ(cases.size(), 3u);
  for (const json& c : cases) {
    Scratch scratch;
    BuildOptions o = options_for(emoji(), scratch.folder("out"), "flux1-schnell");
    o.backend = GetParam();
    o.pack_k = c["pack_k"];
    o.architecture_id = c["architecture_id"];
    o.include_prefixes = c["include_prefixes"].get<std::vector<std::string>>();
    const BuildResult r = build(o);
    EXPECT_EQ(r.layers, c["layers"].get<std::size_t>());
    EXPECT_EQ(r.signature, c["model_signature"]);
    EXPECT_EQ(r.slab_bytes, c["slab_bytes"].get<std::uint64_t>());
    EXPECT_EQ(sha256(slurp(r.paths.slab)), c["slab_sha256"]);
    EXPECT_EQ(sha256(slurp(r.paths.manifest)), c["manifest_sha256"]);
    const Report report = validate(r.paths);
    for (const Problem& p : report.problems) ADD_FAILURE() << p.message;
    for (const Problem& p : report.warnings) ADD_FAILURE() << p.message;
    const Slab slab = Slab::open(r.paths.slab);
    ASSERT_NE(slab.companion(), nullptr);
    EXPECT_EQ(slab.id_sha256(), r.slab_id);
    // Nothing of the model is lost: rest + quantized tensors = all 197 - __metadata__.
    EXPECT_EQ(slab.companion()->file.header().tensors.size() + r.layers * 2, 196u);
    const json record = json::parse(slab.companion()->architecture_json);
    EXPECT_EQ(record["id"], "flux1-schnell");
    EXPECT_EQ(record["config"]["rope_axes"], json({16, 24, 24}));
    EXPECT_EQ(record["config_json"]["num_single_layers"], 6);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Golden, testing::Values("reference", "cpu"));

}  // namespace
}  // namespace squareq::builder_test
