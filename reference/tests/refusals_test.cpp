// Wrong calls: the code, the layer, the tensor, both values; and nothing written (SQ-LIN-040 to 046, SQ-ERR-007).
#include "reference/tests/layer_harness.hpp"

#include <nlohmann/json.hpp>

namespace squareq::tests {
namespace {

/// Damages a good call and expects the refusal; afterwards every output still holds its sentinel and no scratch is left.
class Refusals : public testing::Test {
 protected:
  CountingAllocator allocator;
  Context context = make_context(allocator.table());
  Layer layer{4, 10, 6, 3, 5};

  void SetUp() override { layer.activation = SQ_ACT_GELU_TANH; }

  void forward(Code code, std::initializer_list<std::string> words, const std::function<void(Bound&)>& damage) {
    Bound b(layer);
    damage(b);
    const Problem p = expect_error(code, [&] { b.run_forward(context); });
    EXPECT_TRUE(mentions(p.message, words)) << p.message;
    for (const Tensor* t : outputs(b.y, b.h, b.preactivation)) expect_untouched(*t);
    EXPECT_EQ(allocator.live(), 0);
  }
  void backward(Code code, std::initializer_list<std::string> words, const std::function<void(Bound&)>& damage) {
    Bound b(layer);
    b.run_forward(context);
    damage(b);
    const Problem p = expect_error(code, [&] { b.run_backward(context); });
    EXPECT_TRUE(mentions(p.message, words)) << p.message;
    for (const Tensor* t : outputs(b.dx, b.da_t, b.db_t)) expect_untouched(*t);
  }
  // Tensor's own & gives its view.
  static std::array<const Tensor*, 3> outputs(const Tensor& a, const Tensor& b, const Tensor& c) { return {std::addressof(a), std::addressof(b), std::addressof(c)}; }
  static void expect_untouched(const Tensor& t) {
    for (const std::byte byte : t.bytes) ASSERT_EQ(byte, Tensor::sentinel);
  }
};

TEST_F(Refusals, Forward) {
  const std::string name = "blocks.3.attn.to_q";
  forward(Code::CALL_DTYPE, {name, "x", "i32", "f32", "bf16"}, [](Bound& b) { b.x.dtype = SQ_I32; });
  forward(Code::CALL_DTYPE, {name, "y", "bf16", "f32"}, [](Bound& b) { b.y.view.dtype = SQ_BF16; });
  forward(Code::CALL_DTYPE, {name, "scale", "f16", "f32"}, [](Bound& b) { b.parts[1].tensor.dtype = SQ_F16; });
  forward(Code::CALL_DTYPE, {name, "qweight", "u8", "i8"}, [](Bound& b) { b.parts[0].tensor.dtype = SQ_U8; });
  forward(Code::CALL_DTYPE, {name, "a_t", "bf16"}, [](Bound& b) { b.a_t.dtype = SQ_BF16; });
  forward(Code::CALL_SHAPE, {name, "x", "[4, 9]", "10"}, [](Bound& b) { b.x.shape[1] = 9; });
  forward(Code::CALL_SHAPE, {name, "x", "rank", "1", "2"}, [](Bound& b) { b.x.rank = 1; });
  forward(Code::CALL_SHAPE, {name, "x", "rank", "99", "2"}, [](Bound& b) { b.x.rank = 99; });
  forward(Code::CALL_SHAPE, {name, "x", "-4"}, [](Bound& b) { b.x.shape[0] = -4; });
  forward(Code::CALL_SHAPE, {name, "y", "[4, 7]", "[4, 6]"}, [](Bound& b) { b.y.view.shape[1] = 7; });
  forward(Code::CALL_SHAPE, {name, "scale", "[1]", "[6]"}, [](Bound& b) { b.parts[1].tensor.shape[0] = 1; });
  forward(Code::CALL_SHAPE, {name, "bias", "[7]", "[6]"}, [](Bound& b) { b.parts[3].tensor.shape[0] = 7; });
  forward(Code::CALL_SHAPE, {name, "qweight", "9", "10"}, [](Bound& b) { b.parts[0].tensor.shape[1] = 9; });
  forward(Code::CALL_SHAPE, {name, "qweight", "[5, 16]", "[6, 16]"}, [](Bound& b) { b.parts[0].tensor.shape[0] = 5; });
  forward(Code::CALL_SHAPE, {name, "x", "stride", "2"}, [](Bound& b) { b.x.strides[1] = 2; });
  forward(Code::CALL_SHAPE, {name, "y", "stride", "5", "6"}, [](Bound& b) { b.y.view.strides[0] = 5; });
  forward(Code::CALL_SHAPE, {name, "b_t", "[6, 2]", "[6, 3]"}, [](Bound& b) { b.b_t.shape[1] = 2; });
  forward(Code::CALL_SHAPE, {name, "rank"}, [](Bound& b) { b.a_t.shape[0] = 0; });
  forward(Code::CALL_DEVICE, {name, "x", "cuda:1", "cpu"}, [](Bound& b) { b.x.device = {SQ_CUDA, 1}; });
  forward(Code::CALL_DEVICE, {name, "scale", "cuda:0"}, [](Bound& b) { b.parts[1].tensor.device = {SQ_CUDA, 0}; });
  forward(Code::CALL_ALIGN, {name, "scale", "4"}, [](Bound& b) { b.parts[1].tensor.data = reinterpret_cast<char*>(b.parts[1].tensor.data) + 1; });
  forward(Code::CALL_NULL, {name, "x", "[4, 10]"}, [](Bound& b) { b.x.data = nullptr; });
  forward(Code::CALL_NULL, {name, "y"}, [](Bound& b) { b.forward.y = nullptr; });
  forward(Code::CALL_NULL, {"sq_weight_ref"}, [](Bound& b) { b.forward.weight = nullptr; });
  forward(Code::CALL_NULL, {name, "a_t"}, [](Bound& b) { b.lora.a_t = nullptr; });
  forward(Code::CALL_VALUE, {"exactly one"}, [](Bound& b) { b.ref.weight = nullptr; });
  forward(Code::CALL_VALUE, {"exactly one"}, [](Bound& b) { b.ref.lease = 5; });
  forward(Code::CALL_STATE, {"session 7"}, [](Bound& b) { b.ref.weight = nullptr, b.ref.session = 7, b.ref.lease = 5; });
  forward(Code::CALL_VALUE, {name, "exactly one of x and xq"}, [](Bound& b) { b.forward.x = nullptr; });
  forward(Code::CALL_VALUE, {name, "activation", "4"}, [](Bound& b) { b.forward.activation = 4; });
  forward(Code::CALL_VALUE, {name, "compute", "-1"}, [](Bound& b) { b.forward.compute = -1; });
  forward(Code::CALL_VALUE, {name, "h", "lora"}, [](Bound& b) { b.forward.lora = nullptr; });
  forward(Code::CALL_VALUE, {name, "scaling", "inf"}, [](Bound& b) { b.lora.scaling = HUGE_VALF; });
  forward(Code::CALL_VALUE, {"size"}, [](Bound& b) { b.forward.size = 0; });
  forward(Code::CALL_PART, {name, "qweight", "bp8_v2"}, [](Bound& b) { b.parts.erase(b.parts.begin()), b.weight.part_count = 3; });
  forward(Code::CALL_PART, {name, "scale"}, [](Bound& b) { b.weight.part_count = 1; });
  forward(Code::CALL_VALUE, {name, "wscales"}, [](Bound& b) { b.parts[2].name = "wscales"; });
  forward(Code::CALL_VALUE, {name, "scale", "twice"}, [](Bound& b) { b.parts[2] = b.parts[1]; });
  forward(Code::CALL_UNSUPPORTED, {name, "nf4", "bp8_v2"}, [](Bound& b) { b.weight.format = "nf4"; });
  forward(Code::CALL_SHAPE, {name, "out_features", "0"}, [](Bound& b) { b.weight.out_features = 0; });
  layer.zero_point[4] = 0.5f;
  forward(Code::DT_ZP_NONZERO, {name, "zero_point", "row 4", "0.5"}, [](Bound&) {});
  layer.zero_point[4] = -0.0f;
  Bound negative_zero(layer);
  negative_zero.run_forward(context);
}

TEST_F(Refusals, Backward) {
  backward(Code::CALL_NULL, {"dy"}, [](Bound& b) { b.backward.dy = nullptr; });
  backward(Code::CALL_NULL, {"preactivation"}, [](Bound& b) { b.backward.preactivation = nullptr; });
  backward(Code::CALL_NULL, {"da_t", "x"}, [](Bound& b) { b.backward.x = nullptr; });
  backward(Code::CALL_SHAPE, {"dy", "[4, 5]", "6"}, [](Bound& b) { b.dy.shape[1] = 5; });
  backward(Code::CALL_SHAPE, {"da_t", "[2, 10]", "[3, 10]"}, [](Bound& b) { b.da_t.view.shape[0] = 2; });
  backward(Code::CALL_SHAPE, {"dx", "[3, 10]", "[4, 10]"}, [](Bound& b) { b.dx.view.shape[0] = 3; });
  backward(Code::CALL_DTYPE, {"dx", "bf16", "f32"}, [](Bound& b) { b.dx.view.dtype = SQ_BF16; });
  backward(Code::CALL_DTYPE, {"db_t", "f16", "f32"}, [](Bound& b) { b.db_t.view.dtype = SQ_F16; });
  backward(Code::CALL_VALUE, {"dx_lora"}, [](Bound& b) { b.backward.dx_lora = &b.dx_lora; });
  backward(Code::CALL_VALUE, {"lora"}, [](Bound& b) { b.backward.lora = nullptr; });
  backward(Code::CALL_VALUE, {"accumulate", "2"}, [](Bound& b) { b.backward.accumulate = 2; });
}

TEST_F(Refusals, FailingScratchLeavesOutputsAlone) {
  Bound probe(layer);
  const std::int64_t before = allocator.calls();
  probe.run_forward(context);
  const std::int64_t forward_calls = allocator.calls() - before;
  probe.run_backward(context);
  const std::int64_t backward_calls = allocator.calls() - before - forward_calls;
  ASSERT_GT(forward_calls, 1);
  ASSERT_GT(backward_calls, 3);
  for (std::int64_t i = 0; i < forward_calls; ++i)
    forward(Code::GPU_OOM, {"bytes"}, [&](Bound&) { allocator.fail_at(allocator.calls() + i); }), allocator.fail_at(-1);
  for (std::int64_t i = 0; i < backward_calls; ++i)
    backward(Code::GPU_OOM, {"bytes"}, [&](Bound&) { allocator.fail_at(allocator.calls() + i); }), allocator.fail_at(-1);
}

TEST_F(Refusals, Context) {
  const Implementation library = Implementation::load(find_backend("reference"));
  const auto create = [&](const std::function<void(sq_host&)>& damage) {
    sq_host host{};
    host.size = sizeof host;
    host.abi_version = SQ_ABI_VERSION;
    damage(host);
    sq_context* made = nullptr;
    sq_error e = make_error();
    const sq_status status = library->create(&host, &made, &e);
    if (made) library->destroy(made);
    return std::pair(status, std::string(e.message));
  };
  EXPECT_EQ(create([](sq_host&) {}).first, SQ_OK);
  EXPECT_EQ(create([](sq_host& h) { h.size = 0; }).first, SQ_CALL_VALUE);
  EXPECT_TRUE(mentions(create([](sq_host& h) { h.abi_version = 9; }).second, {"9", "1"}));
  EXPECT_EQ(create([](sq_host& h) { h.device.kind = SQ_CUDA; }).first, SQ_CALL_DEVICE);
  EXPECT_EQ(library->create(nullptr, nullptr, nullptr), SQ_CALL_NULL);
  EXPECT_EQ(context.linear().linear_forward(nullptr, nullptr, nullptr), SQ_CALL_NULL);
  EXPECT_EQ(context.linear().linear_forward(context.get(), nullptr, nullptr), SQ_CALL_NULL);
}

TEST_F(Refusals, ContractVersionIsNamed) {
  void* library = dlopen(find_backend("reference").c_str(), RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr) << dlerror();
  const auto entry = reinterpret_cast<sq_get_implementation>(dlsym(library, SQ_ENTRY_POINT));
  std::uint32_t own = 0;
  EXPECT_EQ(entry(SQ_ABI_VERSION + 1, &own), nullptr);
  EXPECT_EQ(own, SQ_ABI_VERSION);
  dlclose(library);
}

TEST_F(Refusals, OlderAndNewerStructs) {
  // A caller with a shorter struct: fields it does not have count as absent. A longer one: the extra bytes are not looked at.
  Layer plain(2, 4, 3, 0, 1);
  Bound b(plain);
  b.forward.size = offsetof(sq_linear_forward_args, preactivation);
  b.run_forward(context);
  expect_untouched(b.preactivation);
  struct { sq_linear_forward_args args; std::byte more[64]; } longer{};
  std::memset(longer.more, 0xFF, sizeof longer.more);
  Bound c(plain);
  longer.args = c.forward;
  longer.args.size = sizeof longer;
  call(context.linear().linear_forward, context, longer.args);
  EXPECT_EQ(b.y.bytes, c.y.bytes);
}

TEST_F(Refusals, ExplainNamesTheKernelAndChecksTheCall) {
  Bound b(layer);
  std::string text;
  sq_error e = make_error();
  check(context.linear().explain(context.get(), SQ_OP_LINEAR_FORWARD, &b.forward, append_text, &text, &e), e);
  const auto json = nlohmann::json::parse(text);
  EXPECT_EQ(json.at("op"), "linear_forward");
  EXPECT_EQ(json.at("kernel"), "loops_r1");
  EXPECT_TRUE(json.at("rejected").empty());
  expect_untouched(b.y);
  b.x.dtype = SQ_I8;
  EXPECT_EQ(context.linear().explain(context.get(), SQ_OP_LINEAR_FORWARD, &b.forward, append_text, &text, &e), SQ_CALL_DTYPE);
  EXPECT_EQ(context.linear().explain(context.get(), 77, &b.forward, append_text, &text, &e), SQ_CALL_VALUE);
}

TEST_F(Refusals, DescribeListsWhatTheTableHolds) {
  const auto json = nlohmann::json::parse(context.implementation().describe(context.get()));
  EXPECT_EQ(json.at("name"), "reference");
  EXPECT_EQ(json.at("device"), "cpu");
  EXPECT_EQ(json.at("abi_version"), SQ_ABI_VERSION);
  EXPECT_EQ(json.at("groups"), (nlohmann::json{"linear", "lora", "stream", "telemetry"}));
  EXPECT_EQ(json.at("rounding_classes"), (nlohmann::json{"R1", "R4"}));
  EXPECT_NE(context->linear, nullptr);
  EXPECT_NE(context->stream, nullptr);
  EXPECT_NE(context->telemetry, nullptr);
  EXPECT_EQ(context->format, nullptr);
  EXPECT_EQ(context->module, nullptr);
}

}  // namespace
}  // namespace squareq::tests
