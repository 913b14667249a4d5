// fixtures/linear: vectors made with numpy in float64, torch autograd and the published goldens of the V2 builder.
#include <openssl/sha.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "fixtures/places.hpp"
#include "support.hpp"

namespace squareq::test {
namespace {

using nlohmann::json;

const std::string kFolder = test::fixtures() / "linear/";

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

std::int32_t dtype_of(const std::string& name) {
  static const std::map<std::string, std::int32_t> names = {{"F32", SQ_F32}, {"F16", SQ_F16}, {"BF16", SQ_BF16}, {"F64", SQ_F64}, {"I8", SQ_I8}, {"I64", SQ_I64},
                                                            {"f32", SQ_F32}, {"f16", SQ_F16}, {"bf16", SQ_BF16}};
  return names.at(name);
}

class Case {
 public:
  explicit Case(const json& c) : c_(c), file_(slurp(kFolder + "cases/" + c["name"].get<std::string>() + ".safetensors")) {
    std::uint64_t header = 0;
    std::memcpy(&header, file_.data(), 8);
    header_ = json::parse(file_.substr(8, header));
    data_ = 8 + header;
  }
  bool has(const std::string& name) const { return header_.contains(name); }
  Buffer load(const std::string& name) const {
    const json& t = header_.at(name);
    auto shape = t["shape"].get<std::vector<std::int64_t>>();
    if (shape.empty()) shape = {1};
    Buffer b(dtype_of(t["dtype"]), shape, gap(name, shape.back()));
    const std::size_t width = dtype_bytes(b.dtype());
    const char* from = file_.data() + data_ + t["data_offsets"][0].get<std::size_t>();
    for (std::int64_t i = 0; i < b.size(); ++i) std::memcpy(b.at(i), from + static_cast<std::size_t>(i) * width, width);
    return b;
  }
  /// An output to ask for: of the expected shape, holding `initial.NAME` where the case has one.
  Buffer output(const std::string& name, const std::string& dtype_param = "") const {
    if (has("initial." + name)) return load("initial." + name);
    const json& t = header_.at("expected." + name);
    const auto shape = t["shape"].get<std::vector<std::int64_t>>();
    return Buffer(dtype_param.empty() ? dtype_of(t["dtype"]) : dtype_of(c_["params"].value(dtype_param, std::string("f32"))), shape, gap(name, shape.back()));
  }
  const json& params() const { return c_["params"]; }
  std::int64_t shape(const char* n) const { return c_["shapes"][n]; }

  void compare(const std::string& name, const Buffer& got, double slack = 0) const {
    EXPECT_TRUE(got.intact()) << name << ": bytes outside the rows were written";
    const Buffer expected = load("expected." + name);
    ASSERT_EQ(got.size(), expected.size()) << name;
    const std::optional<Buffer> bound = has("bound." + name) ? std::optional(load("bound." + name)) : std::nullopt;
    for (std::int64_t i = 0; i < got.size(); ++i) {
      const double e = expected.get(i), g = got.get(i);
      if (std::isnan(e)) {
        ASSERT_TRUE(std::isnan(g)) << name << "[" << i << "]";
      } else if (std::isinf(e)) {
        ASSERT_EQ(g, e) << name << "[" << i << "]";
      } else {
        ASSERT_LE(std::fabs(g - e), bound ? bound->get(i) : slack) << name << "[" << i << "] is " << g << ", expected " << e;
      }
    }
  }

 private:
  std::int64_t gap(std::string name, std::int64_t cols) const {
    for (const char* prefix : {"expected.", "initial."})
      if (name.starts_with(prefix)) name = name.substr(std::strlen(prefix));
    const json strides = c_["params"].value("row_stride", json::object());
    return strides.contains(name) ? strides[name].get<std::int64_t>() - cols : 0;
  }
  json c_;
  std::string file_;
  json header_;
  std::size_t data_ = 0;
};

std::string sha256(const Buffer& b) {
  std::string raw;
  for (std::int64_t i = 0; i < b.size(); ++i) raw.append(reinterpret_cast<const char*>(const_cast<Buffer&>(b).at(i)), dtype_bytes(b.dtype()));
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(raw.data()), raw.size(), digest);
  std::string hex;
  for (const unsigned char d : digest) { char two[3]; std::snprintf(two, sizeof two, "%02x", d); hex += two; }
  return hex;
}

struct LinearInputs {
  TestWeight w;
  Buffer x, q, q_scale, a, b, lora_x, h, preactivation;
  std::vector<sq_part> codes;
  sq_quantized_activation xq = sized<sq_quantized_activation>();
  sq_lora lora = sized<sq_lora>();
  bool has_lora = false;

