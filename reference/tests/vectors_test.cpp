// Every vector of fixtures/linear against the reference.
#include "reference/tests/fixtures.hpp"

namespace squareq::tests {
namespace {

using nlohmann::json;

/// One case with its tensors, and the outputs that the call fills.
struct Vector {
  json entry;
  std::map<std::string, Tensor> tensors;
  std::map<std::string, Tensor> outputs;

  explicit Vector(const json& e) : entry(e), tensors(read_case(e.at("name"), e.at("params").value("row_stride", json::object()))) {}

  const sq_tensor* in(const std::string& name) { return tensors.contains(name) ? &tensors.at(name) : nullptr; }
  bool wants(const std::string& name) const { return tensors.contains("expected." + name); }
  std::int64_t shape(const std::string& name) const { return entry.at("shapes").at(name); }
  template <class T>
  T param(const std::string& name, T fallback) const { return entry.at("params").value(name, fallback); }

  /// An output of the expected shape, or null where the case expects none. Starts as the case's initial value or as a sentinel.
  const sq_tensor* out(const std::string& name, std::int32_t dtype) {
    if (!wants(name)) return nullptr;
    const Tensor& expected = tensors.at("expected." + name);
    const std::int64_t stride = entry.at("params").value("row_stride", json::object()).value(name, std::int64_t{0});
    Tensor t(dtype, {expected.view.shape, expected.view.shape + expected.view.rank}, stride);
    if (tensors.contains("initial." + name)) t = tensors.at("initial." + name);
    return &outputs.emplace(name, std::move(t)).first->second;
  }
  std::int32_t asked(const std::string& param_name) const {
    static const std::map<std::string, std::int32_t> dtypes = {{"f32", SQ_F32}, {"f16", SQ_F16}, {"bf16", SQ_BF16}};
    return dtypes.at(param<std::string>(param_name, "f32"));
  }
  std::int32_t expected_dtype(const std::string& name) const { return wants(name) ? tensors.at("expected." + name).view.dtype : SQ_F32; }

  void compare() {
    for (auto& [name, got] : outputs) {
      const Tensor& expected = tensors.at("expected." + name);
      const bool bounded = tensors.contains("bound." + name);
      const double slack = name == "q" ? param("q_slack", 0.0) : 0.0;
      double worst = 0;
      for (std::int64_t r = 0; r < got.rows(); ++r)
        for (std::int64_t c = 0; c < got.columns(); ++c) {
          const double want = expected.value(r, c), is = got.value(r, c);
          if (std::isnan(want) && std::isnan(is)) continue;
          const double bound = bounded ? tensors.at("bound." + name).value(r, c) : slack;
          ASSERT_LE(std::fabs(is - want), bound) << entry.at("name") << " " << name << "[" << r << ", " << c << "]: " << is << ", expected " << want
                                                 << "; hunts: " << entry.at("hunts");
          if (bound > 0) worst = std::max(worst, std::fabs(is - want) / bound);
        }
      EXPECT_TRUE(got.gaps_intact()) << entry.at("name") << ": " << name << " was written outside its rows";
      if (bounded) testing::Test::RecordProperty(entry.at("name").get<std::string>() + "." + name, std::to_string(worst));
    }
    EXPECT_FALSE(outputs.empty()) << entry.at("name");
  }
};

/// Weight, LoRA and X as a linear case describes them.
struct LinearInputs {
  std::vector<sq_part> parts, xq_parts;
  sq_weight weight = sized<sq_weight>();
  sq_weight_ref ref = sized<sq_weight_ref>();
  sq_lora lora = sized<sq_lora>();
  sq_quantized_activation xq = sized<sq_quantized_activation>();

