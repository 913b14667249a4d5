// The registry against the published key lists, counts, block sizes, signatures and maps (fixtures/models, models.md sections 1-6).
#include "squareq/architecture/architecture.hpp"

#include <gtest/gtest.h>
#include <openssl/sha.h>

#include <algorithm>
#include <set>

#include "fixtures/places.hpp"
#include "key_lists.hpp"

namespace squareq {
namespace {

/// SquareQ's rule, written out a second time for the test: sha256 of the sorted "name:in:out:True|False" joined by '|'.
std::string signature(const Architecture& a) {
  std::vector<std::string> entries;
  for (const ArchitectureLayer& l : a.layers())
    entries.push_back(l.name + ":" + std::to_string(l.in) + ":" + std::to_string(l.out) + ":" + (l.bias ? "True" : "False"));
  std::sort(entries.begin(), entries.end());
  std::string text;
  for (const std::string& e : entries) text += (text.empty() ? "" : "|") + e;
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  std::string hex;
  for (int i = 0; i < 8; ++i) {
    char pair[3];
    std::snprintf(pair, sizeof pair, "%02x", digest[i]);
    hex += pair;
  }
  return hex;
}

struct Published {
  const char* list;
  const char* id;
  const char* scheme;
  std::size_t tensors, linears, biases;
  std::uint64_t elements, rows;
  const char* signature;
};

// Numbers of models.md, sections 1 and 1.2.
const Published published[] = {
    {"flux1-dev.bfl", "flux1-dev", "bfl", 780, 314, 314, 11898322944, 3065920, "f5297ec264cf39e2"},
    {"flux1-dev.diffusers", "flux1-dev", "diffusers", 1160, 504, 504, 11898322944, 3065920, "1f9cb7a9863d83da"},
    {"flux1-schnell.bfl", "flux1-schnell", "bfl", 776, 312, 312, 11888099328, 3059776, "ebd1c1dad8adef52"},
    {"flux2-dev.bfl", "flux2-dev", "bfl", 299, 171, 0, 32223264768, 4171904, "5b23ee530de38c88"},
    {"flux2-dev.diffusers", "flux2-dev", "diffusers", 331, 203, 0, 32223264768, 4171904, "07bb08f6c3eacb08"},
    {"flux2-klein-4b.bfl", "flux2-klein-4b", "bfl", 149, 89, 0, 3875536896, 1016960, "875bb4b45c310115"},
    {"flux2-klein-4b.diffusers", "flux2-klein-4b", "diffusers", 169, 109, 0, 3875536896, 1016960, "430375a55360bb9a"},
    {"flux2-klein-9b.bfl", "flux2-klein-9b", "bfl", 201, 121, 0, 9078571008, 1790080, "b6a6e17d9c56a64d"},
    {"flux2-klein-9b.diffusers", "flux2-klein-9b", "diffusers", 233, 153, 0, 9078571008, 1790080, "81940ffc66597cd4"},
    {"sd3-medium.sai", "sd3-medium", "sai", 491, 244, 244, 2027126784, 1101376, "636624a560054c6c"},
    {"sd3-medium.diffusers", "sd3-medium", "diffusers", 683, 340, 340, 2027126784, 1101376, "376da8dab9048d29"},
    {"sd3.5-medium.sai", "sd3.5-medium", "sai", 665, 270, 270, 2241822720, 1241152, "7b8a6834617defab"},
    {"sd3.5-medium.diffusers", "sd3.5-medium", "diffusers", 909, 392, 392, 2241822720, 1241152, "6412397d44fb6339"},
    {"sd3.5-large.sai", "sd3.5-large", "sai", 923, 384, 384, 8053694464, 2765248, "2b03069ad5f23316"},
    {"sd3.5-large.diffusers", "sd3.5-large", "diffusers", 1227, 536, 536, 8053694464, 2765248, "ee8ec083e2f676f4"},
    {"sdxl-unet.sgm", "sdxl", "sgm", 1680, 743, 323, 2232647680, 1455040, "45e864dab23f0208"},
    {"sdxl-unet.diffusers", "sdxl", "diffusers", 1680, 743, 323, 2232647680, 1455040, "142bd638d3fe64dd"},
};

class PublishedModel : public testing::TestWithParam<Published> {};

TEST_P(PublishedModel, IsRecognisedTensorByTensor) {
  const Published& p = GetParam();
  const std::vector<TensorShape> tensors = key_list(p.list);
  ASSERT_EQ(tensors.size(), p.tensors);
  const auto a = recognise(tensors);
  ASSERT_TRUE(a.has_value());
  EXPECT_EQ(a->id(), p.id);
  EXPECT_EQ(a->scheme(), p.scheme);
  EXPECT_TRUE(a->published());
  for (const Problem& problem : a->check(tensors)) ADD_FAILURE() << problem.message;
  EXPECT_EQ(a->tensors().size(), p.tensors);
}

TEST_P(PublishedModel, CountsAndSignature) {
  const Published& p = GetParam();
  const Architecture a = *recognise(key_list(p.list));
  std::uint64_t elements = 0, rows = 0, biases = 0;
  for (const ArchitectureLayer& l : a.layers()) {
    elements += l.in * l.out;
    rows += l.out;
    biases += l.bias;
  }
  EXPECT_EQ(a.layers().size(), p.linears);
  EXPECT_EQ(elements, p.elements);
  EXPECT_EQ(rows, p.rows);
  EXPECT_EQ(biases, p.biases);
  EXPECT_EQ(signature(a), p.signature);
}

TEST_P(PublishedModel, PresetEqualsTheKeyList) {
  const Published& p = GetParam();
  const Architecture a = published_architecture(p.id, p.scheme);
  for (const Problem& problem : a.check(key_list(p.list))) ADD_FAILURE() << problem.message;
  EXPECT_EQ(signature(a), p.signature);
}

TEST_P(PublishedModel, BlocksPartitionTheirLayers) {
  const Architecture a = *recognise(key_list(GetParam().list));
  std::set<std::size_t> seen;
  for (std::size_t b = 0; b < a.blocks().size(); ++b)
    for (const std::size_t l : a.blocks()[b].layers) {
      EXPECT_TRUE(seen.insert(l).second);
      EXPECT_EQ(a.block_of(a.layers()[l].name), b);
      EXPECT_TRUE(a.layers()[l].name.starts_with(a.blocks()[b].name + ".")) << a.layers()[l].name;
    }
  for (std::size_t l = 0; l < a.layers().size(); ++l) EXPECT_EQ(a.layers()[l].block.has_value(), seen.contains(l));
}

INSTANTIATE_TEST_SUITE_P(Models, PublishedModel, testing::ValuesIn(published), [](const auto& test) {
  std::string name = test.param.list;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return name;
});

struct BlockSize {
  const char* list;
  const char* kind;
  std::size_t first, count;  ///< of this kind
  std::size_t linears;
  std::uint64_t elements, rows;
};

// models.md, section 1.1.
const BlockSize block_sizes[] = {
    {"flux1-dev.bfl", "double", 0, 19, 10, 339738624, 92160},
    {"flux1-dev.diffusers", "double", 0, 19, 14, 339738624, 92160},
    {"flux1-dev.bfl", "single", 0, 38, 3, 141557760, 33792},
    {"flux1-dev.diffusers", "single", 0, 38, 6, 141557760, 33792},
    {"flux2-dev.bfl", "double", 0, 8, 8, 981467136, 135168},
    {"flux2-dev.diffusers", "double", 0, 8, 12, 981467136, 135168},
    {"flux2-dev.diffusers", "single", 0, 48, 2, 490733568, 61440},
    {"flux2-klein-4b.diffusers", "double", 0, 5, 12, 245366784, 67584},
    {"flux2-klein-4b.bfl", "single", 0, 20, 2, 122683392, 30720},
    {"flux2-klein-9b.bfl", "double", 0, 8, 8, 436207616, 90112},
    {"flux2-klein-9b.diffusers", "single", 0, 24, 2, 218103808, 40960},
    {"sd3-medium.sai", "joint", 0, 23, 10, 84934656, 46080},
    {"sd3-medium.diffusers", "joint", 0, 23, 14, 84934656, 46080},
    {"sd3-medium.sai", "joint", 23, 1, 7, 54263808, 30720},
    {"sd3-medium.diffusers", "joint", 23, 1, 11, 54263808, 30720},
    {"sd3.5-medium.sai", "joint", 0, 13, 12, 101449728, 56832},
    {"sd3.5-medium.diffusers", "joint", 0, 13, 18, 101449728, 56832},
    {"sd3.5-medium.diffusers", "joint", 13, 10, 14, 84934656, 46080},
    {"sd3.5-medium.diffusers", "joint", 23, 1, 11, 54263808, 30720},
    {"sd3.5-large.sai", "joint", 0, 37, 10, 212926464, 72960},
    {"sd3.5-large.diffusers", "joint", 37, 1, 11, 136036352, 48640},
    {"sdxl-unet.diffusers", "transformer", 0, 4, 10, 9994240, 10880},
    {"sdxl-unet.sgm", "transformer", 4, 60, 10, 34734080, 21760},
    {"sdxl-unet.diffusers", "transformer", 64, 6, 10, 9994240, 10880},
};

TEST(Blocks, SizesOfThePublishedTable) {
  for (const BlockSize& size : block_sizes) {
    const Architecture a = *recognise(key_list(size.list));
    std::size_t seen = 0;
    for (const ArchitectureBlock& block : a.blocks()) {
      if (block.kind != size.kind || block.index < size.first || block.index >= size.first + size.count) continue;
      ++seen;
      std::uint64_t elements = 0, rows = 0;
      for (const std::size_t l : block.layers) {
        elements += a.layers()[l].in * a.layers()[l].out;
        rows += a.layers()[l].out;
      }
      EXPECT_EQ(block.layers.size(), size.linears) << size.list << " " << block.name;
      EXPECT_EQ(elements, size.elements) << size.list << " " << block.name;
      EXPECT_EQ(rows, size.rows) << size.list << " " << block.name;
    }
    EXPECT_EQ(seen, size.count) << size.list << " " << size.kind;
  }
}

TEST(Blocks, CountsAndNames) {
  EXPECT_EQ(published_architecture("flux1-dev").blocks().size(), 57u);
  EXPECT_EQ(published_architecture("flux1-dev").blocks()[19].name, "single_transformer_blocks.0");
  EXPECT_EQ(published_architecture("sdxl").blocks().size(), 70u);
  EXPECT_EQ(published_architecture("sdxl", "sgm").blocks()[0].name, "input_blocks.4.1.transformer_blocks.0");
  EXPECT_EQ(published_architecture("sdxl").blocks()[24].name, "mid_block.attentions.0.transformer_blocks.0");
}

struct Map {
  const char* file;
  const char* list;
  const char* native_list;
};

const Map maps[] = {
    {"flux1.diffusers-to-bfl", "flux1-dev.diffusers", "flux1-dev.bfl"},
    {"flux2.diffusers-to-bfl", "flux2-dev.diffusers", "flux2-dev.bfl"},
    {"sd3-medium.diffusers-to-sai", "sd3-medium.diffusers", "sd3-medium.sai"},
    {"sdxl.diffusers-to-sgm", "sdxl-unet.diffusers", "sdxl-unet.sgm"},
};

TEST(Maps, EveryTensorOfThePublishedMaps) {
  for (const Map& m : maps) {
    const Architecture diffusers = *recognise(key_list(m.list)), native = *recognise(key_list(m.native_list));
    std::map<std::string, std::vector<std::uint64_t>> shapes, native_shapes;
    for (const TensorShape& t : key_list(m.list)) shapes[t.name] = t.shape;
    for (const TensorShape& t : key_list(m.native_list)) native_shapes[t.name] = t.shape;
    const auto map = read_fixture(std::string("models/") + m.file + ".json");
    EXPECT_EQ(map.size(), shapes.size());
    for (const auto& [name, target] : map.items()) {
      RowView expected;
      const std::string tensor = target.is_string() ? target.get<std::string>() : target[0].get<std::string>();
      expected.tensor = tensor;
      expected.total_rows = native_shapes.at(tensor)[0];
      expected.rows = shapes.at(name)[0];
      if (target.is_array() && !target[1].is_null()) {
        expected.first_row = target[1];
        EXPECT_EQ(expected.first_row + expected.rows, target[2].get<std::uint64_t>());
      }
      expected.swap_halves = target.is_array() && !target[3].is_null();
      ASSERT_TRUE(native.native(name).has_value()) << name;
      EXPECT_EQ(*native.native(name), expected) << name;
      EXPECT_EQ(*diffusers.native(name), expected) << name;
      EXPECT_EQ(*native.locate(name), expected) << name;
      EXPECT_EQ(diffusers.locate(name)->tensor, name);
      EXPECT_TRUE(diffusers.locate(name)->whole());
    }
  }
}

TEST(Maps, KohyaModulesOfThePublishedLists) {
  const auto lists = read_fixture("models/kohya-modules.json");
  const std::pair<const char*, const char*> sources[] = {
      {"flux1-dev.kohya", "flux1-dev"}, {"flux2-dev.kohya", "flux2-dev"}, {"sd3-medium.kohya", "sd3-medium"}, {"sdxl.kohya-sgm", "sdxl"}};
  for (const auto& [list, id] : sources) {
    const Architecture diffusers = published_architecture(id), native = published_architecture(id, diffusers.native_scheme());
    std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> native_modules;  // [out, in]
    std::map<std::string, std::uint64_t> covered;
    for (const ArchitectureLayer& l : native.layers()) native_modules[native.kohya(l.name)->tensor] = {l.out, l.in};
    for (const ArchitectureLayer& l : diffusers.layers()) {
      const RowView view = *diffusers.kohya(l.name);
      EXPECT_EQ(view.total_rows, native_modules.at(view.tensor).first) << l.name;
      EXPECT_EQ(view.rows, l.out);
      covered[view.tensor] += view.rows;
    }
    for (const auto& [module, shape] : lists.at(list).items()) {
      ASSERT_TRUE(native_modules.contains(module)) << module;
      EXPECT_EQ(native_modules[module].first, shape[0].get<std::uint64_t>()) << module;
      EXPECT_EQ(native_modules[module].second, shape[1].get<std::uint64_t>()) << module;
      EXPECT_EQ(covered[module], native_modules[module].first) << module;
    }
  }
}

TEST(Linears, OtherTwoDimensionalTensorsAreNotLinears) {
  const Architecture sd3 = published_architecture("sd3.5-medium"), sdxl = published_architecture("sdxl");
  EXPECT_FALSE(sd3.is_linear("pos_embed"));
  EXPECT_FALSE(sd3.is_linear("pos_embed.proj"));
  EXPECT_FALSE(sd3.is_linear("transformer_blocks.0.attn.norm_q"));
  EXPECT_FALSE(sdxl.is_linear("conv_in"));
  EXPECT_FALSE(sdxl.is_linear("down_blocks.1.resnets.0.conv_shortcut"));
  EXPECT_TRUE(sdxl.is_linear("down_blocks.1.resnets.0.time_emb_proj"));
  EXPECT_TRUE(sd3.is_linear("context_embedder"));
}

TEST(Config, SizesOfPublishedModels) {
  const ArchitectureConfig flux = published_architecture("flux1-dev", "bfl").config();
  EXPECT_EQ(flux.hidden, 3072);
  EXPECT_EQ(flux.heads, 24);
  EXPECT_EQ(flux.head_dim, 128);
  EXPECT_EQ(flux.mlp_hidden, 12288);
  EXPECT_EQ(flux.in_channels, 64);
  EXPECT_EQ(flux.context_dim, 4096);
  EXPECT_EQ(flux.pooled_dim, 768);
  EXPECT_EQ(flux.rope_axes, (std::vector<std::int64_t>{16, 56, 56}));
  EXPECT_EQ(flux.rope_theta, 10000);
  EXPECT_TRUE(flux.guidance);
  EXPECT_EQ(flux.depths, (std::map<std::string, std::int64_t>{{"double", 19}, {"single", 38}}));
  const ArchitectureConfig klein = published_architecture("flux2-klein-9b").config();
  EXPECT_EQ(klein.heads, 32);
  EXPECT_EQ(klein.rope_theta, 2000);
  EXPECT_EQ(klein.rope_axes, (std::vector<std::int64_t>{32, 32, 32, 32}));
  EXPECT_FALSE(klein.guidance);
  const ArchitectureConfig sd3 = published_architecture("sd3-medium").config();
  EXPECT_EQ(sd3.out_channels, 16);
  EXPECT_EQ(sd3.heads, 24);
  EXPECT_FALSE(sd3.qk_norm);
  EXPECT_TRUE(published_architecture("sd3.5-large").config().qk_norm);
  EXPECT_EQ(published_architecture("sd3.5-large").config().heads, 38);
  EXPECT_EQ(published_architecture("sdxl").config().context_dim, 2048);
}

TEST(Names, BflNormParametersMayBeCalledWeight) {
  std::vector<TensorShape> tensors = key_list("flux1-dev.bfl");
  for (TensorShape& t : tensors)
    if (t.name.ends_with("_norm.scale")) t.name.replace(t.name.size() - 5, 5, "weight");
  const Architecture a = *recognise(tensors);
  EXPECT_TRUE(a.check(tensors).empty());
  EXPECT_EQ(a.locate("transformer_blocks.3.attn.norm_q.weight")->tensor, "double_blocks.3.img_attn.norm.query_norm.weight");
}

TEST(Names, Prefixes) {
  const auto list = [](const char* name) { return std::vector<TensorShape>{{name, {1}}, {"vae.x", {1}}}; };
  EXPECT_EQ(detect_prefix(list("model.diffusion_model.img_in.weight")), "model.diffusion_model.");
  EXPECT_EQ(detect_prefix(list("diffusion_model.img_in.weight")), "diffusion_model.");
  EXPECT_EQ(detect_prefix(list("img_in.weight")), "");
}

Code code_of(const std::vector<TensorShape>& tensors, const std::string& config = {}) {
  try {
    recognise(tensors, config);
  } catch (const Error& e) {
    return e.code();
  }
  return Code::OK;
}

TEST(BadModels, AreNamed) {
  std::vector<TensorShape> tensors = key_list("flux1-schnell.bfl");
  std::vector<TensorShape> cut, hole = tensors, shaped = tensors;
  for (const TensorShape& t : tensors)
    if (t.name != "double_blocks.7.img_mlp.2.bias") cut.push_back(t);
  const auto missing = recognise(cut)->check(cut);
  ASSERT_EQ(missing.size(), 1u);
  EXPECT_EQ(missing[0].code, Code::MD_TENSOR);
  EXPECT_EQ(missing[0].tensor, "double_blocks.7.img_mlp.2.bias");
  std::erase_if(hole, [](const TensorShape& t) { return t.name.starts_with("single_blocks.5."); });
  EXPECT_EQ(code_of(hole), Code::MD_TENSOR);
  for (TensorShape& t : shaped)
    if (t.name == "single_blocks.4.linear2.weight") t.shape = {3072, 15361};
  shaped.push_back({"double_blocks.0.extra.weight", {2, 2}});
  EXPECT_EQ(recognise(shaped)->check(shaped).size(), 2u);
  EXPECT_FALSE(recognise(std::vector<TensorShape>{{"encoder.weight", {4, 4}}}).has_value());
  for (TensorShape& t : tensors)
    if (t.name == "img_in.weight") t.shape = {};
  EXPECT_EQ(code_of(tensors), Code::MD_TENSOR);
}

TEST(BadModels, ConfigJson) {
  const std::vector<TensorShape> tensors = key_list("flux1-dev.diffusers");
  EXPECT_EQ(code_of(tensors, R"({"num_layers": 19, "axes_dims_rope": [32, 48, 48], "guidance_embeds": true, "out_channels": null})"),
            Code::OK);
  for (const char* bad : {R"({"num_layers": 18})", R"({"num_layers": "19"})", R"({"num_layers": 19.0})", R"({"axes_dims_rope": [16, 56]})",
                          R"({"axes_dims_rope": "x"})", R"({"guidance_embeds": false})", R"({"_class_name": "SD3Transformer2DModel"})",
                          "[1]", "{", "{} x", R"({"a": 1, "a": 2})"})
    EXPECT_EQ(code_of(tensors, bad), Code::MD_ARCH) << bad;
  EXPECT_EQ(code_of(tensors, std::string(200000, '[')), Code::MD_ARCH);
}

TEST(Emoji, SmallModelWithoutGuidance) {
  const auto shapes = [] {
    std::ifstream file(test::fixtures() / "emoji/transformer/diffusion_pytorch_model.safetensors", std::ios::binary);
    std::uint64_t bytes = 0;
    file.read(reinterpret_cast<char*>(&bytes), 8);
    std::string text(bytes, '\0');
    file.read(text.data(), static_cast<std::streamsize>(bytes));
    std::vector<TensorShape> tensors;
    const auto header = nlohmann::json::parse(text);
    for (const auto& [name, record] : header.items())
      if (name != "__metadata__") tensors.push_back({name, record.at("shape").get<std::vector<std::uint64_t>>()});
    return tensors;
  }();
  const std::string config = read_fixture("emoji/transformer/config.json").dump();
  const Architecture a = *recognise(shapes, config);
  EXPECT_TRUE(a.check(shapes).empty());
  EXPECT_EQ(a.id(), "flux1-schnell");
  EXPECT_FALSE(a.published());
  EXPECT_EQ(a.layers().size(), 86u);
  EXPECT_EQ(a.blocks().size(), 9u);
  EXPECT_EQ(a.config().heads, 3);
  EXPECT_EQ(a.config().rope_axes, (std::vector<std::int64_t>{16, 24, 24}));
  EXPECT_TRUE(recognise(shapes)->config().rope_axes.empty());
  const Architecture again = recognise_recorded(shapes, a.json(config));
  EXPECT_EQ(again.json(config), a.json(config));
  EXPECT_THROW(recognise_recorded(shapes, R"({"id": "flux2-dev"})"), Error);
  EXPECT_THROW(recognise_recorded(shapes, "[]"), Error);
}

}  // namespace
}  // namespace squareq
