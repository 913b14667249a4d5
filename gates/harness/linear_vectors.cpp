#include "gates/harness/linear_vectors.hpp"

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "gates/harness/compare.hpp"
#include "gates/harness/embedded.hpp"
#include "gates/harness/tensor_file.hpp"

namespace squareq::gates {
namespace {

using nlohmann::json;

const json& vector_index() {
  static const json object = json::parse(embedded("linear/index.json"));
  return object;
}

std::int32_t dtype_named(const std::string& name) {
  return name == "f32" ? SQ_F32 : name == "bf16" ? SQ_BF16 : name == "f16" ? SQ_F16 : throw Error(Code::INTERNAL, "vector asks for dtype " + name);
}

/// One vector: its tensors in guarded buffers, its expectations, and the call.
class VectorRun {
 public:
  VectorRun(Trial& trial, const json& vector)
      : trial_(trial), vector_(vector), params_(vector["params"]), tensors_(read_tensors(embedded("linear/cases/" + vector["name"].get<std::string>() + ".safetensors"))),
        instance_(trial.instance()) {}

  void run() {
    const std::string op = vector_["op"].get<std::string>();
    if (op == "quantize") quantize();
    else if (op == "dequantize") dequantize();
    else if (op == "linear_forward") linear_forward();
    else if (op == "linear_backward") linear_backward();
    else if (op == "quantize_activation") quantize_activation();
    else if (op == "numeric_guard") numeric_guard();
    else if (op == "rms_norm_rope_forward") rms_norm_rope_forward();
    else if (op == "rms_norm_rope_backward") rms_norm_rope_backward();
    else fail("the vector's operation '" + op + "' is unknown to this suite");
  }

 private:
  bool has(const std::string& name) const { return tensors_.contains(name); }
  std::int64_t stride(const char* name) const { return params_.contains("row_stride") && params_["row_stride"].contains(name) ? params_["row_stride"][name].get<std::int64_t>() : 0; }

  /// An input as a guarded tensor, kept until the run ends; null where the vector has none.
  Guarded* input(const std::string& name, const char* argument) {
    if (!has(name)) return nullptr;
    inputs_.push_back(std::make_unique<Guarded>(guarded(argument, Role::in, tensors_.at(name), stride(argument))));
    return inputs_.back().get();
  }
  /// An output to be compared with expected.NAME; null where it is not asked for. `initial.NAME` makes it an accumulator.
  Guarded* output(const std::string& name, std::int32_t dtype, std::int64_t row_stride = 0) {
    if (!has("expected." + name) && !has("initial." + name)) return nullptr;
    const bool accumulated = has("initial." + name);
    const auto& shape = tensors_.at(has("expected." + name) ? "expected." + name : "initial." + name).shape;
    outputs_.push_back({name, std::make_unique<Guarded>(name, accumulated ? Role::inout : Role::out, dtype, shape, row_stride)});
    if (accumulated) outputs_.back().tensor->set_bytes(tensors_.at("initial." + name).bytes);
    return outputs_.back().tensor.get();
  }
  static const sq_tensor* view(const Guarded* g) { return g ? g->tensor() : nullptr; }

  /// Calls, then compares every output; or demands the refusal that the vector names.
  template <class F>
  void call(F&& operation) {
    std::vector<Guarded*> all;
    for (auto& i : inputs_) all.push_back(i.get());
    for (auto& o : outputs_) all.push_back(o.tensor.get());
    for (Guarded* g : all) g->arm();
    sq_error e = make_error();
    const auto status = static_cast<Code>(operation(&e));
    const bool refused = vector_.contains("refused") && !vector_["refused"].is_null();
    if (refused) require(code_name(status) == vector_["refused"].get<std::string>(), "answered " + std::string(code_name(status)) + ", expected " + vector_["refused"].get<std::string>());
    else require(status == Code::OK, "refused: " + std::string(code_name(status)) + ": " + e.message);
    for (Guarded* g : all)
      if (const std::string damage = refused ? g->damage_after_refusal() : g->damage_after_success(); !damage.empty()) fail(damage);
    if (!refused)
      for (const Output& o : outputs_) compare_output(o.name, *o.tensor);
  }

  void compare_output(const std::string& name, const Guarded& actual) {
    const FileTensor& file = tensors_.at("expected." + name);
    const std::vector<double> value = guarded(name, Role::in, file).values();
    Expected expected{value, std::vector<double>(value.size(), 0.0)};
    if (has("bound." + name)) expected.bound = guarded(name, Role::in, tensors_.at("bound." + name)).values();
    if (name == "q" && params_.value("q_slack", 0) > 0) expected.bound.assign(value.size(), params_["q_slack"].get<double>());
    compare(trial_, actual, expected);
  }

