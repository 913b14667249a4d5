// LoRA files: against files that diffusers and peft wrote, against the published key lists, and back and forth (SQ-TRN-030..038).
#include "squareq/training/lora/lora_file.hpp"

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "fixtures/places.hpp"
#include "squareq/slab/digest.hpp"
#include "squareq/training/data/tensor_reader.hpp"
#include "squareq/training/data/tests/support.hpp"

namespace squareq::training {
namespace {

const std::filesystem::path fixtures = test::fixtures() / "lora";

nlohmann::json load(const std::string& name) {
  std::ifstream file(fixtures / name);
  return nlohmann::json::parse(file);
}

LoraNames tiny() {
  std::vector<TensorShape> tensors;
  const auto keys = load("tiny.keys.json");
  for (const auto& [name, shape] : keys.items()) tensors.push_back({name, shape.get<std::vector<std::uint64_t>>()});
  const auto architecture = recognise(tensors);
  EXPECT_TRUE(architecture.has_value());
  return LoraNames(*architecture);
}

/// The weight change of every diffusers layer, in double.
std::map<std::string, std::vector<double>> changes(const std::vector<LoraLayer>& layers, const LoraNames& names) {
  std::map<std::string, std::vector<double>> out;
  for (const LoraLayer& l : layers) {
    const auto rows = static_cast<std::size_t>(l.out), columns = static_cast<std::size_t>(l.in), rank = static_cast<std::size_t>(l.rank);
    std::vector<double> delta(rows * columns);
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t k = 0; k < rank; ++k)
        for (std::size_t c = 0; c < columns; ++c)
          delta[r * columns + c] += l.scaling() * static_cast<double>(l.up[r * rank + k]) * static_cast<double>(l.down[k * columns + c]);
    const LoraModule* native = names.by_native(l.layer);
    if (names.by_layer(l.layer) || !native) {
      out[l.layer] = delta;
      continue;
    }
    for (const LoraPart& part : native->parts) {
      EXPECT_FALSE(part.swap_halves);
      const auto at = delta.begin() + static_cast<std::ptrdiff_t>(part.first_row * columns);
      out[part.layer].assign(at, at + static_cast<std::ptrdiff_t>(part.rows * columns));
    }
  }
  return out;
}

void expect_golden(const std::string& file) {
  const LoraNames names = tiny();
  const auto found = changes(read_lora(fixtures / ("tiny." + file + ".safetensors"), names), names);
  const SafetensorsFile expected = SafetensorsFile::open(fixtures / "tiny.expected.safetensors");
  std::size_t count = 0;
  for (const TensorRecord& tensor : expected.header().tensors) {
    if (!tensor.name.starts_with(file + ".")) continue;
    ++count;
    const std::string layer = tensor.name.substr(file.size() + 1);
    ASSERT_TRUE(found.contains(layer)) << layer;
    const std::vector<float> want = read_floats(expected, tensor);
    const std::vector<double>& have = found.at(layer);
    ASSERT_EQ(have.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(have[i], want[i], 2e-7) << layer << " " << i;
  }
  EXPECT_GT(count, 5u);
  EXPECT_EQ(found.size(), count);
}

TEST(LoraFile, ReadsWhatSaveLoraAdapterWrote) { expect_golden("adapter"); }         // SQ-TRN-034
TEST(LoraFile, ReadsWhatSaveLoraWeightsWrote) { expect_golden("pipeline"); }        // SQ-TRN-034
TEST(LoraFile, ReadsFusedKohyaModulesAndItsAlphaRules) { expect_golden("kohya"); }  // SQ-TRN-033, SQ-TRN-035

LoraLayer random_layer(const std::string& name, std::int64_t out, std::int64_t in, std::int64_t rank, double alpha, unsigned seed) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  LoraLayer l{name, alpha, rank, in, out, {}, {}};
  l.down.resize(static_cast<std::size_t>(rank * in));
  l.up.resize(static_cast<std::size_t>(out * rank));
  for (float& x : l.down) x = uniform(engine);
  for (float& x : l.up) x = uniform(engine);
  return l;
}

/// An adapter on every part of every module, diffusers names.
std::vector<LoraLayer> split_adapters(const LoraNames& names, std::int64_t rank, double alpha) {
  std::vector<LoraLayer> layers;
  for (const LoraModule& module : names.modules())
    for (const LoraPart& part : module.parts)
      layers.push_back(random_layer(part.layer, static_cast<std::int64_t>(part.rows), static_cast<std::int64_t>(module.in), rank, alpha,
                                    static_cast<unsigned>(layers.size())));
  return layers;
}

void expect_same(const std::vector<LoraLayer>& a, std::vector<LoraLayer> b) {
  std::map<std::string, const LoraLayer*> by_name;
  for (const LoraLayer& l : b) by_name[l.layer] = &l;
  ASSERT_EQ(a.size(), b.size());
  for (const LoraLayer& l : a) {
    ASSERT_TRUE(by_name.contains(l.layer)) << l.layer;
    const LoraLayer& other = *by_name[l.layer];
    EXPECT_EQ(l.alpha, other.alpha) << l.layer;
    EXPECT_EQ(l.down, other.down) << l.layer;
    EXPECT_EQ(l.up, other.up) << l.layer;
  }
}

TEST(LoraFile, RoundTripsInEveryFormat) {  // SQ-TRN-030, SQ-TRN-031, SQ-TRN-036
  const TemporaryFolder folder;
  const LoraNames names = tiny();
  const std::vector<LoraLayer> layers = split_adapters(names, 3, 1.5);
  for (LoraFormat format : {LoraFormat::kohya, LoraFormat::peft, LoraFormat::comfy}) {
    LoraWriteOptions options;
    options.format = format;
    write_lora(folder / "l.safetensors", layers, names, options);
    expect_same(layers, read_lora(folder / "l.safetensors", names));
  }
}

TEST(LoraFile, FusedModulesKeepTheirStrength) {  // SQ-TRN-031
  const TemporaryFolder folder;
  const LoraNames names = tiny();
  write_lora(folder / "l.safetensors", split_adapters(names, 2, 5.0), names);
  const SafetensorsFile file = SafetensorsFile::open(folder / "l.safetensors");
  const auto alpha = [&](const char* module) {
    return read_number(file, *file.header().find(std::string("lora_unet_") + module + ".alpha"));
  };
  const auto shape = [&](const char* module, const char* matrix) {
    return file.header().find(std::string("lora_unet_") + module + matrix)->shape;
  };
  EXPECT_EQ(alpha("double_blocks_0_img_attn_qkv"), 15.0);  // 3 x alpha at rank 3 x 2
  EXPECT_EQ(alpha("single_blocks_0_linear1"), 20.0);       // 4 x
  EXPECT_EQ(alpha("single_blocks_0_linear2"), 5.0);
  EXPECT_EQ(shape("double_blocks_0_img_attn_qkv", ".lora_down.weight"), (std::vector<std::uint64_t>{6, 32}));
  EXPECT_EQ(shape("single_blocks_0_linear1", ".lora_up.weight"), (std::vector<std::uint64_t>{224, 8}));
  const std::vector<float> up = read_floats(file, *file.header().find("lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"));
  for (std::size_t row = 0; row < 96; ++row)
    for (std::size_t column = 0; column < 6; ++column) EXPECT_EQ(up[row * 6 + column] == 0.0f, row / 32 != column / 2);
}

TEST(LoraFile, PartlyTrainedModulesAndMixedRanksComeBack) {  // SQ-TRN-031, SQ-TRN-033
  const TemporaryFolder folder;
  const LoraNames names = tiny();
  const std::vector<LoraLayer> layers = {random_layer("transformer_blocks.0.attn.to_q", 32, 32, 3, 3, 1),
                                         random_layer("transformer_blocks.0.attn.to_v", 32, 32, 2, 2, 2),
                                         random_layer("single_transformer_blocks.0.proj_mlp", 128, 32, 4, 4, 3)};
  write_lora(folder / "l.safetensors", layers, names);
  expect_same(layers, read_lora(folder / "l.safetensors", names));
}

TEST(LoraFile, FusedAdaptersKeepTheirOwnForm) {  // SQ-TRN-033
  const TemporaryFolder folder;
  const LoraNames names = tiny();
  const std::vector<LoraLayer> layers = {random_layer("double_blocks.0.img_attn.qkv", 96, 32, 4, 2, 1)};
  write_lora(folder / "l.safetensors", layers, names);
  expect_same(layers, read_lora(folder / "l.safetensors", names));
  LoraWriteOptions peft;
  peft.format = LoraFormat::peft;
  write_lora(folder / "p.safetensors", layers, names, peft);
  const auto sliced = read_lora(folder / "p.safetensors", names);
  EXPECT_EQ(sliced.size(), 3u);
  EXPECT_EQ(changes(sliced, names), changes(layers, names));
}

/// Keys and shapes of a written file, with `rank` in place of 16.
void expect_keys(const std::filesystem::path& path, const std::string& list, std::int64_t rank) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  const auto published = load(list);
  EXPECT_EQ(file.header().tensors.size(), published.size());
  for (const auto& [key, shape] : published.items()) {
    const TensorRecord* tensor = file.header().find(key);
    ASSERT_NE(tensor, nullptr) << key;
    auto want = shape.get<std::vector<std::uint64_t>>();
    if (want.size() == 2)
      want[key.find("lora_down") != std::string::npos || key.find("lora_A") != std::string::npos ? 0 : 1] =
          static_cast<std::uint64_t>(rank);
    EXPECT_EQ(tensor->shape, want) << key;
  }
}