  explicit LinearInputs(const Case& c) {
    w.q = c.load("qweight");
    w.scale = c.load("scale");
    w.zero_point = c.load("zero_point");
    if (c.has("bias")) w.bias = c.load("bias");
    w.bind(c.shape("N"), c.shape("K"), c.has("bias"));
    if (c.has("x")) x = c.load("x");
    if (c.has("xq.q")) {
      q = c.load("xq.q");
      q_scale = c.load("xq.scale");
      codes = {{"q", *q.tensor()}, {"scale", *q_scale.tensor()}};
      xq.format = "per_token_int8";
      xq.parts = codes.data();
      xq.part_count = 2;
    }
    has_lora = c.has("lora.a_t");
    if (has_lora) {
      a = c.load("lora.a_t");
      b = c.load("lora.b_t");
      lora.a_t = a.tensor();
      lora.b_t = b.tensor();
      lora.scaling = c.params()["scaling"];
      if (c.has("lora.x")) {
        lora_x = c.load("lora.x");
        lora.x = lora_x.tensor();
      }
    }
  }
};

void run_quantize(const Context& context, const Case& c, const json& spec) {
  Buffer w = c.load("w");
  const std::int64_t n = c.shape("N"), padded = c.shape("padded");
  Buffer q(SQ_I8, {n, padded}), scale(SQ_F32, {n}), zero_point(SQ_F32, {n});
  for (std::int64_t i = 0; i < n; ++i) { scale.set(i, 5); zero_point.set(i, 5); }
  const auto before = q.bytes();
  const std::vector<sq_part> parts = {{"qweight", *q.tensor()}, {"scale", *scale.tensor()}, {"zero_point", *zero_point.tensor()}};
  auto args = sized<sq_quantize_args>();
  args.pack_k = c.params()["pack_k"];
  args.format = "bp8_v2";
  args.name = "layer";
  args.w = w.tensor();
  args.out = parts.data();
  args.out_count = 3;
  std::uint64_t floored = 77;
  args.floored_rows = &floored;
  if (spec.contains("refused")) {
    EXPECT_EQ(code_name(code_of([&] { call(context.linear().quantize, context, args); })), spec["refused"].get<std::string>());
    EXPECT_EQ(q.bytes(), before);
    EXPECT_EQ(scale.get(0), 5);
    EXPECT_EQ(floored, 77u);
    return;
  }
  call(context.linear().quantize, context, args);
  EXPECT_EQ(floored, c.params().value("floored_rows", floored));
  if (c.params().contains("qweight_sha256")) {
    EXPECT_EQ(sha256(q), c.params()["qweight_sha256"].get<std::string>());
    EXPECT_EQ(sha256(scale), c.params()["scale_sha256"].get<std::string>());
  }
  if (c.has("expected.qweight")) {
    c.compare("qweight", q);
    c.compare("scale", scale);
    c.compare("zero_point", zero_point);
  }
}

void run_dequantize(const Context& context, const Case& c) {
  TestWeight w;
  w.q = c.load("qweight");
  w.scale = c.load("scale");
  w.zero_point = c.load("zero_point");
  w.bind(c.shape("N"), c.shape("K"), false);
  Buffer out = c.output("out");
  auto args = sized<sq_dequantize_args>();
  args.weight = &w.ref;
  args.first_row = c.params()["first_row"];
  args.out = out.tensor();
  call(context.linear().dequantize, context, args);
  c.compare("out", out);
}

void run_forward(const Context& context, const Case& c) {
  LinearInputs in(c);
  auto args = sized<sq_linear_forward_args>();
  args.activation = c.params()["activation"];
  args.compute = c.params()["compute"];
  args.weight = &in.w.ref;
  if (c.has("x")) args.x = in.x.tensor();
  if (c.has("xq.q")) args.xq = &in.xq;
  if (in.has_lora) args.lora = &in.lora;
  Buffer y = c.output("y", "y_dtype"), pre, h;
  args.y = y.tensor();
  if (c.has("expected.preactivation")) { pre = c.output("preactivation", "preactivation_dtype"); args.preactivation = pre.tensor(); }
  if (c.has("expected.h")) { h = c.output("h"); if (h.dtype() != SQ_F32) h = Buffer(SQ_F32, {h.rows(), h.cols()}); args.h = h.tensor(); }
  call(context.linear().linear_forward, context, args);
  c.compare("y", y);
  if (args.preactivation) c.compare("preactivation", pre);
  if (args.h) c.compare("h", h);
}

void run_backward(const Context& context, const Case& c) {
  LinearInputs in(c);
  auto args = sized<sq_linear_backward_args>();
  args.activation = c.params()["activation"];
  args.compute = c.params()["compute"];
  args.accumulate = c.params().value("accumulate", 0u);
  args.weight = &in.w.ref;
  Buffer dy = c.load("dy"), pre, h, dx, dx_lora, da, db;
  args.dy = dy.tensor();
  if (c.has("x")) args.x = in.x.tensor();
  if (c.has("preactivation")) { pre = c.load("preactivation"); args.preactivation = pre.tensor(); }
  if (c.has("h")) { h = c.load("h"); args.h = h.tensor(); }
  if (in.has_lora) args.lora = &in.lora;
  if (c.has("expected.dx")) { dx = c.output("dx", "dx_dtype"); args.dx = dx.tensor(); }
  if (c.has("expected.dx_lora")) { dx_lora = c.output("dx_lora", "dx_dtype"); args.dx_lora = dx_lora.tensor(); }
  const auto f32 = [](Buffer b) { return b.dtype() == SQ_F32 ? b : Buffer(SQ_F32, {b.rows(), b.cols()}); };
  if (c.has("expected.da_t")) { da = f32(c.output("da_t")); args.da_t = da.tensor(); }
  if (c.has("expected.db_t")) { db = f32(c.output("db_t")); args.db_t = db.tensor(); }
  call(context.linear().linear_backward, context, args);
  if (args.dx) c.compare("dx", dx);
  if (args.dx_lora) c.compare("dx_lora", dx_lora);
  if (args.da_t) c.compare("da_t", da);
  if (args.db_t) c.compare("db_t", db);
}

void run_quantize_activation(const Context& context, const Case& c) {
  Buffer x = c.load("x"), shift, scale;
  Buffer q = c.output("q"), row_scale(SQ_F32, {x.rows()});
  const std::vector<sq_part> parts = {{"q", *q.tensor()}, {"scale", *row_scale.tensor()}};
  auto args = sized<sq_quantize_activation_args>();
  args.producer = c.params()["producer"];
  args.epsilon = c.params()["epsilon"];
  args.format = "per_token_int8";
  args.out = parts.data();
  args.out_count = 2;
  args.x = x.tensor();
  if (c.has("shift")) { shift = c.load("shift"); scale = c.load("scale"); args.shift = shift.tensor(); args.scale = scale.tensor(); }
  call(context.linear().quantize_activation, context, args);
  c.compare("q", q, c.params()["q_slack"]);
  c.compare("scale", row_scale);
}

void run_numeric_guard(const Context& context, const Case& c) {
  Buffer x = c.load("x"), counts = c.output("counts");
  auto args = sized<sq_numeric_guard_args>();
  args.x = x.tensor();
  args.counts = counts.tensor();
  call(context.linear().numeric_guard, context, args);
  c.compare("counts", counts);
}

void run_heads_forward(const Context& context, const Case& c) {
  Buffer x = c.load("x"), weight = c.load("weight"), rope, y = c.output("y", "y_dtype");
  auto args = sized<sq_rms_norm_rope_forward_args>();
  args.epsilon = c.params()["epsilon"];
  args.x = x.tensor();
  args.weight = weight.tensor();
  if (c.has("rope")) { rope = c.load("rope"); args.rope = rope.tensor(); }
  args.y = y.tensor();
  call(context.linear().rms_norm_rope_forward, context, args);
  c.compare("y", y);
}

void run_heads_backward(const Context& context, const Case& c) {
  Buffer dy = c.load("dy"), x = c.load("x"), weight = c.load("weight"), rope, dx = c.output("dx", "dx_dtype");
  auto args = sized<sq_rms_norm_rope_backward_args>();
  args.epsilon = c.params()["epsilon"];
  args.dy = dy.tensor();
  args.x = x.tensor();
  args.weight = weight.tensor();
  if (c.has("rope")) { rope = c.load("rope"); args.rope = rope.tensor(); }
  args.dx = dx.tensor();
  call(context.linear().rms_norm_rope_backward, context, args);
  c.compare("dx", dx);
}

void run(const Context& context, const json& spec) {
  const Case c(spec);
  const std::string op = spec["op"];
  if (op == "quantize") return run_quantize(context, c, spec);
  if (op == "dequantize") return run_dequantize(context, c);
  if (op == "linear_forward") return run_forward(context, c);
  if (op == "linear_backward") return run_backward(context, c);
  if (op == "quantize_activation") return run_quantize_activation(context, c);
  if (op == "numeric_guard") return run_numeric_guard(context, c);
  if (op == "rms_norm_rope_forward") return run_heads_forward(context, c);
  if (op == "rms_norm_rope_backward") return run_heads_backward(context, c);
  FAIL() << "unknown op " << op;
}

class Isa : public testing::TestWithParam<const char*> {};

TEST_P(Isa, EveryVector) {
  setenv("SQUAREQ_CPU_ISA", GetParam(), 1);
  std::optional<Context> context;
  const Code code = code_of([&] { context.emplace(make_context()); });
  unsetenv("SQUAREQ_CPU_ISA");
  if (code == Code::CFG_BACKEND) GTEST_SKIP() << "this processor lacks " << GetParam();
  ASSERT_EQ(code, Code::OK);
  EXPECT_NE(context->implementation().describe(context->get()).find(std::string("\"isa\":\"") + GetParam()), std::string::npos);
  const json index = json::parse(slurp(kFolder + "index.json"));
  std::set<std::string> ops;
  for (const json& c : index["cases"]) {
    SCOPED_TRACE(c["name"].get<std::string>() + ": hunts " + c["hunts"].get<std::string>());
    EXPECT_NO_THROW(run(*context, c));
    ops.insert(c["op"]);
  }
  EXPECT_EQ(ops.size(), 8u);
}

INSTANTIATE_TEST_SUITE_P(Vectors, Isa, testing::Values("baseline", "avx2", "avx512"), [](const auto& isa) { return std::string(isa.param); });

}  // namespace
}  // namespace squareq::test
