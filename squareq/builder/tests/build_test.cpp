// The build itself: packagings and dtypes give the same bytes, chunks leave no seam, bad weights are named and leave no file.
#include "support.hpp"

#include <cmath>
#include <limits>

#include "squareq/slab/floats.hpp"

namespace squareq::builder_test {
namespace {

using nlohmann::json;

std::vector<SourceTensor> model() {
  return {{"blocks.0.q.weight", "BF16", {70, 100}, bf16_noise(7000, 1)},
          {"blocks.0.q.bias", "BF16", {70}, bf16_noise(70, 2)},
          {"blocks.0.norm.weight", "BF16", {100}, bf16_noise(100, 3)},
          {"blocks.1.q.weight", "BF16", {33, 64}, bf16_noise(2112, 4)},
          {"conv.weight", "BF16", {2, 2, 3, 3}, bf16_noise(36, 5)}};
}

/// bf16 bytes as F32 or F64: the same numbers.
SourceTensor widened(const SourceTensor& t, const std::string& dtype) {
  std::vector<float> f(t.data.size() / 2);
  for (std::size_t i = 0; i < f.size(); ++i) f[i] = load_float(t.data.data(), FileDtype::BF16, i);
  if (dtype == "F32") return {t.name, dtype, t.shape, bytes_of(f)};
  return {t.name, dtype, t.shape, bytes_of(std::vector<double>(f.begin(), f.end()))};
}

TEST(Build, TheSameNumbersInAnyDtypeAndPackagingGiveTheSamePair) {
  Scratch s;
  spit(s / "bf16.safetensors", container(model()));
  for (const char* dtype : {"F32", "F64"}) {
    std::vector<SourceTensor> wide;
    for (const SourceTensor& t : model()) wide.push_back(widened(t, dtype));
    spit(s / (std::string(dtype) + ".safetensors"), container(wide));
  }
  std::vector<SourceTensor> prefixed = model();
  for (SourceTensor& t : prefixed) t.name = "diffusion_model." + t.name;
  spit(s / "prefixed.safetensors", container(prefixed));
  s.folder("shards");
  json map;
  for (std::size_t i = 0; i < model().size(); ++i) {
    const std::string file = "model-" + std::to_string(i % 2) + ".safetensors";
    map[model()[i].name] = file;
  }
  for (int part = 0; part < 2; ++part) {
    std::vector<SourceTensor> some;
    for (std::size_t i = 0; i < model().size(); ++i)
      if (static_cast<int>(i % 2) == part) some.push_back(model()[i]);
    spit(s / ("shards/model-" + std::to_string(part) + ".safetensors"), container(some));
  }
  spit(s / "shards/model.safetensors.index.json", json{{"weight_map", map}}.dump());

  std::string slab, manifest;
  for (const char* source : {"bf16.safetensors", "F32.safetensors", "F64.safetensors", "prefixed.safetensors", "shards"}) {
    const BuildResult r = build(options_for(s / source, s.folder(std::string("out-") + source)));
    if (slab.empty()) {
      slab = slurp(r.paths.slab);
      manifest = slurp(r.paths.manifest);
    }
    EXPECT_EQ(slurp(r.paths.slab), slab) << source;
    EXPECT_EQ(slurp(r.paths.manifest), manifest) << source;
    EXPECT_TRUE(validate(r.paths).ok()) << source;
  }
}

TEST(Build, ThreadsAndBackendsDoNotChangeABit) {
  Scratch s;
  std::vector<SourceTensor> big = {{"a.weight", "BF16", {3001, 2048}, bf16_noise(3001 * 2048, 9)}};  // 12 MB: two chunks
  for (const SourceTensor& t : model()) big.push_back(t);
  spit(s / "m.safetensors", container(big));
  std::string first, companion;
  for (const char* backend : {"reference", "cpu"})
    for (const unsigned threads : {1u, 5u}) {
      BuildOptions o = options_for(s / "m.safetensors", s.folder(backend + std::to_string(threads)));
      o.backend = backend;
      o.threads = threads;
      std::uint64_t last = 0;
      o.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view) {
        EXPECT_GE(done, last);
        EXPECT_LE(done, total);
        last = done;
      };
      const BuildResult r = build(o);
      EXPECT_EQ(last, r.source_bytes);
      if (first.empty()) {
        first = slurp(r.paths.slab);
        companion = slurp(r.paths.companion);
      }
      EXPECT_EQ(slurp(r.paths.slab), first);
      EXPECT_EQ(slurp(r.paths.companion), companion);
    }
}

TEST(Build, HalfPrecisionIsWidenedExactly) {
  // All 65,536 patterns against the formula of the format.
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const int exponent = static_cast<int>((bits >> 10) & 31), fraction = static_cast<int>(bits & 1023);
    const double sign = bits & 0x8000 ? -1 : 1;
    const float value = float_of_half(static_cast<std::uint16_t>(bits));
    if (exponent == 31)
      EXPECT_TRUE(fraction ? std::isnan(value) : std::isinf(value) && (value > 0) == (sign > 0));
    else
      EXPECT_EQ(value, static_cast<float>(sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24))));
  }
}