TEST(LoraFile, FluxDevKeysAreThePublishedOnes) {  // SQ-TRN-032
  const TemporaryFolder folder;
  const char* kept = std::getenv("SQUAREQ_KEEP_LORA");  // where fixtures/lora/check_lora.py looks for full-size files
  const std::filesystem::path where = kept ? std::filesystem::path(kept) : folder.path();
  const LoraNames names(published_architecture("flux1-dev"));
  std::vector<LoraLayer> fused, attention, split;
  for (const LoraModule& module : names.modules()) {
    const auto seed = static_cast<unsigned>(fused.size());
    const auto out = static_cast<std::int64_t>(module.out), in = static_cast<std::int64_t>(module.in);
    if (module.native.find("blocks.") == std::string::npos) continue;
    fused.push_back(random_layer(module.fused() ? module.native : module.parts.front().layer, out, in, 1, 1, seed));
    for (const LoraPart& part : module.parts) {
      const auto rows = static_cast<std::int64_t>(part.rows);
      for (const char* leaf : {".attn.to_q", ".attn.to_k", ".attn.to_v", ".attn.to_out.0"})
        if (part.layer.ends_with(leaf)) attention.push_back(random_layer(part.layer, rows, in, 1, 1, seed));
      if (kept && !part.layer.ends_with("linear")) split.push_back(random_layer(part.layer, rows, in, 1, 2, seed));
    }
  }
  LoraWriteOptions options;
  write_lora(where / "dev.kohya.safetensors", fused, names, options);
  expect_keys(where / "dev.kohya.safetensors", "flux1-dev.kohya.r16.json", 1);
  options.format = LoraFormat::peft;
  write_lora(where / "dev.peft.safetensors", attention, names, options);
  expect_keys(where / "dev.peft.safetensors", "flux1-dev.peft-default.r16.json", 1);
  if (kept) {
    write_lora(where / "split.peft.safetensors", split, names, options);
    options.format = LoraFormat::kohya;
    write_lora(where / "split.kohya.safetensors", split, names, options);
  }
  for (LoraLayer& layer : fused) layer.down.assign(layer.down.size(), 0.25f);
  options.format = LoraFormat::comfy;
  write_lora(where / "dev.comfy.safetensors", fused, names, options);
  const SafetensorsFile comfy = SafetensorsFile::open(where / "dev.comfy.safetensors");
  const auto native = load("flux1-dev.comfy-native.r16.json");
  for (const auto& [key, shape] : native.items()) EXPECT_NE(comfy.header().find(key), nullptr) << key;
}

