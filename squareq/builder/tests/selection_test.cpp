// Which tensors are linears: by the registry, by the generic rule, through prefixes; SDXL's 743 from a header-only sparse file.
#include "squareq/builder/selection.hpp"

#include "fixtures/places.hpp"
#include "support.hpp"

namespace squareq::builder_test {
namespace {

using nlohmann::ordered_json;

/// A checkpoint of the published shapes without its bytes: a sparse file.
fs::path sparse_model(const Scratch& s, const std::string& list, const std::string& prefix = "") {
  const auto keys = ordered_json::parse(slurp(test::fixtures() / ("models/" + list + ".keys.json")));
  ordered_json header = ordered_json::object();
  std::uint64_t at = 0;
  for (const auto& [name, shape] : keys.items()) {
    std::uint64_t bytes = 2;
    for (const auto& dim : shape) bytes *= dim.get<std::uint64_t>();
    header[prefix + name] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {at, at + bytes}}};
    at += bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string start(8, '\0');
  const std::uint64_t length = text.size();
  std::memcpy(start.data(), &length, 8);
  const fs::path path = s / (list + ".safetensors");
  spit(path, start + text);
  fs::resize_file(path, 8 + text.size() + at);
  return path;
}

struct Expected {
  const char* list;
  const char* prefix;
  std::size_t linears, rest;
  const char* signature;
};

TEST(Selection, PublishedModelsAtFullSize) {
  const Expected all[] = {{"sdxl-unet.diffusers", "", 743, 1680 - 743 - 323, "142bd638d3fe64dd"},
                          {"sdxl-unet.sgm", "model.diffusion_model.", 743, 1680 - 743 - 323, "45e864dab23f0208"},
                          {"flux1-dev.bfl", "", 314, 780 - 628, "f5297ec264cf39e2"},
                          {"flux2-dev.diffusers", "", 203, 331 - 203, "07bb08f6c3eacb08"},
                          {"sd3.5-medium.sai", "model.diffusion_model.", 270, 665 - 540, "7b8a6834617defab"}};
  for (const Expected& e : all) {
    Scratch s;
    Report report;
    const Checkpoint c = Checkpoint::open(sparse_model(s, e.list, e.prefix));
    const Selection selection = select(c, "auto", {}, report);
    EXPECT_EQ(selection.quantized.size(), e.linears) << e.list;
    EXPECT_EQ(selection.rest.size(), e.rest) << e.list;
    EXPECT_EQ(selection.signature, e.signature) << e.list;
    EXPECT_TRUE(report.warnings.empty());
    // In these families every 2-D weight is a linear: the generic rule must come to the same answer.
    EXPECT_EQ(select(c, "none", {}, report).signature, e.signature) << e.list;
  }
}

TEST(Selection, SdxlPrefixesCoverAllItsLinears) {
  Scratch s;
  Report report;
  const Checkpoint c = Checkpoint::open(sparse_model(s, "sdxl-unet.diffusers"));
  EXPECT_EQ(select(c, "sdxl", {"down_blocks.", "mid_block.", "up_blocks.", "time_embedding.", "add_embedding."}, report).quantized.size(),
            743u);
  const Selection mid = select(c, "sdxl", {"mid_block."}, report);
  EXPECT_EQ(mid.quantized.size(), 104u);
  EXPECT_EQ(mid.signature, "142bd638d3fe64dd") << "the signature is over all linears";
}

TEST(Selection, GenericRuleLeavesEmbeddingsTablesAndNorms) {
  const auto is = [](const char* name, std::vector<std::uint64_t> shape) {
    Checkpoint::Tensor t;
    t.name = name;
    t.shape = std::move(shape);
    return is_generic_linear(t);
  };
  for (const char* yes :
       {"blocks.0.proj.weight", "time_embedding.linear_1.weight", "x_embedder.weight", "label_emb.0.0.weight", "head.weight"})
    EXPECT_TRUE(is(yes, {4, 4})) << yes;
  for (const char* no :
       {"embed_tokens.weight", "text.token_embedding.weight", "position_embeddings.weight", "pos_embed.weight", "wte.weight",
        "encoder.shared.weight", "attn.relative_attention_bias.weight", "norm1.weight", "final_layernorm.weight", "a.bias", "pos_embed"})
    EXPECT_FALSE(is(no, {4, 4})) << no;
  EXPECT_FALSE(is("conv.weight", {4, 4, 3, 3}));
  EXPECT_FALSE(is("scale.weight", {4}));
}

Code code_of(const std::vector<SourceTensor>& tensors, const std::string& architecture = "none",
             const std::vector<std::string>& prefixes = {}) {
  Scratch s;
  spit(s / "m.safetensors", container(tensors));
  const Checkpoint c = Checkpoint::open(s / "m.safetensors");
  Report report;
  try {
    select(c, architecture, prefixes, report);
  } catch (const Error& e) {
    return e.code();
  }
  return report.has(Code::MD_GENERIC) ? Code::MD_GENERIC : Code::OK;
}

TEST(BadSelection, EveryClassHasItsCode) {
  const SourceTensor good{"a.weight", "F32", {2, 3}, std::string(24, '\0')};
  EXPECT_EQ(code_of({good}), Code::OK);
  EXPECT_EQ(code_of({good}, "auto"), Code::MD_GENERIC) << "said, not silent";
  EXPECT_EQ(code_of({good}, "flux1-dev"), Code::MD_ARCH);
  EXPECT_EQ(code_of({good}, "flux9"), Code::MD_ARCH);
  EXPECT_EQ(code_of({good}, "none", {"b."}), Code::CFG_VALUE);
  EXPECT_EQ(code_of({{"a.weight", "I8", {2, 3}, std::string(6, '\0')}}), Code::MD_TENSOR);
  EXPECT_EQ(code_of({{"a.weight", "F8_E4M3", {2, 3}, std::string(6, '\0')}}), Code::MD_TENSOR);
  EXPECT_EQ(code_of({good, {"a.bias", "F32", {3}, std::string(12, '\0')}}), Code::MD_TENSOR);
  EXPECT_EQ(code_of({good, {"a.bias", "F32", {1, 2}, std::string(8, '\0')}}), Code::MD_TENSOR);
  EXPECT_EQ(code_of({{"a.weight", "F32", {0, 3}, ""}}), Code::MD_TENSOR);
  EXPECT_EQ(code_of({{"weight", "F32", {2, 3}, std::string(24, '\0')}}), Code::MD_TENSOR)
      << "no module of its own: not a linear, so none is left";
  EXPECT_EQ(code_of({{"a..b.weight", "F32", {2, 3}, std::string(24, '\0')}}), Code::MF_NAME);
  EXPECT_EQ(code_of({{"a/b.weight", "F32", {2, 3}, std::string(24, '\0')}}), Code::MF_NAME);
  EXPECT_EQ(code_of({{"norm.weight", "F32", {3}, std::string(12, '\0')}}), Code::MD_TENSOR);
}

}  // namespace
}  // namespace squareq::builder_test
