// Every vector of fixtures/linear on the device, through every kernel (fixtures/linear/README.md says how they were made and are compared).

#include <set>

#include "fixtures/places.hpp"
#include "optimized/cuda/tests/device_matrix.hpp"

namespace squareq::cuda_tests {
namespace {

using nlohmann::json;

std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

std::int32_t dtype_of(const std::string& name) {
  for (const std::int32_t dtype : {SQ_F32, SQ_F16, SQ_BF16, SQ_F64, SQ_I8, SQ_I64}) {
    std::string upper(dtype_name(dtype));
    for (char& c : upper) c = static_cast<char>(std::toupper(c));
    if (name == upper || name == dtype_name(dtype)) return dtype;
  }
  throw std::runtime_error("dtype " + name);
}

class Case {
 public:
  explicit Case(const json& c) : c_(c), file_(slurp(test::fixtures() / "linear/cases" / (c.at("name").get<std::string>() + ".safetensors"))) {
    std::uint64_t header = 0;
    std::memcpy(&header, file_.data(), 8);
    header_ = json::parse(file_.substr(8, header));
    data_ = 8 + header;
  }

  const json& params() const { return c_.at("params"); }
  bool has(const std::string& name) const { return header_.contains(name); }

  DeviceMatrix load(const std::string& name) const {
    const auto [rows, columns] = shape(name);
    DeviceMatrix m(dtype_of(header_.at(name).at("dtype")), rows, columns, stride(name));
    std::int64_t i = 0;
    m.fill([&](std::int64_t, std::int64_t) { return element(name, i++); });
    return m;
  }
  /// An output to ask for, holding `initial.NAME` where the case has one.
  DeviceMatrix output(const std::string& name, std::int32_t dtype) const {
    if (has("initial." + name)) return load("initial." + name);
    const auto [rows, columns] = shape("expected." + name);
    return DeviceMatrix(dtype, rows, columns, stride("expected." + name));
  }
  std::int32_t asked(const std::string& param) const { return dtype_of(params().value(param, std::string("f32"))); }

  void compare(const std::string& name, DeviceMatrix& got, double slack = 0) const {
    got.download();
    EXPECT_TRUE(got.intact()) << name << ": bytes outside the rows were written";
    const auto [rows, columns] = shape("expected." + name);
    ASSERT_EQ(got.rows(), rows);
    ASSERT_EQ(got.columns(), columns);
    const bool bounded = has("bound." + name);
    for (std::int64_t i = 0; i < rows * columns; ++i) {
      const double e = element("expected." + name, i), g = got.get(i / columns, i % columns);
      if (std::isnan(e)) {
        ASSERT_TRUE(std::isnan(g)) << name << "[" << i << "] is " << g;
      } else if (std::isinf(e)) {
        ASSERT_EQ(g, e) << name << "[" << i << "]";
      } else {
        ASSERT_LE(std::fabs(g - e), bounded ? element("bound." + name, i) : slack) << name << "[" << i << "] is " << g << ", expected " << e;
      }
    }
  }

 private:
  std::pair<std::int64_t, std::int64_t> shape(const std::string& name) const {
    const auto s = header_.at(name).at("shape").get<std::vector<std::int64_t>>();
    return s.size() == 2 ? std::pair(s[0], s[1]) : std::pair(std::int64_t{1}, s.empty() ? std::int64_t{1} : s[0]);
  }
  std::int64_t stride(std::string name) const {
    for (const char* prefix : {"expected.", "initial."})
      if (name.starts_with(prefix)) name = name.substr(std::strlen(prefix));
    return params().value("row_stride", json::object()).value(name, std::int64_t{0});
  }
  double element(const std::string& name, std::int64_t i) const {
    const json& t = header_.at(name);
    const std::int32_t dtype = dtype_of(t.at("dtype"));
    const char* p = file_.data() + data_ + t.at("data_offsets")[0].get<std::size_t>() + static_cast<std::size_t>(i) * dtype_bytes(dtype);
    const auto take = [p](auto x) { std::memcpy(&x, p, sizeof x); return x; };
    switch (dtype) {
      case SQ_F32: return static_cast<double>(take(float{}));
      case SQ_F64: return take(double{});
      case SQ_BF16: return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(take(std::uint16_t{})) << 16));
      case SQ_F16: return static_cast<double>(take(_Float16{}));
      case SQ_I64: return static_cast<double>(take(std::int64_t{}));
      default: return static_cast<double>(take(std::int8_t{}));
    }
  }
  json c_;
  std::string file_;
  json header_;
  std::size_t data_ = 0;
};

/// What forward and backward share.
struct Inputs {
  DeviceWeight w;
  DeviceMatrix x, codes, code_scale, a_t, b_t, lora_x;
  std::vector<sq_part> parts;
  sq_quantized_activation xq = sized<sq_quantized_activation>();
  sq_lora lora = sized<sq_lora>();

  explicit Inputs(const Case& c, const json& spec) {
    w.q = c.load("qweight");
    w.scale = c.load("scale");
    w.zero_point = c.load("zero_point");
    if (c.has("bias")) w.bias = c.load("bias");
    w.bind(spec.at("shapes").at("K"));
    if (c.has("x")) x = c.load("x");
    if (c.has("xq.q")) {
      codes = c.load("xq.q");
      code_scale = c.load("xq.scale");
      parts = {{"q", *codes.tensor()}, {"scale", *code_scale.tensor(true)}};
      xq.format = "per_token_int8";
      xq.parts = parts.data();
      xq.part_count = 2;
    }
    if (!c.has("lora.a_t")) return;
    a_t = c.load("lora.a_t");
    b_t = c.load("lora.b_t");
    lora.a_t = a_t.tensor();
    lora.b_t = b_t.tensor();
    lora.scaling = c.params().at("scaling");
    if (c.has("lora.x")) lora_x = c.load("lora.x");
    if (lora_x) lora.x = lora_x.tensor();
  }
};

