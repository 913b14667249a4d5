// `forward` against diffusers (fixtures/flux, fixtures/emoji): outputs and gradients of float checkpoints and of slabs, all naming
// schemes, both backends; and what it says about wrong inputs (SQ-MOD-018, 019, 021, 022).
#include "squareq/training/tests/forward_support.hpp"

namespace squareq::training {
namespace {

using nlohmann::json;
using testing::build_slab;
using testing::code_of;
using testing::fixture;
using testing::numbers;
using testing::relative_l2;
using testing::Scratch;

ForwardRequest request_of(const std::string& name, const std::filesystem::path& model, const Scratch& scratch) {
  ForwardRequest r;
  r.model = model;
  r.inputs = fixture("flux/" + name + "/inputs.safetensors");
  r.lora = fixture("flux/" + name + "/lora.safetensors");
  r.output = scratch / (name + "-out.safetensors");
  r.backend = "reference";
  r.grad = true;
  return r;
}

/// Every expected tensor, and no other, within `tolerance` of it.
void expect_file(const std::filesystem::path& got_file, const std::filesystem::path& want_file, const json& tolerances,
                 double tolerance = 0) {
  const auto got = numbers(got_file), want = numbers(want_file);
  EXPECT_EQ(got.size(), want.size());
  for (const auto& [name, values] : want) {
    ASSERT_TRUE(got.contains(name)) << name;
    const double limit = tolerance > 0 ? tolerance : tolerances.at(name).at("tolerance").get<double>();
    EXPECT_LE(relative_l2(got.at(name), values), limit) << name;
  }
}

json tolerances_of(const std::string& name, const std::string& kind) {
  std::ifstream file(fixture("flux/" + name + "/case.json"));
  return json::parse(file).at(kind);
}

class FluxCase : public ::testing::TestWithParam<const char*> {};

TEST_P(FluxCase, FloatCheckpointEqualsDiffusers) {  // SQ-MOD-019; its case bfl holds adapters on fused modules: SQ-MOD-016
  const std::string name = GetParam();
  const Scratch scratch;
  const ForwardRequest request = request_of(name, fixture("flux/" + name), scratch);
  EXPECT_EQ(run_forward(request).backend, "libtorch");
  expect_file(request.output, fixture("flux/" + name + "/expected.safetensors"), tolerances_of(name, "float"));
}

TEST_P(FluxCase, DoublePrecisionIsDiffusersInDoublePrecision) {
  const std::string name = GetParam();
  const Scratch scratch;
  ForwardRequest request = request_of(name, fixture("flux/" + name), scratch);
  request.dtype = "f64";
  run_forward(request);
  // RoPE and the time embedding are FP32 in both; sines of two libraries may differ in the last bit.
  expect_file(request.output, fixture("flux/" + name + "/expected.safetensors"), {}, 2e-6);
}

TEST_P(FluxCase, SlabEqualsDiffusersOnRoundTripWeights) {  // SQ-MOD-019, SQ-MOD-022
  const std::string name = GetParam();
  const Scratch scratch;
  const auto slab = build_slab(fixture("flux/" + name), scratch, "slab");
  for (const char* backend : {"reference", "cpu"}) {
    ForwardRequest request = request_of(name, slab, scratch);
    request.backend = backend;
    EXPECT_EQ(run_forward(request).backend, backend);
    expect_file(request.output, fixture("flux/" + name + "/expected_int8.safetensors"), tolerances_of(name, "int8"));
  }
}

TEST_P(FluxCase, BareSlabWithBaseEqualsSlabWithCompanionBitForBit) {
  const std::string name = GetParam();
  const Scratch scratch;
  ForwardRequest request = request_of(name, build_slab(fixture("flux/" + name), scratch, "slab"), scratch);
  run_forward(request);
  const auto want = numbers(request.output);
  request.model = build_slab(fixture("flux/" + name), scratch, "bare", false);
  request.base = fixture("flux/" + name);
  run_forward(request);
  EXPECT_EQ(numbers(request.output), want);
}

TEST_P(FluxCase, HalfPrecisionActivationsStayClose) {
  const std::string name = GetParam();
  const Scratch scratch;
  const auto slab = build_slab(fixture("flux/" + name), scratch, "slab");
  const auto want = numbers(fixture("flux/" + name + "/expected_int8.safetensors")).at("sample");
  for (const char* backend : {"reference", "cpu"}) {
    ForwardRequest request = request_of(name, slab, scratch);
    request.backend = backend;
    request.dtype = "bf16";
    run_forward(request);
    const double error = relative_l2(numbers(request.output).at("sample"), want);
    EXPECT_LE(error, 0.05);  // a handful of blocks, each with about ten roundings of 2^-9
    EXPECT_GE(error, 1e-4);  // FP32 would be far below: the activations really are BF16
  }
}

INSTANTIATE_TEST_SUITE_P(Flux, FluxCase, ::testing::Values("guided", "bfl", "plain"));

TEST(Forward, FusedNamesGiveTheSameOutputAsDiffusersNames) {
  const Scratch scratch;
  ForwardRequest request = request_of("guided", fixture("flux/guided"), scratch);
  request.lora.reset();
  run_forward(request);
  const auto want = numbers(request.output);
  request.model = fixture("flux/bfl/model.safetensors");
  request.config = fixture("flux/guided/config.json");
  run_forward(request);
  EXPECT_EQ(numbers(request.output), want);
}

TEST(Forward, PartlyQuantizedModelRuns) {
  const Scratch scratch;
  ForwardRequest request =
      request_of("guided", build_slab(fixture("flux/guided"), scratch, "part", true, {"single_transformer_blocks."}), scratch);
  run_forward(request);
  const auto got = numbers(request.output), exact = numbers(fixture("flux/guided/expected.safetensors")),
             int8 = numbers(fixture("flux/guided/expected_int8.safetensors"));
  const double error = relative_l2(got.at("sample"), exact.at("sample"));
  EXPECT_GT(error, 1e-4);
  EXPECT_LT(error, relative_l2(int8.at("sample"), exact.at("sample")));  // fewer layers are rounded than in a full slab
}

TEST(Forward, EmojiModelGivesTheCheckedSample) {
  const Scratch scratch;
  ForwardRequest request;
  request.model = fixture("emoji/transformer");
  request.inputs = fixture("emoji/cache/forward_check.safetensors");
  request.output = scratch / "out.safetensors";
  const ForwardReport report = run_forward(request);
  EXPECT_EQ(report.ignored, std::vector<std::string>{"sample"});
  EXPECT_LE(relative_l2(numbers(request.output).at("sample"), numbers(request.inputs).at("sample")), 2e-5);
}

TEST(Forward, StreamedEqualsResidentBitForBit) {
  const Scratch scratch;
  ForwardRequest request = request_of("guided", build_slab(fixture("flux/guided"), scratch, "slab"), scratch);
  request.backend = "cpu";
  const ForwardReport resident = run_forward(request);
  const auto want = numbers(request.output);
  request.resident_blocks = 2;
  const ForwardReport streamed = run_forward(request);
  EXPECT_EQ(numbers(request.output), want);
  EXPECT_LT(streamed.peak_weight_bytes, resident.peak_weight_bytes);
  request.budget = streamed.peak_weight_bytes;
  request.resident_blocks = 0;
  EXPECT_LE(run_forward(request).peak_weight_bytes, request.budget);
  EXPECT_EQ(numbers(request.output), want);
  request.budget = 1000;
  EXPECT_EQ(code_of([&] { run_forward(request); }), Code::CFG_BUDGET);
}

/// A copy of the case's inputs with one change; everything F32.
struct Edit {
  std::string drop;
  std::map<std::string, std::vector<std::uint64_t>> reshape;  ///< zeros of this shape instead
  std::string nan;
};
std::filesystem::path edited(const std::string& name, const Scratch& scratch, const Edit& edit) {
  const SafetensorsFile file = SafetensorsFile::open(fixture("flux/" + name + "/inputs.safetensors"));
  std::vector<TensorSpec> specs;
  std::map<std::string, std::vector<std::byte>> data;
  for (const TensorRecord& record : file.header().tensors)
    if (record.name != edit.drop)
      data[record.name] = file.read_all(record.name), specs.push_back({record.name, record.dtype, record.shape});
  for (const auto& [tensor, shape] : edit.reshape) {
    std::uint64_t elements = 1;
    for (const std::uint64_t n : shape) elements *= n;
    data[tensor].assign(elements * 4, std::byte{0});
    std::erase_if(specs, [&](const TensorSpec& s) { return s.name == tensor; });
    specs.push_back({tensor, FileDtype::F32, shape});
  }
  if (!edit.nan.empty()) std::memset(data.at(edit.nan).data() + 4, 0xFF, 4);
  SafetensorsWriter writer(scratch / "edited.safetensors", specs);
  for (const auto& [tensor, bytes] : data) writer.write(tensor, 0, bytes.data(), bytes.size());
  writer.commit();
  return scratch / "edited.safetensors";
}

struct BadInput {
  const char* what;
  const char* model;
  Edit edit;
  Code code;
  std::vector<const char*> named;
};

class ForwardBadInput : public ::testing::TestWithParam<BadInput> {};

TEST_P(ForwardBadInput, IsNamedAndLeavesNoFile) {  // SQ-MOD-021
  const BadInput& bad = GetParam();
  const Scratch scratch;
  ForwardRequest request = request_of(bad.model, fixture(std::string("flux/") + bad.model), scratch);
  request.inputs = edited(bad.model, scratch, bad.edit);
  std::string message;
  EXPECT_EQ(code_of([&] { run_forward(request); }, &message), bad.code);
  for (const char* text : bad.named) EXPECT_NE(message.find(text), std::string::npos) << message;
  EXPECT_FALSE(std::filesystem::exists(request.output));
}

INSTANTIATE_TEST_SUITE_P(
    Flux, ForwardBadInput,
    ::testing::Values(
        BadInput{"missing argument", "guided", {"pooled_projections", {}, ""}, Code::DS_TENSOR, {"pooled_projections"}},
        BadInput{"missing guidance", "guided", {"guidance", {}, ""}, Code::DS_TENSOR, {"guidance"}},
        BadInput{"guidance for a model without", "plain", {"", {{"guidance", {1}}}, ""}, Code::DS_TENSOR, {"guidance"}},
        BadInput{"missing cotangent", "guided", {"cotangent", {}, ""}, Code::DS_TENSOR, {"cotangent"}},
        BadInput{"channels", "guided", {"", {{"hidden_states", {2, 15, 15}}}, ""}, Code::DS_SHAPE, {"hidden_states", "[2, 15, 15]", "16]"}},
        BadInput{"batch",
                 "guided",
                 {"", {{"encoder_hidden_states", {1, 4, 40}}}, ""},
                 Code::DS_SHAPE,
                 {"encoder_hidden_states", "[1, 4, 40]", "[2, any, 40]"}},
        BadInput{"ids", "guided", {"", {{"img_ids", {14, 3}}}, ""}, Code::DS_SHAPE, {"img_ids", "[14, 3]", "[15, 3]"}},
        BadInput{"cotangent's shape",
                 "guided",
                 {"", {{"cotangent", {2, 15, 8}}}, ""},
                 Code::DS_SHAPE,
                 {"cotangent", "[2, 15, 8]", "[2, 15, 16]"}},
        BadInput{"not a number", "guided", {"", {}, "timestep"}, Code::NUM_NONFINITE, {"timestep", "1 values"}}));

TEST(Forward, RefusesWhatDoesNotBelongTogether) {
  const Scratch scratch;
  ForwardRequest request = request_of("guided", fixture("flux/guided"), scratch);
  request.lora = fixture("flux/plain/lora.safetensors");
  EXPECT_EQ(code_of([&] { run_forward(request); }), Code::LR_SHAPE);

  request = request_of("guided", build_slab(fixture("flux/guided"), scratch, "bare", false), scratch);
  EXPECT_EQ(code_of([&] { run_forward(request); }), Code::MD_BASE);
  request.base = fixture("flux/plain");
  EXPECT_EQ(code_of([&] { run_forward(request); }), Code::MD_BASE);
  request.base = fixture("flux/guided");
  request.dtype = "f64";
  EXPECT_EQ(code_of([&] { run_forward(request); }), Code::CFG_VALUE);
  request.dtype = "f31";
  EXPECT_EQ(code_of([&] { run_forward(request); }), Code::CFG_VALUE);

  std::filesystem::copy_file(fixture("flux/bfl/model.safetensors"), scratch / "alone.safetensors");
  request = request_of("bfl", scratch / "alone.safetensors", scratch);
  EXPECT_EQ(code_of([&] { run_forward(request); }), Code::MD_ARCH);  // head size 32: nothing tells the RoPE axes
}

TEST(Forward, CorruptSlabBytesAreFound) {
  const Scratch scratch;
  ForwardRequest request = request_of("guided", build_slab(fixture("flux/guided"), scratch, "slab"), scratch);
  {
    const SafetensorsFile slab = SafetensorsFile::open(scratch / "slab.safetensors");
    const TensorRecord* record = slab.header().find("transformer_blocks.1.ff.net.2.qweight");
    ASSERT_NE(record, nullptr);
    std::fstream file(scratch / "slab.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(slab.position(*record)));
    const char flipped = static_cast<char>(file.get() ^ 1);
    file.seekp(static_cast<std::streamoff>(slab.position(*record)));
    file.put(flipped);
  }
  std::string message;
  EXPECT_EQ(code_of([&] { run_forward(request); }, &message), Code::DT_CHECKSUM);
  EXPECT_NE(message.find("transformer_blocks.1.ff.net.2.qweight"), std::string::npos) << message;
}

}  // namespace
}  // namespace squareq::training