TEST(Build, UnquantizedTensorsKeepDtypeAndBytes) {
  Scratch s;
  spit(s / "m.safetensors", container(model()));
  BuildOptions o = options_for(s / "m.safetensors", s.folder("out"));
  o.include_prefixes = {"blocks.0."};
  const BuildResult r = build(o);
  const Slab slab = Slab::open(r.paths.slab);
  EXPECT_EQ(slab.layer_count(), 1u);
  const SafetensorsFile& rest = slab.companion()->file;
  ASSERT_EQ(rest.header().tensors.size(), 3u);
  for (const std::size_t i : {2u, 3u, 4u}) {
    const SourceTensor t = model()[i];
    const std::vector<std::byte> bytes = rest.read_all(t.name);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()), t.data) << t.name;
  }
}

TEST(Build, FlooredRowsAreCounted) {
  Scratch s;
  std::vector<float> w(4 * 8, 1.0f);
  for (int c = 0; c < 8; ++c) w[8 + c] = 1e-9f, w[16 + c] = 0.0f;  // rows 1 and 2
  spit(s / "m.safetensors", container({{"a.weight", "F32", {4, 8}, bytes_of(w)}}));
  const BuildResult r = build(options_for(s / "m.safetensors", s.folder("out")));
  EXPECT_EQ(r.floored_rows, 2u);
  EXPECT_TRUE(r.report.has(Code::DT_SCALE_FLOOR));
}

TEST(BadBuild, NonFiniteWeightsNameTheirPlaceAndLeaveNothing) {
  const float nan = std::nanf(""), inf = INFINITY;
  for (const char* backend : {"reference", "cpu"})
    for (const float bad : {nan, inf, -inf, std::numeric_limits<float>::max()}) {
      Scratch s;
      std::vector<float> w(3000 * 1024, 0.5f);  // 12 MB: the bad row lies in the second chunk
      w[2500 * 1024 + 7] = bad;
      spit(s / "m.safetensors", container({{"x.y.weight", "F32", {3000, 1024}, bytes_of(w)}}));
      BuildOptions o = options_for(s / "m.safetensors", s.folder("out"));
      o.backend = backend;
      const Problem p = problem_of(o);
      EXPECT_EQ(p.code, Code::DT_WEIGHT_NONFINITE);
      EXPECT_EQ(p.layer, "x.y");
      EXPECT_NE(p.message.find("row 2500, column 7"), std::string::npos) << p.message;
      EXPECT_EQ(files_in(o.out), 0u);
    }
}

TEST(BadBuild, OverflowingDoubleAndBadBias) {
  Scratch s;
  spit(s / "w.safetensors", container({{"a.weight", "F64", {1, 2}, bytes_of(std::vector<double>{1.0, 1e300})}}));
  const Problem w = problem_of(options_for(s / "w.safetensors", s.folder("w")));
  EXPECT_EQ(w.code, Code::DT_WEIGHT_NONFINITE);
  EXPECT_NE(w.message.find("row 0, column 1"), std::string::npos) << w.message;
  spit(s / "b.safetensors", container({{"a.weight", "F32", {2, 1}, bytes_of(std::vector<float>{1, 2})},
                                       {"a.bias", "F32", {2}, bytes_of(std::vector<float>{0, std::nanf("")})}}));
  const Problem b = problem_of(options_for(s / "b.safetensors", s.folder("b")));
  EXPECT_EQ(b.code, Code::DT_BIAS_NONFINITE);
  EXPECT_EQ(files_in(s / "w") + files_in(s / "b"), 0u);
}

TEST(BadBuild, OptionsAndTargets) {
  Scratch s;
  spit(s / "m.safetensors", container(model()));
  const BuildOptions good = options_for(s / "m.safetensors", s.folder("out"));
  const auto with = [&](auto change) {
    BuildOptions o = good;
    change(o);
    return problem_of(o).code;
  };
  for (const char* name : {"", ".", "..", "a/b", ".hidden", "a\nb", "a:b"})
    EXPECT_EQ(with([&](BuildOptions& o) { o.name = name; }), Code::CFG_VALUE) << name;
  EXPECT_EQ(with([](BuildOptions& o) { o.pack_k = 0; }), Code::CFG_VALUE);
  EXPECT_EQ(with([](BuildOptions& o) { o.architecture_id = ""; }), Code::CFG_VALUE);
  EXPECT_EQ(with([&](BuildOptions& o) { o.out = s / "nowhere"; }), Code::IO_MISSING);
  EXPECT_EQ(with([](BuildOptions& o) { o.backend = "nonsense"; }), Code::CFG_BACKEND);
  EXPECT_EQ(with([&](BuildOptions& o) { o.model = s / "nothing"; }), Code::IO_MISSING);
  EXPECT_EQ(files_in(good.out), 0u);
}

TEST(BadBuild, ANewBuildReplacesTheOldTripleWhole) {
  Scratch s;
  spit(s / "m.safetensors", container(model()));
  BuildOptions o = options_for(s / "m.safetensors", s.folder("out"));
  build(o);
  o.companion = false;
  o.pack_k = 1;
  const BuildResult r = build(o);
  EXPECT_EQ(files_in(o.out), 2u) << "the old companion went with its pair";
  EXPECT_TRUE(validate(SlabPaths::resolve(r.paths.slab)).ok());
}

}  // namespace
}  // namespace squareq::builder_test