void run_forward(const Context& context, const Case& c, const json& spec) {
  Inputs in(c, spec);
  auto args = sized<sq_linear_forward_args>();
  args.activation = c.params().at("activation");
  args.compute = c.params().at("compute");
  args.weight = &in.w.ref;
  if (in.x) args.x = in.x.tensor();
  if (in.codes) args.xq = &in.xq;
  if (in.a_t) args.lora = &in.lora;
  DeviceMatrix y = c.output("y", c.asked("y_dtype")), preactivation, h;
  args.y = y.tensor();
  if (c.has("expected.preactivation")) preactivation = c.output("preactivation", c.asked("preactivation_dtype")), args.preactivation = preactivation.tensor();
  if (c.has("expected.h")) h = c.output("h", SQ_F32), args.h = h.tensor();
  call(context.linear().linear_forward, context, args);
  c.compare("y", y);
  if (preactivation) c.compare("preactivation", preactivation);
  if (h) c.compare("h", h);
}

void run_backward(const Context& context, const Case& c, const json& spec) {
  Inputs in(c, spec);
  auto args = sized<sq_linear_backward_args>();
  args.activation = c.params().at("activation");
  args.compute = c.params().at("compute");
  args.accumulate = c.params().value("accumulate", 0u);
  args.weight = &in.w.ref;
  DeviceMatrix dy = c.load("dy"), preactivation, h, dx, dx_lora, da_t, db_t;
  args.dy = dy.tensor();
  if (in.x) args.x = in.x.tensor();
  if (c.has("preactivation")) preactivation = c.load("preactivation"), args.preactivation = preactivation.tensor();
  if (c.has("h")) h = c.load("h"), args.h = h.tensor();
  if (in.a_t) args.lora = &in.lora;
  if (c.has("expected.dx")) dx = c.output("dx", c.asked("dx_dtype")), args.dx = dx.tensor();
  if (c.has("expected.dx_lora")) dx_lora = c.output("dx_lora", c.asked("dx_dtype")), args.dx_lora = dx_lora.tensor();
  if (c.has("expected.da_t")) da_t = c.output("da_t", SQ_F32), args.da_t = da_t.tensor();
  if (c.has("expected.db_t")) db_t = c.output("db_t", SQ_F32), args.db_t = db_t.tensor();
  call(context.linear().linear_backward, context, args);
  if (dx) c.compare("dx", dx);
  if (dx_lora) c.compare("dx_lora", dx_lora);
  if (da_t) c.compare("da_t", da_t);
  if (db_t) c.compare("db_t", db_t);
}

void run_quantize_activation(const Context& context, const Case& c) {
  DeviceMatrix x = c.load("x"), shift, modulation, q = c.output("q", SQ_I8), scale = c.output("scale", SQ_F32);
  const sq_part parts[] = {{"q", *q.tensor()}, {"scale", *scale.tensor(true)}};
  auto args = sized<sq_quantize_activation_args>();
  args.producer = c.params().at("producer");
  args.epsilon = c.params().at("epsilon");
  args.format = "per_token_int8";
  args.out = parts;
  args.out_count = 2;
  args.x = x.tensor();
  if (c.has("shift")) shift = c.load("shift"), modulation = c.load("scale"), args.shift = shift.tensor(), args.scale = modulation.tensor();
  call(context.linear().quantize_activation, context, args);
  c.compare("q", q, c.params().at("q_slack"));
  c.compare("scale", scale);
}

class Vectors : public CudaTest, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    setenv("SQUAREQ_CUDA_KERNEL", GetParam(), 1);
    CudaTest::SetUp();
    unsetenv("SQUAREQ_CUDA_KERNEL");
  }
};

TEST_P(Vectors, OfLinearLayers) {
  const json index = json::parse(slurp(test::fixtures() / "linear/index.json"));
  int compared = 0;
  for (const json& spec : index.at("cases")) {
    const std::string op = spec.at("op");
    if (op != "linear_forward" && op != "linear_backward" && op != "quantize_activation") continue;
    SCOPED_TRACE(spec.at("name").get<std::string>() + ": hunts " + spec.at("hunts").get<std::string>());
    const Case c(spec);
    // Codes need integer sums, which the plain kernel does not make: it says so.
    const bool codes = op != "quantize_activation" && (c.has("xq.q") || c.params().at("compute") == SQ_COMPUTE_W8A8);
    const Error e = error_of([&] {
      if (op == "linear_forward") run_forward(*context_, c, spec);
      if (op == "linear_backward") run_backward(*context_, c, spec);
      if (op == "quantize_activation") run_quantize_activation(*context_, c);
    });
    EXPECT_EQ(code_name(e.code()), code_name(codes && std::string(GetParam()) == "plain_fp32" ? Code::CALL_UNSUPPORTED : Code::OK)) << e.what();
    EXPECT_EQ(allocator_.live_bytes, 0u);
    ++compared;
  }
  EXPECT_GE(compared, 90);
}

INSTANTIATE_TEST_SUITE_P(Kernels, Vectors, ::testing::ValuesIn(kKernels), [](const auto& kernel) { return std::string(kernel.param); });

}  // namespace
}  // namespace squareq::cuda_tests