TEST(LoraFile, HeadersHoldWhatOtherToolsRead) {  // SQ-TRN-037
  const TemporaryFolder folder;
  const LoraNames names = tiny();
  const auto layers = split_adapters(names, 2, 2);
  write_lora(folder / "my style.safetensors", layers, names);
  const SafetensorsFile file = SafetensorsFile::open(folder / "my style.safetensors");
  const auto entry = [&](const char* key) { return file.header().find_metadata(key) ? *file.header().find_metadata(key) : "(absent)"; };
  EXPECT_EQ(entry("ss_network_dim"), "2");
  EXPECT_EQ(entry("ss_network_alpha"), "2");
  EXPECT_EQ(entry("ss_network_module"), "networks.lora_flux");
  EXPECT_EQ(entry("ss_network_args"), "{}");
  EXPECT_EQ(entry("ss_v2"), "False");
  EXPECT_EQ(entry("ss_base_model_version"), "flux1");
  EXPECT_EQ(entry("modelspec.sai_model_spec"), "1.0.1");
  EXPECT_EQ(entry("modelspec.architecture"), "flux-1-dev/lora");
  EXPECT_EQ(entry("modelspec.title"), "my style");
  EXPECT_EQ(entry("sshs_legacy_hash"), "e3b0c442");  // SHA-256 of nothing: the file is shorter than 1 MiB
  Sha256 data;
  std::ifstream raw(file.path(), std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(raw), {}};
  data.update(bytes.data() + file.header().data_start, bytes.size() - file.header().data_start);
  EXPECT_EQ(entry("sshs_model_hash"), data.hex());

  LoraWriteOptions peft;
  peft.format = LoraFormat::peft;
  write_lora(folder / "p.safetensors", layers, names, peft);
  const SafetensorsFile written = SafetensorsFile::open(folder / "p.safetensors");
  EXPECT_EQ(*written.header().find_metadata("format"), "pt");
  const auto config = nlohmann::json::parse(*written.header().find_metadata("lora_adapter_metadata"));
  EXPECT_EQ(config.at("transformer.r"), 2);
  EXPECT_EQ(config.at("transformer.lora_alpha"), 2.0);
  EXPECT_EQ(config.at("transformer.target_modules").size(), layers.size());
  for (const TensorRecord& tensor : written.header().tensors) EXPECT_EQ(tensor.name.find("alpha"), std::string::npos);
}

