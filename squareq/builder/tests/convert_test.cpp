// A slab under its model's other names, and the companion that a bare pair lacks (squareq convert): the same bytes that a build makes of the
// checkpoint in those names, which fixtures/flux/generate.py wrote; and every refusal, which leaves the folder as it was.
#include "squareq/builder/convert.hpp"

#include "squareq/slab/tests/outcome.hpp"
#include "support.hpp"

namespace squareq::builder_test {
namespace {

using test::files_of;
using test::holds;
using test::tensor_bytes;

AssembleResult convert(const Scratch& s, const Slab& slab, const std::string& scheme, const std::string& name, const AssembleOptions& options = {}) {
  return convert_slab(slab, scheme, SlabPaths::resolve(s / name), options);
}

void arch_id(BuildOptions& o) { o.architecture_id = "tiny"; }

TEST(Convert, IsWhatABuildMakesOfTheOtherNames) {  // SQ-FMT-101
  for (const auto& [from, to, scheme] : {std::tuple("guided", "bfl", "bfl"), std::tuple("bfl", "guided", "diffusers")}) {
    const Scratch s;
    const Slab source = built(s, flux(from), "source", arch_id), wanted = built(s, flux(to), "wanted", arch_id);
    const AssembleResult result = convert(s, source, scheme, "made");
    EXPECT_TRUE(slurp(result.paths.slab) == slurp(wanted.paths().slab)) << scheme;
    EXPECT_TRUE(slurp(result.paths.manifest) == slurp(wanted.paths().manifest)) << scheme;
    EXPECT_EQ(result.id_sha256, wanted.companion()->integrity.id_sha256);
    const Slab made = Slab::open(result.paths.slab);
    EXPECT_EQ(made.companion()->own_digests, wanted.companion()->own_digests);
    EXPECT_EQ(made.companion()->architecture_json, wanted.companion()->architecture_json);
    EXPECT_EQ(made.companion()->source_json, source.companion()->source_json) << "the record names the checkpoint that was read";
  }
}

TEST(Convert, RowsAreJoinedAndHalvesChangePlaces) {
  const Scratch s;
  const Slab slab = built(s, flux("guided"), "a");
  const AssembleResult result = convert(s, slab, "bfl", "b");
  for (const char* part : {".qweight", ".scale", ".zero_point", ".bias"}) {
    const auto ours = [&](const std::string& layer) { return tensor_bytes(slab.paths().slab, layer + part); };
    const auto made = [&](const std::string& layer) { return tensor_bytes(result.paths.slab, layer + part); };
    const std::string block = "transformer_blocks.1.attn.", single = "single_transformer_blocks.0.";
    EXPECT_TRUE(made("double_blocks.1.img_attn.qkv") == ours(block + "to_q") + ours(block + "to_k") + ours(block + "to_v")) << part;
    EXPECT_TRUE(made("double_blocks.1.txt_attn.qkv") == ours(block + "add_q_proj") + ours(block + "add_k_proj") + ours(block + "add_v_proj")) << part;
    EXPECT_TRUE(made("single_blocks.0.linear1") == ours(single + "attn.to_q") + ours(single + "attn.to_k") + ours(single + "attn.to_v") + ours(single + "proj_mlp")) << part;
    const std::string halves = ours("norm_out.linear");  // diffusers: scale, shift; the original: shift, scale
    EXPECT_TRUE(made("final_layer.adaLN_modulation.1") == halves.substr(halves.size() / 2) + halves.substr(0, halves.size() / 2)) << part;
  }
  EXPECT_TRUE(tensor_bytes(result.paths.companion, "single_blocks.1.norm.key_norm.scale") ==
              tensor_bytes(slab.paths().companion, "single_transformer_blocks.1.attn.norm_k.weight"));
}

TEST(Convert, ThereAndBackIsTheSameSlab) {  // SQ-FMT-100
  const Scratch s;
  const Slab slab = built(s, flux("guided"), "a");
  const Slab there = Slab::open(convert(s, slab, "bfl", "b").paths.slab);
  const SlabPaths back = convert(s, there, "diffusers", "c").paths;
  EXPECT_TRUE(slurp(back.slab) == slurp(slab.paths().slab));
  EXPECT_TRUE(slurp(back.manifest) == slurp(slab.paths().manifest));
  EXPECT_TRUE(slurp(back.companion) == slurp(slab.paths().companion));
}

/// The problem of a refused conversion; the folder holds what it held.
Problem refused(const Scratch& s, const Slab& slab, const std::string& scheme, const std::string& name = "made", const AssembleOptions& options = {}) {
  const auto before = files_of(s.path());
  const Problem p = test::problem_of([&] { convert(s, slab, scheme, name, options); });
  EXPECT_EQ(files_of(s.path()), before) << p.message;
  return p;
}

/// The slab with another manifest; its tensors keep their names and bytes.
Slab rewritten(const Scratch& s, const Slab& slab, const std::string& name, const std::function<void(Manifest&)>& change) {
  Manifest manifest = slab.manifest();
  change(manifest);
  SlabAssembly assembly(manifest);
  for (const TensorRecord& t : slab.file().header().tensors) assembly.take(slab, SlabAssembly::Part::slab, t, t.name);
  std::vector<TensorSpec> rest;
  for (const TensorRecord& t : slab.companion()->file.header().tensors) {
    rest.push_back({t.name, t.dtype, t.shape});
    assembly.take(slab, SlabAssembly::Part::companion, t, t.name);
  }
  assembly.with_companion(rest, slab.companion()->architecture_json, slab.companion()->source_json);
  return Slab::open(assembly.write(SlabPaths::resolve(s / name), {}).paths.slab);
}

TEST(Convert, RefusesWrongTargets) {
  const Scratch s;
  const Slab slab = built(s, flux("guided"), "a");
  const Problem unknown = refused(s, slab, "sgm");
  EXPECT_EQ(unknown.code, Code::CFG_VALUE);
  EXPECT_TRUE(holds(unknown.message, {"'sgm'", "diffusers", "bfl"})) << unknown.message;
  const Problem own = refused(s, slab, "diffusers");
  EXPECT_EQ(own.code, Code::CFG_VALUE);
  EXPECT_TRUE(holds(own.message, {"diffusers"})) << own.message;
  EXPECT_EQ(own.file, slab.paths().slab.string());
  const std::string before = slurp(slab.paths().slab);
  const Problem itself = refused(s, slab, "bfl", "a");
  EXPECT_EQ(itself.code, Code::CFG_VALUE);
  EXPECT_EQ(itself.file, slab.paths().slab.string());
  EXPECT_TRUE(slurp(slab.paths().slab) == before);
}

TEST(Convert, RefusesWhatHasNoOtherNames) {
  const Scratch s;
  const Problem bare = refused(s, built(s, flux("guided"), "bare", [](BuildOptions& o) { o.companion = false; }), "bfl");
  EXPECT_EQ(bare.code, Code::MD_ARCH);
  EXPECT_TRUE(holds(bare.message, {"bare pair", "--add-companion"})) << bare.message;
  EXPECT_EQ(bare.file, (s / "bare.safetensors").string());
  const Problem generic = refused(s, built(s, flux("guided"), "generic", [](BuildOptions& o) { o.architecture = "none"; }), "bfl");
  EXPECT_EQ(generic.code, Code::MD_ARCH);
  EXPECT_TRUE(holds(generic.message, {"records no architecture"})) << generic.message;
}

TEST(Convert, RefusesLayersThatCannotBeJoined) {  // SQ-FMT-102
  const Scratch s;
  const std::string q = "transformer_blocks.0.attn.to_q", k = "transformer_blocks.0.attn.to_k", joined = "double_blocks.0.img_attn.qkv";
  const Slab part = built(s, flux("guided"), "part", [&](BuildOptions& o) { o.include_prefixes = {q}; });
  const Problem half = refused(s, part, "bfl");
  EXPECT_EQ(half.code, Code::MD_LAYER);
  EXPECT_TRUE(holds(half.message, {q, k, joined, "only one of them is quantized"})) << half.message;
  // Rows of 64 elements are as long with an alignment of 32 as with one of 64.
  const Slab padded = rewritten(s, built(s, flux("guided"), "a"), "padded", [&](Manifest& m) {
    for (ManifestLayer& l : m.layers)
      if (l.canonical_name == q) l.pad_k = 32;
  });
  const Problem pads = refused(s, padded, "bfl");
  EXPECT_EQ(pads.code, Code::MD_LAYER);
  EXPECT_TRUE(holds(pads.message, {q, k, joined, "pad_k is 32 and 64"})) << pads.message;
  // Unquantized weights of two dtypes.
  const fs::path mixed = changed_flux(s, "mixed", [&](SourceTensor& t) {
    if (t.name != k + ".weight") return;
    t.dtype = "F16";
    t.data.assign(t.data.size(), '\0');
  });
  const Problem dtypes = refused(s, built(s, mixed, "dtypes", [](BuildOptions& o) { o.include_prefixes = {"x_embedder"}; }), "bfl");
  EXPECT_EQ(dtypes.code, Code::MD_TENSOR);
  EXPECT_TRUE(holds(dtypes.message, {q, k, joined, "BF16 and F16"})) << dtypes.message;
}

TEST(Convert, RefusesASignatureThatIsNotTheModels) {
  const Scratch s;
  const Slab slab = built(s, flux("guided"), "a");
  const Problem p = refused(s, rewritten(s, slab, "b", [](Manifest& m) { m.model_signature = "0123456789abcdef"; }), "bfl");
  EXPECT_EQ(p.code, Code::MF_SIGNATURE);
  EXPECT_TRUE(holds(p.message, {"0123456789abcdef", slab.manifest().model_signature})) << p.message;
  EXPECT_EQ(p.file, (s / "b.manifest.json").string());
}

TEST(Convert, ChangedBytesAndInterruptionsLeaveNothing) {
  const Scratch s;
  const SlabPaths paths = built(s, flux("guided"), "a").paths();
  const std::atomic<bool> cancelled{true};
  AssembleOptions options;
  options.cancelled = &cancelled;
  EXPECT_EQ(refused(s, Slab::open(paths.slab), "bfl", "made", options).code, Code::IO_INTERRUPTED);
  const std::string tensor = "transformer_blocks.1.attn.to_v.qweight";
  const std::string codes = tensor_bytes(paths.slab, tensor);
  test::change_byte(paths.slab, tensor, 70, static_cast<char>(codes[70] == 1 ? 2 : 1));
  const Problem p = refused(s, Slab::open(paths.slab), "bfl");
  EXPECT_EQ(p.code, Code::DT_CHECKSUM);
  EXPECT_EQ(p.tensor, tensor);
}

// ---- add_companion ----

TEST(AddCompanion, IsTheOneThatTheBuildWrites) {  // SQ-FMT-104
  const Scratch s;
  // No known model: selected by the generic rule, and recorded without an architecture.
  spit(s.folder("generic") / "model.safetensors", container({{"q.weight", "BF16", {8, 12}, bf16_noise(96, 1)}, {"norm.weight", "BF16", {12}, bf16_noise(12, 2)}}));
  for (const fs::path& model : {flux("guided"), s / "generic"}) {
    const fs::path out = s.folder("out-" + model.filename().string());
    const SlabPaths paths = built(s, model, "slab", [&](BuildOptions& o) { o.out = out; }).paths();
    const std::string wanted = slurp(paths.companion);
    fs::remove(paths.companion);
    const AssembleResult result = add_companion(Slab::open(paths.slab), model, {});
    EXPECT_TRUE(slurp(paths.companion) == wanted) << model;
    EXPECT_EQ(result.companion_bytes, wanted.size());
    EXPECT_EQ(result.slab_bytes, fs::file_size(paths.slab));
    EXPECT_EQ(result.id_sha256, Slab::open(paths.slab).companion()->integrity.id_sha256);
    EXPECT_EQ(files_of(out).size(), 3u);
  }
}

TEST(AddCompanion, RefusesAndWritesNothing) {
  const Scratch s;
  const SlabPaths paths = built(s, flux("guided"), "a").paths();
  const std::string q = "transformer_blocks.0.attn.to_q";
  const fs::path other = changed_flux(s, "other", [&](SourceTensor& t) {
    if (t.name == q + ".weight") t.data[1] = static_cast<char>(t.data[1] ^ 0x80);  // the sign of element [0, 0]
  });
  const auto refuse = [&](const fs::path& checkpoint, const SourceCheckOptions& options = {}) {
    const Slab slab = Slab::open(paths.slab);
    const auto before = files_of(s.path());
    const Problem p = test::problem_of([&] { add_companion(slab, checkpoint, options); });
    EXPECT_EQ(files_of(s.path()), before) << p.message;
    return p;
  };
  const Problem there = refuse(flux("guided"));
  EXPECT_EQ(there.code, Code::CFG_VALUE);
  EXPECT_EQ(there.file, paths.companion.string());
  fs::remove(paths.companion);
  const Problem signature = refuse(flux("plain"));
  EXPECT_EQ(signature.code, Code::MF_SIGNATURE);
  const std::string plain = built(s, flux("plain"), "plain").manifest().model_signature;
  EXPECT_TRUE(holds(signature.message, {Slab::open(paths.slab).manifest().model_signature, plain})) << signature.message;
  const Problem numbers = refuse(other);
  EXPECT_EQ(numbers.code, Code::MD_BASE);
  EXPECT_EQ(numbers.layer, q);
  EXPECT_EQ(numbers.tensor, q + ".qweight");
  EXPECT_TRUE(holds(numbers.message, {"first at row 0"})) << numbers.message;
  EXPECT_EQ(refuse(s / "none").code, Code::IO_MISSING);
  const std::atomic<bool> cancelled{true};
  SourceCheckOptions options;
  options.cancelled = &cancelled;
  EXPECT_EQ(refuse(flux("guided"), options).code, Code::IO_INTERRUPTED);
}

}  // namespace
}  // namespace squareq::builder_test
