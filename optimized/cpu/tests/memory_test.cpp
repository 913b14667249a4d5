// Scratch of every operation: bounded, from the host's allocator, back before the call returns; and what a wrong call leaves alone.
#include <array>
#include <functional>

#include "layer_case.hpp"

namespace squareq::test {
namespace {

/// The documented bound (optimized/cpu/README.md): 20 MiB of tiles (32 MiB for W8A8), and the branch's own matrices.
std::uint64_t scratch_bound(const LayerShape& s, bool accumulate) {
  const auto r = static_cast<std::uint64_t>(s.r), m = static_cast<std::uint64_t>(s.m), n = static_cast<std::uint64_t>(s.n), k = static_cast<std::uint64_t>(s.k);
  return (std::uint64_t{s.compute == SQ_COMPUTE_W8A8 ? 32u : 20u} << 20) + 4 * r * (3 * m + 2 * (n + k)) + (accumulate ? 4 * r * (n + k) : 0);
}

TEST(Memory, ScratchIsBoundedAndGivenBack_SQ_LIN_047) {
  for (const std::int32_t dtype : {SQ_F32, SQ_BF16})
    for (const std::int32_t compute : {SQ_COMPUTE_DEFAULT, SQ_COMPUTE_W8A8})
      for (const auto& [m, n, k] : {std::array<std::int64_t, 3>{5, 3100, 3072}, {1100, 1200, 1300}, {3, 40, 20000}, {520, 60, 20000}}) {
        CountingAllocator memory;
        const Context context = make_context(memory.table());
        const LayerShape s{.m = m, .n = n, .k = k, .r = 8, .dtype = dtype, .activation = SQ_ACT_SILU, .compute = compute, .bias = true};
        LayerCase c(s);
        call(context.linear().linear_forward, context, c.forward_args());
        EXPECT_EQ(memory.live(), 0u);
        auto args = c.backward_args();
        args.accumulate = 1;
        call(context.linear().linear_backward, context, args);
        EXPECT_EQ(memory.live(), 0u);
        EXPECT_LE(memory.peak(SQ_MEM_SCRATCH), scratch_bound(s, true)) << m << "x" << n << "x" << k << " dtype " << dtype << " compute " << compute;
        EXPECT_EQ(memory.peak(SQ_MEM_DEVICE) + memory.peak(SQ_MEM_HOST), 0u);
      }
}

/// Heads longer than a piece on the stack, and rows enough for several threads: the same bits on any number of them, and no scratch.
TEST(Memory, QueriesAndKeysNeedNoScratchAndNoCertainThreads_SQ_NUM_004) {
  constexpr std::int64_t rows = 120, heads = 4, d = 600, columns = heads * d;
  std::mt19937 engine(7);
  std::normal_distribution<double> normal;
  for (const std::int32_t dtype : {SQ_F32, SQ_BF16}) {
    Buffer x(dtype, {rows, columns}), dy(dtype, {rows, columns}), weight(SQ_BF16, {d}), rope(SQ_F32, {rows / 2, d}), y(dtype, {rows, columns}), dx(dtype, {rows, columns});
    for (Buffer* b : {&x, &dy, &weight, &rope})
      for (std::int64_t i = 0; i < b->size(); ++i) b->set(i, normal(engine));
    auto forward = sized<sq_rms_norm_rope_forward_args>();
    auto backward = sized<sq_rms_norm_rope_backward_args>();
    forward.epsilon = backward.epsilon = 1e-6f;
    forward.x = backward.x = x.tensor();
    forward.weight = backward.weight = weight.tensor();
    forward.rope = backward.rope = rope.tensor();
    forward.y = y.tensor();
    backward.dy = dy.tensor();
    backward.dx = dx.tensor();
    std::vector<std::vector<std::byte>> results;
    for (const std::uint32_t threads : {1u, 2u, 5u}) {
      CountingAllocator memory;
      const Context context = make_context(memory.table(), threads);
      call(context.linear().rms_norm_rope_forward, context, forward);
      call(context.linear().rms_norm_rope_backward, context, backward);
      EXPECT_EQ(memory.calls(), 0);
      results.push_back(y.bytes());
      results.push_back(dx.bytes());
    }
    for (std::size_t i = 2; i < results.size(); ++i) EXPECT_TRUE(results[i] == results[i % 2]) << "result " << i;
  }
}

TEST(Memory, EveryFailedAllocationIsToldAndRetryWorks) {
  CountingAllocator memory;
  const Context context = make_context(memory.table());
  LayerCase c({.m = 4, .n = 30, .k = 50, .r = 2, .dtype = SQ_BF16, .activation = SQ_ACT_GELU_ERF});
  const auto forward = c.forward_args();
  call(context.linear().linear_forward, context, forward);
  const std::vector<std::function<void()>> operations = {
      [&] { call(context.linear().linear_forward, context, forward); },
      [&] { call(context.linear().linear_backward, context, c.backward_args()); },
      [&] {
        Buffer q(SQ_I8, {4, 50}), scale(SQ_F32, {4});
        const std::vector<sq_part> out = {{"q", *q.tensor()}, {"scale", *scale.tensor()}};
        auto args = sized<sq_quantize_activation_args>();
        args.format = "per_token_int8";
        args.x = c.x.tensor();
        args.out = out.data();
        args.out_count = 2;
        call(context.linear().quantize_activation, context, args);
      },
      [&] {
        Buffer q(SQ_I8, {4, 64}), scale(SQ_F32, {4}), zero(SQ_F32, {4});
        const std::vector<sq_part> out = {{"qweight", *q.tensor()}, {"scale", *scale.tensor()}, {"zero_point", *zero.tensor()}};
        auto args = sized<sq_quantize_args>();
        args.format = "bp8_v2";
        args.name = "layer";
        args.pack_k = 64;
        args.w = c.x.tensor();
        args.out = out.data();
        args.out_count = 3;
        call(context.linear().quantize, context, args);
      }};
  for (const auto& operation : operations) {
    memory.fail_at(-1);
    operation();
    const std::int64_t calls = memory.calls();
    ASSERT_GT(calls, 0);
    for (std::int64_t k = 0; k < calls; ++k) {
      const auto before = c.y.bytes();
      memory.fail_at(k);
      EXPECT_EQ(code_of(operation), Code::HOST_OOM);
      EXPECT_EQ(memory.live(), 0u);
      EXPECT_EQ(c.y.bytes(), before);
      memory.fail_at(-1);
      EXPECT_EQ(code_of(operation), Code::OK);
    }
  }
}

struct Wrong {
  const char* what;
  Code code;
  const char* says;  // both values, or what names them
  std::function<void(LayerCase&, sq_linear_forward_args&)> spoil;
};

TEST(Refusals, ForwardNamesBothValuesAndWritesNothing_SQ_LIN_040_to_046) {
  static sq_tensor t;  // the spoilt copy that args point to
  static sq_lora lora;
  static sq_quantized_activation xq;
  const auto copy = [](const sq_tensor* from) { t = *from; return &t; };
  const std::vector<Wrong> wrongs = {
      {"x i8", Code::CALL_DTYPE, "i8", [&](auto&, auto& a) { auto* p = copy(a.x); p->dtype = SQ_I8; a.x = p; }},
      {"x of another depth", Code::CALL_SHAPE, "[3, 8]", [&](auto&, auto& a) { auto* p = copy(a.x); p->shape[1] = 8; a.x = p; }},
      {"x of rank 1", Code::CALL_SHAPE, "rank is 1", [&](auto&, auto& a) { auto* p = copy(a.x); p->rank = 1; a.x = p; }},
      {"x column stride", Code::CALL_SHAPE, "column stride is 2", [&](auto&, auto& a) { auto* p = copy(a.x); p->strides[1] = 2; a.x = p; }},
      {"x on a GPU", Code::CALL_DEVICE, "device kind is 1", [&](auto&, auto& a) { auto* p = copy(a.x); p->device.kind = SQ_CUDA; a.x = p; }},
      {"x misaligned", Code::CALL_ALIGN, "4-byte", [&](auto&, auto& a) { auto* p = copy(a.x); p->data = static_cast<char*>(p->data) + 1; a.x = p; }},
      {"x without data", Code::CALL_NULL, "null", [&](auto&, auto& a) { auto* p = copy(a.x); p->data = nullptr; a.x = p; }},
      {"no x", Code::CALL_VALUE, "neither", [&](auto&, auto& a) { a.x = nullptr; }},
      {"x and xq", Code::CALL_VALUE, "both", [&](auto&, auto& a) { xq = sized<sq_quantized_activation>(); a.xq = &xq; }},
      {"no y", Code::CALL_NULL, "y", [&](auto&, auto& a) { a.y = nullptr; }},
      {"y of other rows", Code::CALL_SHAPE, "[2, 5]", [&](auto&, auto& a) { auto* p = copy(a.y); p->shape[0] = 2; a.y = p; }},
      {"y overlapping", Code::CALL_SHAPE, "row stride is 4", [&](auto&, auto& a) { auto* p = copy(a.y); p->strides[0] = 4; a.y = p; }},
      {"y f16 for f32", Code::CALL_DTYPE, "f16", [&](auto&, auto& a) { auto* p = copy(a.y); p->dtype = SQ_F16; a.y = p; }},
      {"unknown activation", Code::CALL_VALUE, "activation is 9", [&](auto&, auto& a) { a.activation = 9; }},
      {"unknown compute", Code::CALL_VALUE, "compute is 7", [&](auto&, auto& a) { a.compute = 7; }},
      {"scaling NaN", Code::CALL_VALUE, "scaling is", [&](auto&, auto& a) { lora = *a.lora; lora.scaling = NAN; a.lora = &lora; }},
      {"no B", Code::CALL_NULL, "lora.b_t", [&](auto&, auto& a) { lora = *a.lora; lora.b_t = nullptr; a.lora = &lora; }},
      {"rank mismatch", Code::CALL_SHAPE, "lora.b_t", [&](auto&, auto& a) { lora = *a.lora; auto* p = copy(lora.b_t); p->shape[1] = 1; lora.b_t = p; a.lora = &lora; }},
      {"h without branch", Code::CALL_VALUE, "h", [&](auto&, auto& a) { a.lora = nullptr; }},
      {"short struct", Code::CALL_VERSION, "size", [&](auto&, auto& a) { a.size = 4; }},
      {"no weight", Code::CALL_NULL, "weight", [&](auto&, auto& a) { a.weight = nullptr; }},
      {"weight and lease", Code::CALL_VALUE, "both", [&](auto& c, auto&) { c.w.ref.lease = 3; }},
      {"unknown session", Code::CALL_STATE, "session 77", [&](auto& c, auto&) { c.w.ref.weight = nullptr; c.w.ref.lease = 3; c.w.ref.session = 77; }},
      {"unknown format", Code::CALL_UNSUPPORTED, "bp9", [&](auto& c, auto&) { c.w.weight.format = "bp9"; }},
      {"no scale", Code::CALL_PART, "scale", [&](auto& c, auto&) { c.w.parts[1].name = "bias"; c.w.weight.part_count = 2; }},
      {"part twice", Code::CALL_VALUE, "twice", [&](auto& c, auto&) { c.w.parts[2].name = "scale"; }},
      {"unknown part", Code::CALL_VALUE, "lora_up", [&](auto& c, auto&) { c.w.parts[2].name = "lora_up"; }},
      {"short scale", Code::CALL_SHAPE, "[4]", [&](auto& c, auto&) { c.w.parts[1].tensor.shape[0] = 4; }},
      {"narrow qweight", Code::CALL_SHAPE, "6 columns", [&](auto& c, auto&) { c.w.parts[0].tensor.shape[1] = 6; }},
      {"zero point 1", Code::DT_ZP_NONZERO, "row 4", [&](auto& c, auto&) { c.w.zero_point.set(4, 1.0); }},
  };
  const Context context = make_context();
  for (const Wrong& wrong : wrongs) {
    SCOPED_TRACE(wrong.what);
    LayerCase c({.m = 3, .n = 5, .k = 7, .r = 2, .bias = true, .gap = 2});
    auto args = c.forward_args();
    const auto y = c.y.bytes(), pre = c.preactivation.bytes(), h = c.h.bytes();
    wrong.spoil(c, args);
    std::string message;
    EXPECT_EQ(code_name(code_of([&] { call(context.linear().linear_forward, context, args); }, &message)), code_name(wrong.code)) << message;
    EXPECT_NE(message.find(wrong.says), std::string::npos) << message;
    std::string text;
    sq_error e = make_error();
    EXPECT_EQ(context.linear().explain(context.get(), SQ_OP_LINEAR_FORWARD, &args, append_text, &text, &e), static_cast<sq_status>(wrong.code));
    EXPECT_TRUE(c.y.bytes() == y && c.preactivation.bytes() == pre && c.h.bytes() == h);
  }
}

TEST(Refusals, BackwardAsksForWhatItNeeds_SQ_LOR_015) {
  const Context context = make_context();
  const auto refused = [&](const std::function<void(LayerCase&, sq_linear_backward_args&)>& spoil) {
    LayerCase c({.m = 3, .n = 5, .k = 7, .r = 2, .activation = SQ_ACT_SILU});
    c.forward_args();
    auto args = c.backward_args();
    spoil(c, args);
    const auto dx = c.dx.bytes();
    const Code code = code_of([&] { call(context.linear().linear_backward, context, args); });
    EXPECT_TRUE(c.dx.bytes() == dx);
    return code;
  };
  EXPECT_EQ(refused([](auto&, auto& a) { a.preactivation = nullptr; }), Code::CALL_NULL);
  EXPECT_EQ(refused([](auto&, auto& a) { a.x = nullptr; }), Code::CALL_NULL);
  EXPECT_EQ(refused([](auto& c, auto& a) { a.dx_lora = c.dx.tensor(); }), Code::CALL_VALUE);
  EXPECT_EQ(refused([](auto&, auto& a) { a.lora = nullptr; }), Code::CALL_VALUE);
  EXPECT_EQ(refused([](auto& c, auto& a) { a.da_t = c.db.tensor(); }), Code::CALL_SHAPE);
  EXPECT_EQ(refused([](auto&, auto& a) { a.db_t = nullptr; a.da_t = nullptr; a.x = nullptr; a.dx = nullptr; }), Code::OK);
}

TEST(Explain, NamesTheKernelAndWhyNotTheOther_SQ_LIN_031) {
  const Context context = make_context();
  LayerCase c({.m = 3, .n = 5, .k = 7});
  auto args = c.forward_args();
  std::string text;
  sq_error e = make_error();
  check(context.linear().explain(context.get(), SQ_OP_LINEAR_FORWARD, &args, append_text, &text, &e), e);
  EXPECT_NE(text.find(R"("kernel":"sgemm_dequantized_tiles)"), std::string::npos) << text;
  EXPECT_NE(text.find(R"("rejected":[{"kernel":"sgemm_int8_exact)"), std::string::npos) << text;
}

TEST(Backend, RefusesAnotherContractVersionAndDevice_SQ_CNV_002) {
  auto host = sized<sq_host>();
  host.device.kind = SQ_CUDA;
  EXPECT_EQ(code_of([&] { Context context(backend(), host); }), Code::CALL_DEVICE);
  setenv("SQUAREQ_CPU_ISA", "mmx", 1);
  std::string message;
  EXPECT_EQ(code_of([] { make_context(); }, &message), Code::CFG_BACKEND);
  EXPECT_NE(message.find("mmx"), std::string::npos);
  unsetenv("SQUAREQ_CPU_ISA");
}

}  // namespace
}  // namespace squareq::test