  struct WeightView {
    std::vector<sq_part> parts;
    sq_weight weight;
    sq_weight_ref ref;
  };
  const sq_weight_ref* weight() {
    for (const char* part : {"qweight", "scale", "zero_point", "bias"})
      if (Guarded* g = input(part, part)) view_.parts.push_back({part, *g->tensor()});
    view_.weight = sized<sq_weight>();
    view_.weight.part_count = static_cast<std::uint32_t>(view_.parts.size());
    view_.weight.format = "bp8_v2";
    view_.weight.name = "vector";
    view_.weight.out_features = vector_["shapes"]["N"].get<std::int64_t>();
    view_.weight.in_features = vector_["shapes"]["K"].get<std::int64_t>();
    view_.weight.parts = view_.parts.data();
    view_.ref = sized<sq_weight_ref>();
    view_.ref.weight = &view_.weight;
    return &view_.ref;
  }
  const sq_lora* lora() {
    if (!has("lora.a_t")) return nullptr;
    lora_ = sized<sq_lora>();
    lora_.scaling = params_["scaling"].get<float>();
    lora_.a_t = view(input("lora.a_t", "lora.a_t"));
    lora_.b_t = view(input("lora.b_t", "lora.b_t"));
    lora_.x = view(input("lora.x", "lora.x"));
    return &lora_;
  }

  void quantize() {
    Guarded* w = input("w", "w");
    const std::int64_t n = w->rows(), padded = vector_["shapes"]["padded"].get<std::int64_t>();
    const bool refused = vector_.contains("refused") && !vector_["refused"].is_null();
    std::optional<Guarded> free_q, free_s, free_z;  // what a refused call must leave alone
    if (refused) {
      free_q.emplace("qweight", Role::out, SQ_I8, std::vector<std::int64_t>{n, padded});
      free_s.emplace("scale", Role::out, SQ_F32, std::vector<std::int64_t>{n});
      free_z.emplace("zero_point", Role::out, SQ_F32, std::vector<std::int64_t>{n});
      for (auto* g : {&free_q, &free_s, &free_z}) (*g)->arm();
    }
    const sq_part parts[] = {{"qweight", refused ? *free_q->tensor() : *output("qweight", SQ_I8)->tensor()}, {"scale", refused ? *free_s->tensor() : *output("scale", SQ_F32)->tensor()},
                             {"zero_point", refused ? *free_z->tensor() : *output("zero_point", SQ_F32)->tensor()}};
    auto args = sized<sq_quantize_args>();
    std::uint64_t floored = ~0ull;
    args.pack_k = params_["pack_k"].get<std::uint32_t>();
    args.format = "bp8_v2";
    args.name = "vector";
    args.w = w->tensor();
    args.out = parts;
    args.out_count = 3;
    args.floored_rows = &floored;
    call([&](sq_error* e) { return instance_.linear().quantize(instance_.get(), &args, e); });
    if (refused) {
      for (auto* g : {&free_q, &free_s, &free_z})
        if (const std::string damage = (*g)->damage_after_refusal(); !damage.empty()) fail(damage);
    } else if (params_.contains("floored_rows")) {
      require(floored == params_["floored_rows"].get<std::uint64_t>(), "floored_rows is " + std::to_string(floored));
    }
  }

  void dequantize() {
    auto args = sized<sq_dequantize_args>();
    args.weight = weight();
    args.first_row = params_["first_row"].get<std::int64_t>();
    args.out = view(output("out", contract_dtype(tensors_.at("expected.out").dtype)));
    call([&](sq_error* e) { return instance_.linear().dequantize(instance_.get(), &args, e); });
  }

  void linear_forward() {
    auto args = sized<sq_linear_forward_args>();
    args.activation = params_["activation"].get<std::int32_t>();
    args.compute = params_["compute"].get<std::int32_t>();
    args.weight = weight();
    args.x = view(input("x", "x"));
    std::vector<sq_part> xq_parts;
    auto xq = sized<sq_quantized_activation>();
    if (Guarded* q = input("xq.q", "xq.q")) {
      xq_parts = {{"q", *q->tensor()}, {"scale", *input("xq.scale", "xq.scale")->tensor()}};
      xq.format = "per_token_int8";
      xq.part_count = 2;
      xq.parts = xq_parts.data();
      args.xq = &xq;
    }
    args.lora = lora();
    args.y = view(output("y", dtype_named(params_["y_dtype"].get<std::string>()), stride("y")));
    if (has("expected.preactivation")) args.preactivation = view(output("preactivation", dtype_named(params_.value("preactivation_dtype", "f32"))));
    args.h = view(output("h", SQ_F32));
    call([&](sq_error* e) { return instance_.linear().linear_forward(instance_.get(), &args, e); });
  }