TEST(LoraFile, SixteenBitFilesRoundButKeepAlpha) {  // SQ-TRN-036
  const TemporaryFolder folder;
  const LoraNames names = tiny();
  LoraWriteOptions options;
  options.dtype = FileDtype::BF16;
  write_lora(folder / "l.safetensors", split_adapters(names, 2, 257.0), names, options);
  const SafetensorsFile file = SafetensorsFile::open(folder / "l.safetensors");
  EXPECT_EQ(file.header().find("lora_unet_single_blocks_0_linear2.lora_up.weight")->dtype, FileDtype::BF16);
  EXPECT_EQ(file.header().find("lora_unet_single_blocks_0_linear2.alpha")->dtype, FileDtype::F32);
  EXPECT_EQ(read_number(file, *file.header().find("lora_unet_single_blocks_0_linear2.alpha")), 257.0);
}

TEST(LoraFile, RefusalsListEverything) {  // SQ-TRN-038
  const TemporaryFolder folder;
  const LoraNames names = tiny();
  const auto read = [&](const std::vector<NamedTensor>& tensors, std::initializer_list<const char*> words, const Metadata& metadata = {}) {
    write_file(folder / "x.safetensors", tensors, metadata);
    return failure([&] { read_lora(folder / "x.safetensors", names); }, words);
  };
  const std::string q = "transformer.transformer_blocks.0.attn.to_q", k = "transformer.transformer_blocks.0.attn.to_k";
  const NamedTensor down = f32(q + ".lora_A.weight", {2, 32}, std::vector<float>(64, 1.0f)),
                    up = f32(q + ".lora_B.weight", {32, 2}, std::vector<float>(64, 1.0f));
  EXPECT_EQ(read({down, up}, {}), Code::OK);
  EXPECT_EQ(read({down}, {"to_q", "up"}), Code::LR_PAIR);
  EXPECT_EQ(read({down, f32(q + ".lora_B.weight", {48, 2}, std::vector<float>(96))}, {"[48, 2]", "[32, rank]"}), Code::LR_SHAPE);
  EXPECT_EQ(read({down, f32(q + ".lora_B.weight", {32, 3}, std::vector<float>(96))}, {"[32, 3]"}), Code::LR_SHAPE);
  EXPECT_EQ(read({down, up, f32("transformer.transformer_blocks.7.attn.to_q.lora_A.weight", {2, 32}, std::vector<float>(64)),
                  f32(k + ".lora_B.weight", {32, 2}, std::vector<float>(64)), f32("lora_te1_x.lora_up.weight", {1, 1}, {1}),
                  f32(k + ".dora_scale", {1}, {1})},
                 {"transformer_blocks.7", "to_k", "lora_te1_x", "dora_scale"}),
            Code::LR_KEY);
  EXPECT_EQ(read({down, up, f32(q + ".alpha", {3}, {1, 2, 3})}, {"alpha"}), Code::LR_SHAPE);
  EXPECT_EQ(read({down, up, f32(q + ".alpha", {}, {1})}, {"alpha"}, {{"lora_adapter_metadata", R"({"transformer.lora_alpha": 2})"}}),
            Code::LR_KEY);
  EXPECT_EQ(read({down, up}, {"DoRA"}, {{"lora_adapter_metadata", R"({"transformer.use_dora": true})"}}), Code::LR_KEY);
  std::vector<float> bad(64, 1.0f);
  bad[5] = INFINITY;
  EXPECT_EQ(read({down, f32(q + ".lora_B.weight", {32, 2}, bad)}, {"to_q"}), Code::NUM_NONFINITE);
  EXPECT_EQ(read({f32("weight", {1}, {1})}, {"no LoRA tensor"}), Code::LR_KEY);
}

