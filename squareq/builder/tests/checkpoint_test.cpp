// Packagings of a checkpoint, and what is wrong with them (facts: bad-input 5, 7.1).
#include "squareq/builder/checkpoint.hpp"

#include "support.hpp"

namespace squareq::builder_test {
namespace {

using nlohmann::json;

SourceTensor small(const std::string& name, std::uint32_t seed = 1) { return {name, "BF16", {4, 8}, bf16_noise(32, seed)}; }

Code code_of(const fs::path& path) {
  try {
    Checkpoint::open(path);
  } catch (const Error& e) {
    return e.code();
  }
  return Code::OK;
}

std::string index_of(const json& map) { return json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}}.dump(); }

TEST(Checkpoint, FileFolderAndSubfolder) {
  Scratch s;
  spit(s.folder("m/transformer") / "diffusion_pytorch_model.safetensors", container({small("a.weight")}));
  spit(s / "m/transformer/config.json", R"({"x": 1})");
  for (const char* path : {"m", "m/transformer", "m/transformer/diffusion_pytorch_model.safetensors"}) {
    const Checkpoint c = Checkpoint::open(s / path);
    ASSERT_EQ(c.tensors().size(), 1u) << path;
    EXPECT_EQ(c.tensors()[0].name, "a.weight");
    EXPECT_EQ(c.config_json(), R"({"x": 1})");
    std::string back(16, '\0');
    c.read(c.tensors()[0], 48, back.data(), 16);
    EXPECT_EQ(back, bf16_noise(32, 1).substr(48));
  }
}

TEST(Checkpoint, ShardsInAnyFolderLayout) {
  Scratch s;
  spit(s / "x-1.safetensors", container({small("a.weight", 1), small("b.weight", 2)}));
  spit(s / "x-2.safetensors", container({small("c.weight", 3)}));
  spit(s / "x.safetensors.index.json",
       index_of({{"a.weight", "x-1.safetensors"}, {"b.weight", "x-1.safetensors"}, {"c.weight", "x-2.safetensors"}}));
  for (const fs::path& path : {s.path(), s / "x.safetensors.index.json"}) {
    const Checkpoint c = Checkpoint::open(path);
    EXPECT_EQ(c.tensors().size(), 3u);
    EXPECT_EQ(c.files().size(), 2u);
    std::string back(64, '\0');
    c.read(*c.find("c.weight"), 0, back.data(), 64);
    EXPECT_EQ(back, bf16_noise(32, 3));
  }
}

TEST(Checkpoint, PrefixIsStrippedAndTheRestOfTheFileLeftOut) {
  Scratch s;
  spit(s / "m.safetensors", container({small("first_stage_model.x.weight"), small("model.diffusion_model.a.weight")}));
  const Checkpoint c = Checkpoint::open(s / "m.safetensors");
  ASSERT_EQ(c.tensors().size(), 1u);
  EXPECT_EQ(c.tensors()[0].name, "a.weight");
  EXPECT_EQ(c.prefix(), "model.diffusion_model.");
  EXPECT_EQ(c.tensors_outside_prefix(), 1u);
}

TEST(BadCheckpoint, Indexes) {
  Scratch s;
  spit(s / "x-1.safetensors", container({small("a.weight"), small("b.weight")}));
  spit(s / "x-2.safetensors", container({small("a.weight"), small("c.weight")}));
  const fs::path index = s / "x.safetensors.index.json";
  const auto with = [&](const std::string& text) {
    spit(index, text);
    return code_of(index);
  };
  EXPECT_EQ(with(index_of({{"a.weight", "x-1.safetensors"}, {"b.weight", "x-1.safetensors"}})), Code::OK);
  EXPECT_EQ(with(index_of({{"a.weight", "x-1.safetensors"}, {"b.weight", "gone.safetensors"}})), Code::IO_MISSING);
  EXPECT_EQ(with(index_of({{"a.weight", "x-1.safetensors"}, {"b.weight", "x-1.safetensors"}, {"z.weight", "x-1.safetensors"}})),
            Code::MD_TENSOR);
  EXPECT_EQ(with(index_of({{"a.weight", "x-1.safetensors"}})), Code::MD_TENSOR) << "b is in the shard, not in the index";
  EXPECT_EQ(with(index_of({{"a.weight", "x-1.safetensors"}, {"b.weight", "x-1.safetensors"}, {"c.weight", "x-2.safetensors"}})),
            Code::MD_TENSOR)
      << "a twice";
  for (const char* escape : {"../x-1.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "a\\b", "c:x"})
    EXPECT_EQ(with(index_of({{"a.weight", escape}})), Code::IO_ESCAPE) << escape;
  for (const char* bad :
       {"", "{", "[]", "{}", R"({"weight_map": 3})", R"({"weight_map": {}})", R"({"weight_map": {"a": 1}})", R"({"weight_map": {"a": {}}})",
        R"({"weight_map": {"a.weight": "x-1.safetensors", "a.weight": "x-2.safetensors"}})", "\xEF\xBB\xBF{}",
        "{\"weight_map\": {\"a\": \"\xFF\"}}"})
    EXPECT_EQ(with(bad), Code::MD_INDEX) << bad;
  EXPECT_EQ(with(std::string(100000, '[')), Code::MD_INDEX);
}

TEST(BadCheckpoint, LinkOutOfTheFolder) {
  Scratch s;
  s.folder("m");
  spit(s / "outside.safetensors", container({small("a.weight")}));
  fs::create_symlink(s / "outside.safetensors", s / "m/x-1.safetensors");
  spit(s / "m/x.safetensors.index.json", index_of({{"a.weight", "x-1.safetensors"}}));
  EXPECT_EQ(code_of(s / "m"), Code::IO_ESCAPE);
}

TEST(BadCheckpoint, FoldersAndForeignFiles) {
  Scratch s;
  EXPECT_EQ(code_of(s / "nothing"), Code::IO_MISSING);
  EXPECT_EQ(code_of(s.folder("empty")), Code::IO_MISSING);
  spit(s.folder("pickle") / "model.ckpt", "x");
  try {
    Checkpoint::open(s / "pickle");
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::IO_MISSING);
    EXPECT_NE(std::string(e.what()).find("model.ckpt"), std::string::npos);
  }
  spit(s.folder("two") / "a.safetensors", container({small("a.weight")}));
  spit(s / "two/b.safetensors", container({small("a.weight")}));
  EXPECT_EQ(code_of(s / "two"), Code::MD_TENSOR);
  spit(s / "m.safetensors", "PK\x03\x04 not a container at all");
  EXPECT_EQ(code_class(code_of(s / "m.safetensors")), CodeClass::FORMAT);
  spit(s / "short.safetensors", "abc");
  EXPECT_EQ(code_of(s / "short.safetensors"), Code::ST_TOO_SMALL);
}

}  // namespace
}  // namespace squareq::builder_test