  void linear_backward() {
    auto args = sized<sq_linear_backward_args>();
    args.activation = params_["activation"].get<std::int32_t>();
    args.compute = params_["compute"].get<std::int32_t>();
    args.accumulate = params_["accumulate"].get<std::uint32_t>();
    args.weight = weight();
    args.dy = view(input("dy", "dy"));
    args.preactivation = view(input("preactivation", "preactivation"));
    args.x = view(input("x", "x"));
    args.lora = lora();
    args.h = view(input("h", "h"));
    const std::int32_t dx_dtype = params_.contains("dx_dtype") ? dtype_named(params_["dx_dtype"].get<std::string>()) : SQ_F32;
    args.dx = view(output("dx", dx_dtype, stride("dx")));
    args.dx_lora = view(output("dx_lora", dx_dtype, stride("dx_lora")));
    args.da_t = view(output("da_t", SQ_F32));
    args.db_t = view(output("db_t", SQ_F32));
    call([&](sq_error* e) { return instance_.linear().linear_backward(instance_.get(), &args, e); });
  }

  void quantize_activation() {
    auto args = sized<sq_quantize_activation_args>();
    args.producer = params_["producer"].get<std::int32_t>();
    args.epsilon = params_["epsilon"].get<float>();
    args.x = view(input("x", "x"));
    args.shift = view(input("shift", "shift"));
    args.scale = view(input("scale", "scale"));
    const sq_part parts[] = {{"q", *output("q", SQ_I8)->tensor()}, {"scale", *output("scale", SQ_F32)->tensor()}};
    args.format = "per_token_int8";
    args.out = parts;
    args.out_count = 2;
    call([&](sq_error* e) { return instance_.linear().quantize_activation(instance_.get(), &args, e); });
  }

  void numeric_guard() {
    auto args = sized<sq_numeric_guard_args>();
    args.x = view(input("x", "x"));
    args.counts = view(output("counts", SQ_I64));
    call([&](sq_error* e) { return instance_.linear().numeric_guard(instance_.get(), &args, e); });
  }

  void rms_norm_rope_forward() {
    auto args = sized<sq_rms_norm_rope_forward_args>();
    args.epsilon = params_["epsilon"].get<float>();
    args.x = view(input("x", "x"));
    args.weight = view(input("weight", "weight"));
    args.rope = view(input("rope", "rope"));
    args.y = view(output("y", dtype_named(params_["y_dtype"].get<std::string>()), stride("y")));
    call([&](sq_error* e) { return instance_.linear().rms_norm_rope_forward(instance_.get(), &args, e); });
  }

  void rms_norm_rope_backward() {
    auto args = sized<sq_rms_norm_rope_backward_args>();
    args.epsilon = params_["epsilon"].get<float>();
    args.dy = view(input("dy", "dy"));
    args.x = view(input("x", "x"));
    args.weight = view(input("weight", "weight"));
    args.rope = view(input("rope", "rope"));
    args.dx = view(output("dx", dtype_named(params_["dx_dtype"].get<std::string>()), stride("dx")));
    call([&](sq_error* e) { return instance_.linear().rms_norm_rope_backward(instance_.get(), &args, e); });
  }

  struct Output {
    std::string name;
    std::unique_ptr<Guarded> tensor;
  };
  Trial& trial_;
  const json& vector_;
  const json& params_;
  std::map<std::string, FileTensor> tensors_;
  Instance& instance_;
  std::vector<std::unique_ptr<Guarded>> inputs_;
  std::vector<Output> outputs_;
  WeightView view_{};
  sq_lora lora_{};
};

int gate_of(const json& vector) {
  const std::string op = vector["op"].get<std::string>();
  if (op == "quantize" || op == "dequantize") return 2;
  if (op == "numeric_guard") return 15;
  return op.starts_with("linear") && vector["shapes"].contains("r") ? 4 : 5;
}

/// Groups, operation and activation dtype that the vector needs.
std::vector<std::string> needs_of(const json& vector) {
  const std::string op = vector["op"].get<std::string>();
  std::vector<std::string> needs = {"linear", "operation:" + op};
  if (gate_of(vector) == 4) needs.push_back("lora");
  if (op.starts_with("linear") || op == "quantize_activation" || op.starts_with("rms_norm_rope")) {
    const auto tensors = read_tensors(embedded("linear/cases/" + vector["name"].get<std::string>() + ".safetensors"));
    // Int8 activations are optional: rounding class R4 says whether they are offered.
    if (tensors.contains("xq.q") || vector["params"].value("compute", 0) == SQ_COMPUTE_W8A8) needs.push_back("class:R4");
    for (const char* name : {"x", "dy"})
      if (const auto found = tensors.find(name); found != tensors.end()) {
        const std::string& dtype = found->second.dtype;
        needs.push_back(dtype == "F32" ? "dtype:f32" : dtype == "BF16" ? "dtype:bf16" : "dtype:f16");
        break;
      }
  }
  return needs;
}

}  // namespace

void add_linear_vectors(Cases& cases, int gate) {
  for (const json& vector : vector_index()["cases"])
    if (gate_of(vector) == gate)
      cases.push_back({gate, "vector." + vector["name"].get<std::string>(), Kind::vector, vector["requirements"].get<std::vector<std::string>>(), needs_of(vector),
                       vector["hunts"].get<std::string>(), [&vector](Trial& t) { VectorRun(t, vector).run(); }});
}

}  // namespace squareq::gates