  explicit LinearInputs(Vector& v) {
    for (const char* name : {"qweight", "scale", "zero_point", "bias"})
      if (const sq_tensor* t = v.in(name)) parts.push_back({name, *t});
    weight.format = "bp8_v2";
    weight.name = "vector.layer";
    weight.out_features = v.shape("N");
    weight.in_features = v.shape("K");
    weight.parts = parts.data();
    weight.part_count = static_cast<std::uint32_t>(parts.size());
    ref.weight = &weight;
    lora.scaling = v.param("scaling", 0.0f);
    lora.a_t = v.in("lora.a_t");
    lora.b_t = v.in("lora.b_t");
    lora.x = v.in("lora.x");
    if (!v.in("xq.q")) return;
    xq_parts = {{"q", *v.in("xq.q")}, {"scale", *v.in("xq.scale")}};
    xq.format = "per_token_int8";
    xq.parts = xq_parts.data();
    xq.part_count = 2;
  }
};

void run_forward(const Context& context, Vector& v) {
  LinearInputs inputs(v);
  auto args = sized<sq_linear_forward_args>();
  args.activation = v.param("activation", 0);
  args.compute = v.param("compute", 0);
  args.weight = &inputs.ref;
  args.x = v.in("x");
  args.xq = inputs.xq_parts.empty() ? nullptr : &inputs.xq;
  args.lora = inputs.lora.a_t ? &inputs.lora : nullptr;
  args.y = v.out("y", v.asked("y_dtype"));
  args.preactivation = v.out("preactivation", v.asked("preactivation_dtype"));
  args.h = v.out("h", SQ_F32);
  call(context.linear().linear_forward, context, args);
}

void run_backward(const Context& context, Vector& v, bool with_saved_h) {
  LinearInputs inputs(v);
  auto args = sized<sq_linear_backward_args>();
  args.activation = v.param("activation", 0);
  args.compute = v.param("compute", 0);
  args.accumulate = v.param("accumulate", 0u);
  args.weight = &inputs.ref;
  args.dy = v.in("dy");
  args.preactivation = v.in("preactivation");
  args.x = v.in("x");
  args.lora = inputs.lora.a_t ? &inputs.lora : nullptr;
  args.dx = v.out("dx", v.asked("dx_dtype"));
  args.dx_lora = v.out("dx_lora", v.asked("dx_dtype"));
  args.da_t = v.out("da_t", SQ_F32);
  args.db_t = v.out("db_t", SQ_F32);
  Tensor h, y;
  if (with_saved_h && args.lora) {  // the H that this backend's own forward saved
    h = Tensor(SQ_F32, {v.shape("M"), v.shape("r")});
    y = Tensor(v.in("x")->dtype, {v.shape("M"), v.shape("N")});
    auto forward = sized<sq_linear_forward_args>();
    forward.weight = &inputs.ref;
    forward.x = v.in("x");
    forward.lora = args.lora;
    forward.y = &y;
    forward.h = &h;
    call(context.linear().linear_forward, context, forward);
    args.h = &h;
  }
  call(context.linear().linear_backward, context, args);
}

void run_quantize(const Context& context, Vector& v) {
  const std::int64_t n = v.shape("N");
  Tensor qweight(SQ_I8, {n, v.shape("padded")}), scale(SQ_F32, {n}), zero_point(SQ_F32, {n});
  const std::vector<sq_part> parts = {{"qweight", *&qweight}, {"scale", *&scale}, {"zero_point", *&zero_point}};
  std::uint64_t floored = 99;
  auto args = sized<sq_quantize_args>();
  args.pack_k = v.param("pack_k", 0u);
  args.format = "bp8_v2";
  args.name = "vector.layer";
  args.w = v.in("w");
  args.out = parts.data();
  args.out_count = 3;
  args.floored_rows = &floored;
  if (v.entry.contains("refused")) {
    const Problem problem = expect_error(Code::DT_WEIGHT_NONFINITE, [&] { call(context.linear().quantize, context, args); });
    EXPECT_EQ(v.entry.at("refused"), "DT_WEIGHT_NONFINITE");
    EXPECT_TRUE(mentions(problem.message, {"vector.layer", "row", "column"})) << problem.message;
    for (const auto& bytes : {qweight.bytes, scale.bytes, zero_point.bytes})
      for (const std::byte b : bytes) ASSERT_EQ(b, Tensor::sentinel) << "a refused weight left bytes behind";
    EXPECT_EQ(floored, 99u);
    return;
  }
  call(context.linear().quantize, context, args);
  EXPECT_EQ(floored, v.param("floored_rows", std::uint64_t{0})) << v.entry.at("name");
  v.outputs = {{"qweight", qweight}, {"scale", scale}, {"zero_point", zero_point}};
  v.compare();
}

void run_dequantize(const Context& context, Vector& v) {
  LinearInputs inputs(v);
  auto args = sized<sq_dequantize_args>();
  args.weight = &inputs.ref;
  args.first_row = v.param("first_row", std::int64_t{0});
  args.out = v.out("out", v.expected_dtype("out"));
  call(context.linear().dequantize, context, args);
  v.compare();
}

void run_quantize_activation(const Context& context, Vector& v) {
  Tensor q(SQ_I8, {v.shape("M"), v.shape("K")}), scale(SQ_F32, {v.shape("M")});
  const std::vector<sq_part> parts = {{"q", *&q}, {"scale", *&scale}};
  auto args = sized<sq_quantize_activation_args>();
  args.producer = v.param("producer", 0);
  args.x = v.in("x");
  args.shift = v.in("shift");
  args.scale = v.in("scale");
  args.epsilon = v.param("epsilon", 0.0f);
  args.format = "per_token_int8";
  args.out = parts.data();
  args.out_count = 2;
  call(context.linear().quantize_activation, context, args);
  v.outputs = {{"q", q}, {"scale", scale}};
  v.compare();
}

void run_guard(const Context& context, Vector& v) {
  auto args = sized<sq_numeric_guard_args>();
  args.x = v.in("x");
  args.counts = v.out("counts", SQ_I64);
  call(context.linear().numeric_guard, context, args);
  v.compare();
}

void run_heads_forward(const Context& context, Vector& v) {
  auto args = sized<sq_rms_norm_rope_forward_args>();
  args.epsilon = v.param("epsilon", 0.0f);
  args.x = v.in("x");
  args.weight = v.in("weight");
  args.rope = v.in("rope");
  args.y = v.out("y", v.asked("y_dtype"));
  call(context.linear().rms_norm_rope_forward, context, args);
}

void run_heads_backward(const Context& context, Vector& v) {
  auto args = sized<sq_rms_norm_rope_backward_args>();
  args.epsilon = v.param("epsilon", 0.0f);
  args.dy = v.in("dy");
  args.x = v.in("x");
  args.weight = v.in("weight");
  args.rope = v.in("rope");
  args.dx = v.out("dx", v.asked("dx_dtype"));
  call(context.linear().rms_norm_rope_backward, context, args);
}

TEST(Vectors, EveryCase) {
  const Context context = make_context();
  std::map<std::string, int> seen;
  for (const json& entry : read_index()) {
    SCOPED_TRACE(entry.at("name").get<std::string>());
    const std::string op = entry.at("op");
    ++seen[op];
    Vector v(entry);
    if (op == "quantize") run_quantize(context, v);
    if (op == "dequantize") run_dequantize(context, v);
    if (op == "linear_forward") run_forward(context, v), v.compare();
    if (op == "quantize_activation") run_quantize_activation(context, v);
    if (op == "numeric_guard") run_guard(context, v);
    if (op == "rms_norm_rope_forward") run_heads_forward(context, v), v.compare();
    if (op == "rms_norm_rope_backward") run_heads_backward(context, v), v.compare();
    if (op == "linear_backward") {
      run_backward(context, v, false), v.compare();
      const auto recomputed = v.outputs;
      v.outputs.clear();
      run_backward(context, v, true), v.compare();
      for (const auto& [name, t] : recomputed) EXPECT_EQ(t.bytes, v.outputs.at(name).bytes) << name << ": saved and recomputed H give different gradients";
    }
  }
  for (const char* op : {"quantize", "dequantize", "linear_forward", "linear_backward", "quantize_activation", "numeric_guard", "rms_norm_rope_forward", "rms_norm_rope_backward"}) EXPECT_GT(seen[op], 2) << op;
}

TEST(Vectors, ThreadCountChangesNoBit) {
  const Context one = make_context(nullptr, 1), five = make_context(nullptr, 5);
  for (const json& entry : read_index()) {
    const auto run = entry.at("op") == "linear_forward" ? run_forward : entry.at("op") == "rms_norm_rope_forward" ? run_heads_forward : entry.at("op") == "rms_norm_rope_backward" ? run_heads_backward : nullptr;
    if (!run || entry.at("exact")) continue;
    Vector a(entry), b(entry);
    run(one, a), run(five, b);
    for (const auto& [name, t] : a.outputs) EXPECT_EQ(t.bytes, b.outputs.at(name).bytes) << entry.at("name");
  }
}

}  // namespace
}  // namespace squareq::tests