TEST(LoraFile, RankStabilizedScaling) {  // SQ-TRN-035
  const TemporaryFolder folder;
  const LoraNames names = tiny();
  const std::string q = "transformer_blocks.0.attn.to_q";
  write_file(folder / "x.safetensors",
             {f32(q + ".lora_A.weight", {4, 32}, std::vector<float>(128, 1.0f)),
              f32(q + ".lora_B.weight", {32, 4}, std::vector<float>(128, 1.0f))},
             {{"lora_adapter_metadata", R"({"r": 4, "lora_alpha": 6, "use_rslora": true})"}});
  EXPECT_DOUBLE_EQ(read_lora(folder / "x.safetensors", names).front().scaling(), 6 / std::sqrt(4.0));
}

TEST(LoraFile, ABadAdapterNeverReplacesAGoodOne) {  // SQ-TRN-051
  const TemporaryFolder folder;
  const LoraNames names = tiny();
  std::vector<LoraLayer> layers = {random_layer("transformer_blocks.0.attn.to_q", 32, 32, 2, 2, 1)};
  write_lora(folder / "l.safetensors", layers, names);
  const auto before = layers;
  layers[0].up[3] = NAN;
  EXPECT_EQ(failure([&] { write_lora(folder / "l.safetensors", layers, names); }, {"to_q"}), Code::NUM_NONFINITE);
  layers[0].layer = "transformer_blocks.9.attn.to_q";
  EXPECT_EQ(failure([&] { write_lora(folder / "l.safetensors", layers, names); }), Code::LR_KEY);
  expect_same(before, read_lora(folder / "l.safetensors", names));
}

}  // namespace
}  // namespace squareq::training
