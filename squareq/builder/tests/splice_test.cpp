// Blocks of one slab in another (squareq splice): which are taken, that nothing else is, and every refusal.
#include "squareq/builder/splice.hpp"

#include "squareq/slab/tests/outcome.hpp"
#include "support.hpp"

namespace squareq::builder_test {
namespace {

using test::files_of;
using test::holds;
using test::tensor_bytes;

/// Two fine-tunes of one FLUX.1: two double and two single blocks; in the second every number has the other sign.
struct Fluxes {
  Scratch s;
  Slab a = built(s, flux("guided"), "a");
  Slab b = built(s, changed_flux(s, "model-b", [](SourceTensor& t) {
    for (std::size_t i = 1; i < t.data.size(); i += 2) t.data[i] = static_cast<char>(t.data[i] ^ 0x80);
  }), "b");

  SpliceResult splice(const std::string& spec, const std::string& name = "c") const { return splice_slab(a, b, spec, SlabPaths::resolve(s / name), {}); }
};

/// The problem of a refused splice; the folder holds what it held.
Problem refused(const Scratch& s, const Slab& base, const Slab& other, const std::string& spec, const std::string& name = "c", const AssembleOptions& options = {}) {
  const auto before = files_of(s.path());
  const Problem p = test::problem_of([&] { splice_slab(base, other, spec, SlabPaths::resolve(s / name), options); });
  EXPECT_EQ(files_of(s.path()), before) << spec << ": " << p.message;
  return p;
}

TEST(Splice, TakesTheNamedBlocksAndNothingElse) {  // SQ-FMT-105
  const Fluxes f;
  const SpliceResult result = f.splice("1,single_transformer_blocks.0");
  EXPECT_EQ(result.blocks, (std::vector<std::string>{"transformer_blocks.1", "single_transformer_blocks.0"}));
  EXPECT_EQ(result.layers, 14u + 6u);            // of a double and of a single block
  EXPECT_EQ(result.companion_tensors, 4u + 2u);  // their q and k norms
  std::size_t taken = 0;
  for (const auto& [made, base, other] : {std::tuple(result.files.paths.slab, f.a.paths().slab, f.b.paths().slab),
                                          std::tuple(result.files.paths.companion, f.a.paths().companion, f.b.paths().companion)})
    for (const SourceTensor& t : tensors_in(made)) {
      const bool ours = t.name.starts_with("transformer_blocks.1.") || t.name.starts_with("single_transformer_blocks.0.");
      taken += ours;
      EXPECT_TRUE(t.data == tensor_bytes(ours ? other : base, t.name)) << t.name;
      if (!t.name.ends_with(".scale") && !t.name.ends_with(".zero_point")) {
        EXPECT_FALSE(tensor_bytes(base, t.name) == tensor_bytes(other, t.name)) << t.name << " cannot tell";
      }
    }
  EXPECT_EQ(taken, 20u * 4 + 6);
  EXPECT_TRUE(slurp(result.files.paths.manifest) == slurp(f.a.paths().manifest));
  EXPECT_TRUE(validate(result.files.paths).ok());
}

TEST(Splice, TheSourceRecordSaysWhatCameFromWhere) {
  const Fluxes f;
  const Slab once = Slab::open(f.splice("0").files.paths.slab);
  const auto record = nlohmann::json::parse(once.companion()->source_json), own = nlohmann::json::parse(f.a.companion()->source_json);
  for (const auto& [key, value] : own.items()) EXPECT_EQ(record.at(key), value) << key;
  ASSERT_EQ(record.at("spliced").size(), 1u);
  EXPECT_EQ(record["spliced"][0].at("blocks"), nlohmann::json({"transformer_blocks.0"}));
  EXPECT_EQ(record["spliced"][0].at("id_sha256"), f.b.companion()->integrity.id_sha256);
  EXPECT_EQ(record["spliced"][0].at("source"), nlohmann::json::parse(f.b.companion()->source_json));
  const Slab twice = Slab::open(splice_slab(once, f.b, "2-3", SlabPaths::resolve(f.s / "d"), {}).files.paths.slab);
  const auto both = nlohmann::json::parse(twice.companion()->source_json).at("spliced");
  ASSERT_EQ(both.size(), 2u) << "the first splice is forgotten";
  EXPECT_EQ(both[0], record["spliced"][0]);
  EXPECT_EQ(both[1].at("blocks"), nlohmann::json({"single_transformer_blocks.0", "single_transformer_blocks.1"}));
}

TEST(Splice, SpellingsOfBlocks) {
  const Fluxes f;
  const std::string d0 = "transformer_blocks.0", d1 = "transformer_blocks.1", s0 = "single_transformer_blocks.0", s1 = "single_transformer_blocks.1", outside = "(outside blocks)";
  const std::vector<std::pair<std::string, std::vector<std::string>>> all = {
      {"0", {d0}},           {"3", {s1}},
      {"1-2", {d1, s0}},     {"3,0", {d0, s1}},
      {"0,0-0," + d0, {d0}}, {s0, {s0}},
      {s0 + "-1", {s0, s1}}, {"transformer_blocks.1-1", {d1}},
      {"outside", {outside}}, {"outside,0-3", {d0, d1, s0, s1, outside}},
  };
  for (const auto& [spec, blocks] : all) EXPECT_EQ(f.splice(spec).blocks, blocks) << spec;
  // Everything of the other slab is the other slab.
  EXPECT_TRUE(slurp(f.splice("0-3,outside").files.paths.slab) == slurp(f.b.paths().slab));
}

TEST(Splice, SpellingsThatNameNoBlock) {
  const Fluxes f;
  const std::vector<std::pair<std::string, std::string>> all = {
      {"4", "'4'"},     {"0-4", "'0-4'"}, {"2-1", "'2-1'"}, {"", "''"}, {"a", "'a'"}, {"0,,1", "''"}, {"1,", "''"}, {"-1", "'-1'"}, {"1-", "'1-'"}, {" 1", "' 1'"}, {"+1", "'+1'"}, {"0x1", "'0x1'"},
      {"transformer_blocks.2", "'transformer_blocks.2'"}, {"transformer_blocks.1-2", "'transformer_blocks.2'"}, {"transformer_blocks.", "'transformer_blocks.'"}, {"transformer_blocks", "'transformer_blocks'"},
      {"18446744073709551616", "'18446744073709551616'"}, {"transformer_blocks.0-18446744073709551615", "'transformer_blocks.0-18446744073709551615'"},
      {"0-18446744073709551615", "'0-18446744073709551615'"}, {"(outside blocks)", "'(outside blocks)'"}};
  for (const auto& [spec, named] : all) {
    const Problem p = refused(f.s, f.a, f.b, spec);
    EXPECT_EQ(p.code, Code::CFG_VALUE) << spec << ": " << p.message;
    EXPECT_TRUE(holds(p.message, {named, "transformer_blocks.0 to single_transformer_blocks.1"})) << spec << ": " << p.message;
  }
}

TEST(Splice, RefusesToOverwriteWhatItReads) {
  const Fluxes f;
  for (const char* name : {"a", "b"}) {
    const std::string before = slurp(f.s / (std::string(name) + ".safetensors"));
    const Problem p = refused(f.s, f.a, f.b, "0", name);
    EXPECT_EQ(p.code, Code::CFG_VALUE);
    EXPECT_EQ(p.file, (f.s / (std::string(name) + ".safetensors")).string());
    EXPECT_TRUE(slurp(f.s / (std::string(name) + ".safetensors")) == before);
  }
}

TEST(Splice, RefusesSlabsThatDoNotMatch) {
  const Fluxes f;
  const auto guided = [&](const std::string& name, const std::function<void(BuildOptions&)>& how) { return built(f.s, flux("guided"), name, how); };
  const Slab plain = built(f.s, flux("plain"), "plain");
  const Problem signature = refused(f.s, f.a, plain, "0");
  EXPECT_EQ(signature.code, Code::MF_SIGNATURE);
  EXPECT_TRUE(holds(signature.message, {f.a.manifest().model_signature, plain.manifest().model_signature})) << signature.message;

  const Problem id = refused(f.s, f.a, guided("id", [](BuildOptions& o) { o.architecture_id = "tiny"; }), "0");
  EXPECT_EQ(id.code, Code::MF_ARCH);
  EXPECT_TRUE(holds(id.message, {"'unknown'", "'tiny'"})) << id.message;

  const Slab bare = guided("bare", [](BuildOptions& o) { o.companion = false; });
  for (const auto& [base, other, who] : {std::tuple(&f.a, &bare, "the first"), std::tuple(&bare, &f.a, "the other")}) {
    const Problem p = refused(f.s, *base, *other, "0");
    EXPECT_EQ(p.code, Code::MD_ARCH);
    EXPECT_TRUE(holds(p.message, {who})) << p.message;
  }

  const Problem records = refused(f.s, f.a, guided("generic", [](BuildOptions& o) { o.architecture = "none"; }), "0");
  EXPECT_EQ(records.code, Code::MD_ARCH);
  EXPECT_TRUE(holds(records.message, {"different architectures", "flux1-dev"})) << records.message;
  EXPECT_EQ(records.file, (f.s / "generic.companion.safetensors").string());

  const Problem pads = refused(f.s, f.a, guided("padded", [](BuildOptions& o) { o.pack_k = 128; }), "0");
  EXPECT_EQ(pads.code, Code::MD_LAYER);
  EXPECT_EQ(pads.layer, "context_embedder");  // the first by name
  EXPECT_TRUE(holds(pads.message, {"[64, 40], pad_k 64, with bias", "[64, 40], pad_k 128, with bias"})) << pads.message;

  const Slab part = guided("part", [](BuildOptions& o) { o.include_prefixes = {"x_embedder"}; });
  const Problem fewer = refused(f.s, f.a, part, "0"), more = refused(f.s, part, f.a, "0");
  EXPECT_EQ(fewer.code, Code::MD_LAYER);
  EXPECT_TRUE(holds(fewer.message, {"'context_embedder' is not in the other slab"})) << fewer.message;
  EXPECT_EQ(more.code, Code::MD_LAYER);
  EXPECT_TRUE(holds(more.message, {"'context_embedder' is in the other slab only"})) << more.message;

  const std::string norm = "transformer_blocks.0.attn.norm_q.weight";
  const fs::path wide = changed_flux(f.s, "wide", [&](SourceTensor& t) {
    if (t.name != norm) return;
    t.dtype = "F32";
    t.data.assign(2 * t.data.size(), '\0');
  });
  const Problem tensors = refused(f.s, f.a, built(f.s, wide, "w"), "0");
  EXPECT_EQ(tensors.code, Code::MD_TENSOR);
  EXPECT_EQ(tensors.tensor, norm);
  EXPECT_TRUE(holds(tensors.message, {"BF16 [32]", "F32 [32]"})) << tensors.message;
}

TEST(Splice, InterruptedItLeavesNothing) {
  const Fluxes f;
  const std::atomic<bool> cancelled{true};
  AssembleOptions options;
  options.cancelled = &cancelled;
  EXPECT_EQ(refused(f.s, f.a, f.b, "0", "c", options).code, Code::IO_INTERRUPTED);
}

TEST(Splice, AModelOfNoKnownArchitectureHasNamesAndNoNumbers) {
  const Scratch s;
  std::vector<Slab> slabs;
  for (const std::uint32_t seed : {1u, 2u, 3u}) {
    std::vector<SourceTensor> tensors;
    for (const char* name : {"blocks.0.q", "blocks.2.q", "blocks.10.q", "head"}) tensors.push_back({std::string(name) + ".weight", "BF16", {4, 8}, bf16_noise(32, seed * 7 + static_cast<std::uint32_t>(tensors.size()))});
    tensors.push_back({"blocks.10.norm.weight", "BF16", seed == 3 ? std::vector<std::uint64_t>{2, 4} : std::vector<std::uint64_t>{8}, bf16_noise(8, seed)});
    const std::string name = "m" + std::to_string(seed);
    spit(s / (name + ".st"), container(tensors));
    fs::rename(s / (name + ".st"), s.folder(name) / "model.safetensors");
    slabs.push_back(built(s, s / name, "slab" + std::to_string(seed), [](BuildOptions& o) { o.architecture = "none"; }));
  }
  const Problem p = refused(s, slabs[0], slabs[1], "0");
  EXPECT_EQ(p.code, Code::CFG_VALUE);
  EXPECT_TRUE(holds(p.message, {"'0'", "architecture is not known", "blocks.0 to blocks.10"})) << p.message;
  EXPECT_TRUE(holds(refused(s, slabs[0], slabs[1], "blocks.0-2").message, {"'blocks.1' is no block"}));
  const Problem shape = refused(s, slabs[0], slabs[2], "blocks.0");  // as many elements in another shape
  EXPECT_EQ(shape.code, Code::MD_TENSOR);
  EXPECT_TRUE(holds(shape.message, {"BF16 [8]", "BF16 [2, 4]"})) << shape.message;
  const SpliceResult result = splice_slab(slabs[0], slabs[1], "blocks.10", SlabPaths::resolve(s / "c"), {});
  EXPECT_EQ(result.layers, 1u);
  EXPECT_EQ(result.companion_tensors, 1u);
  for (const char* tensor : {"blocks.0.q.qweight", "blocks.2.q.qweight", "blocks.10.q.qweight", "head.qweight"})
    EXPECT_TRUE(tensor_bytes(result.files.paths.slab, tensor) == tensor_bytes(slabs[std::string(tensor) == "blocks.10.q.qweight"].paths().slab, tensor)) << tensor;
  EXPECT_TRUE(tensor_bytes(result.files.paths.companion, "blocks.10.norm.weight") == bf16_noise(8, 2));
}

}  // namespace
}  // namespace squareq::builder_test
