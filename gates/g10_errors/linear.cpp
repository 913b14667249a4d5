// Wrong arguments of linear_forward and linear_backward, one at a time.
#include <cmath>
#include <functional>

#include "gates/g10_errors/g10_errors.hpp"
#include "gates/harness/linear.hpp"

namespace squareq::gates::g10 {
namespace {

constexpr const char* layer_name = "blocks.7.attn.to_q";

/// A call that is right in everything, and the parts that a fault may change. M 3, K 64, N 16, rank 2.
struct Call {
  Problem p;
  DirectWeight direct;
  Guarded y, pre_out, h_out, dy, pre_in, h_in, dx, dx_lora, da_t, db_t, other_x;
  sq_lora lora;
  sq_linear_forward_args forward;
  sq_linear_backward_args backward;
  std::vector<std::unique_ptr<Guarded>> extra;
  std::vector<std::unique_ptr<sq_tensor>> views;

  explicit Call(Trial& trial)
      : p(make_problem(trial)), direct(p.layer), y("y", Role::out, SQ_F32, {3, 16}), pre_out("preactivation", Role::out, SQ_F32, {3, 16}), h_out("h", Role::out, SQ_F32, {3, 2}),
        dy("dy", Role::in, SQ_F32, {3, 16}), pre_in("preactivation", Role::in, SQ_F32, {3, 16}), h_in("h", Role::in, SQ_F32, {3, 2}), dx("dx", Role::out, SQ_F32, {3, 64}),
        dx_lora("dx_lora", Role::out, SQ_F32, {3, 64}), da_t("da_t", Role::out, SQ_F32, {2, 64}), db_t("db_t", Role::out, SQ_F32, {16, 2}), other_x("lora.x", Role::in, SQ_F32, {3, 64}) {
    lora = sized<sq_lora>();
    lora.scaling = 0.5f;
    lora.a_t = p.adapter->a_t.tensor();
    lora.b_t = p.adapter->b_t.tensor();
    forward = sized<sq_linear_forward_args>();
    forward.weight = direct.ref();
    forward.x = p.x.tensor();
    forward.lora = &lora;
    forward.y = y.tensor();
    forward.preactivation = pre_out.tensor();
    forward.h = h_out.tensor();
    backward = sized<sq_linear_backward_args>();
    backward.activation = SQ_ACT_SILU;
    backward.weight = direct.ref();
    backward.dy = dy.tensor();
    backward.preactivation = pre_in.tensor();
    backward.x = p.x.tensor();
    backward.lora = &lora;
    backward.h = h_in.tensor();
    backward.dx = dx.tensor();
    backward.da_t = da_t.tensor();
    backward.db_t = db_t.tensor();
  }
  static Problem make_problem(Trial& trial) {
    Random random = trial.random("data");
    Problem p(3, Layer(layer_name, 16, 64, 64, true), SQ_F32);
    fill(p, random, {.rank = 2});
    return p;
  }
  const sq_tensor* tensor(std::int32_t dtype, std::vector<std::int64_t> shape) {
    return extra.emplace_back(std::make_unique<Guarded>("given", Role::inout, dtype, std::move(shape)))->tensor();
  }
  /// A copy of a view with something changed.
  const sq_tensor* changed(const Guarded& of, const std::function<void(sq_tensor&)>& change) {
    sq_tensor& view = *views.emplace_back(std::make_unique<sq_tensor>(*of.tensor()));
    change(view);
    return &view;
  }
};

struct Fault {
  const char* slug;
  bool in_backward;
  std::vector<Code> codes;
  const char* requirement;
  std::vector<std::string_view> names;  // beside the layer's name
  void (*plant)(Call&);

  /// An address, a stride, a device or a size below 0 belongs to a view in this process: a copy that travels does not have it (SQ-ADP-050).
  bool of_view() const {
    const std::string_view s = slug;
    return std::string_view(requirement) == "SQ-LIN-042" || codes.front() == Code::CALL_DEVICE || codes.front() == Code::CALL_ALIGN || s == "x_no_data" || s == "negative_dimension";
  }
};

const std::vector<Fault>& faults() {
  static const std::vector<Fault> all = {
      // shapes
      {"x_width", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"x", "65", "64"}, [](Call& c) { c.forward.x = c.tensor(SQ_F32, {3, 65}); }},
      {"x_rank", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"x"}, [](Call& c) { c.forward.x = c.tensor(SQ_F32, {64}); }},
      {"y_rows", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"y", "4", "3"}, [](Call& c) { c.forward.y = c.tensor(SQ_F32, {4, 16}); }},
      {"y_width", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"y", "17", "16"}, [](Call& c) { c.forward.y = c.tensor(SQ_F32, {3, 17}); }},
      {"preactivation_shape", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"preactivation", "15", "16"}, [](Call& c) { c.forward.preactivation = c.tensor(SQ_F32, {3, 15}); }},
      {"h_shape", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"h", "3", "2"}, [](Call& c) { c.forward.h = c.tensor(SQ_F32, {3, 3}); }},
      {"a_rank", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"3", "2"}, [](Call& c) { c.lora.a_t = c.tensor(SQ_F32, {3, 64}); }},
      {"a_width", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"63", "64"}, [](Call& c) { c.lora.a_t = c.tensor(SQ_F32, {2, 63}); }},
      {"b_rows", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"15", "16"}, [](Call& c) { c.lora.b_t = c.tensor(SQ_F32, {15, 2}); }},
      {"rank_0", false, {Code::CALL_SHAPE}, "SQ-LOR-014", {"0"}, [](Call& c) { c.lora.a_t = c.tensor(SQ_F32, {0, 64}), c.lora.b_t = c.tensor(SQ_F32, {16, 0}), c.forward.h = nullptr; }},
      {"own_x_shape", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"2", "3"}, [](Call& c) { c.lora.x = c.tensor(SQ_F32, {2, 64}); }},
      {"scale_length", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"scale", "15", "16"}, [](Call& c) { c.direct.parts()[1].tensor.shape[0] = 15; }},
      {"bias_length", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"bias", "17", "16"}, [](Call& c) { c.direct.parts()[3].tensor.shape[0] = 17; }},
      {"qweight_rows", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"qweight", "15", "16"}, [](Call& c) { c.direct.weight().out_features = 15; }},
      {"qweight_columns", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"qweight", "64", "65"}, [](Call& c) { c.direct.weight().in_features = 65; }},
      {"x_column_stride", false, {Code::CALL_SHAPE}, "SQ-LIN-042", {"x", "2"}, [](Call& c) { c.forward.x = c.changed(c.p.x, [](sq_tensor& t) { t.strides[1] = 2; }); }},
      {"y_column_stride", false, {Code::CALL_SHAPE}, "SQ-LIN-042", {"y", "2"}, [](Call& c) { c.forward.y = c.changed(c.y, [](sq_tensor& t) { t.strides[1] = 2; }); }},
      {"y_rows_overlap", false, {Code::CALL_SHAPE}, "SQ-LIN-042", {"y", "8"}, [](Call& c) { c.forward.y = c.changed(c.y, [](sq_tensor& t) { t.strides[0] = 8; }); }},
      {"y_rows_equal", false, {Code::CALL_SHAPE}, "SQ-LIN-042", {"y", "0"}, [](Call& c) { c.forward.y = c.changed(c.y, [](sq_tensor& t) { t.strides[0] = 0; }); }},
      {"negative_dimension", false, {Code::CALL_SHAPE}, "SQ-LIN-041", {"-3"}, [](Call& c) { c.forward.x = c.changed(c.p.x, [](sq_tensor& t) { t.shape[0] = -3; }); }},
      // dtypes
      {"x_f64", false, {Code::CALL_DTYPE}, "SQ-LIN-040", {"x", "f64|float64|double", "f32|float32"}, [](Call& c) { c.forward.x = c.tensor(SQ_F64, {3, 64}); }},
      {"y_i32", false, {Code::CALL_DTYPE}, "SQ-LIN-040", {"y", "i32|int32", "f32|float32"}, [](Call& c) { c.forward.y = c.tensor(SQ_I32, {3, 16}); }},
      {"y_narrower", false, {Code::CALL_DTYPE}, "SQ-LIN-040", {"y", "bf16|bfloat16", "f32|float32"}, [](Call& c) { c.forward.y = c.tensor(SQ_BF16, {3, 16}); }},
      {"a_bf16", false, {Code::CALL_DTYPE}, "SQ-LIN-040", {"bf16|bfloat16", "f32|float32"}, [](Call& c) { c.lora.a_t = c.tensor(SQ_BF16, {2, 64}); }},
      {"h_bf16", false, {Code::CALL_DTYPE}, "SQ-LIN-040", {"h", "bf16|bfloat16", "f32|float32"}, [](Call& c) { c.forward.h = c.tensor(SQ_BF16, {3, 2}); }},
      {"own_x_dtype", false, {Code::CALL_DTYPE}, "SQ-LIN-040", {"bf16|bfloat16", "f32|float32"}, [](Call& c) { c.lora.x = c.tensor(SQ_BF16, {3, 64}); }},
      {"qweight_u8", false, {Code::CALL_DTYPE}, "SQ-LIN-040", {"qweight", "u8|uint8", "i8|int8"}, [](Call& c) { c.direct.parts()[0].tensor.dtype = SQ_U8; }},
      {"scale_f16", false, {Code::CALL_DTYPE}, "SQ-LIN-040", {"scale", "f16|float16|half", "f32|float32"}, [](Call& c) { c.direct.parts()[1].tensor.dtype = SQ_F16; }},
      {"zero_point_i32", false, {Code::CALL_DTYPE}, "SQ-LIN-040", {"zero_point", "i32|int32", "f32|float32"}, [](Call& c) { c.direct.parts()[2].tensor.dtype = SQ_I32; }},
      {"bias_bf16", false, {Code::CALL_DTYPE}, "SQ-LIN-040", {"bias", "bf16|bfloat16", "f32|float32"}, [](Call& c) { c.direct.parts()[3].tensor.dtype = SQ_BF16; }},
      // places and pointers
      {"x_device", false, {Code::CALL_DEVICE}, "SQ-LIN-043", {"x", "cuda|cpu"}, [](Call& c) { c.forward.x = c.changed(c.p.x, [](sq_tensor& t) { t.device.kind = t.device.kind == SQ_CPU ? SQ_CUDA : SQ_CPU; }); }},
      {"scale_device", false, {Code::CALL_DEVICE}, "SQ-LIN-043", {"scale", "cuda|cpu"}, [](Call& c) { c.direct.parts()[1].tensor.device.kind ^= 1; }},
      {"bias_device", false, {Code::CALL_DEVICE}, "SQ-LIN-043", {"bias", "cuda|cpu"}, [](Call& c) { c.direct.parts()[3].tensor.device.kind ^= 1; }},
      {"x_alignment", false, {Code::CALL_ALIGN}, "SQ-LIN-043", {"x", "4"}, [](Call& c) { c.forward.x = c.changed(c.p.x, [](sq_tensor& t) { t.data = static_cast<char*>(t.data) + 2; }); }},
      {"y_alignment", false, {Code::CALL_ALIGN}, "SQ-LIN-043", {"y", "4"}, [](Call& c) { c.forward.y = c.changed(c.y, [](sq_tensor& t) { t.data = static_cast<char*>(t.data) + 1; }); }},
      {"x_missing", false, {Code::CALL_NULL, Code::CALL_VALUE}, "SQ-LIN-043", {"x"}, [](Call& c) { c.forward.x = nullptr; }},
      {"y_missing", false, {Code::CALL_NULL}, "SQ-LIN-043", {"y"}, [](Call& c) { c.forward.y = nullptr; }},
      {"x_no_data", false, {Code::CALL_NULL}, "SQ-LIN-043", {"x"}, [](Call& c) { c.forward.x = c.changed(c.p.x, [](sq_tensor& t) { t.data = nullptr; }); }},
      {"a_missing", false, {Code::CALL_NULL}, "SQ-LIN-043", {}, [](Call& c) { c.lora.a_t = nullptr; }},
      {"b_missing", false, {Code::CALL_NULL}, "SQ-LIN-043", {}, [](Call& c) { c.lora.b_t = nullptr; }},
      // the weight's parts
      {"no_qweight", false, {Code::CALL_PART}, "SQ-LIN-044", {"qweight"}, [](Call& c) { c.direct.weight().parts += 1, c.direct.weight().part_count -= 1; }},
      {"unknown_part", false, {Code::CALL_VALUE}, "SQ-LIN-044", {"g_idx"}, [](Call& c) { c.direct.parts()[3].name = "g_idx"; }},
      {"part_twice", false, {Code::CALL_VALUE}, "SQ-LIN-044", {"scale"}, [](Call& c) { c.direct.parts()[2] = c.direct.parts()[1]; }},
      {"unknown_format", false, {Code::CALL_UNSUPPORTED}, "SQ-LIN-044", {"bp4_v9", "bp8_v2"}, [](Call& c) { c.direct.weight().format = "bp4_v9"; }},
      {"zero_point_1", false, {Code::DT_ZP_NONZERO}, "SQ-QNT-015", {"1"}, [](Call& c) { c.p.layer.zero_point.set(5, 1.0); }},
      // values
      {"unknown_activation", false, {Code::CALL_VALUE}, "SQ-LIN-045", {"99"}, [](Call& c) { c.forward.activation = 99; }},
      {"unknown_compute", false, {Code::CALL_VALUE}, "SQ-LIN-045", {"77"}, [](Call& c) { c.forward.compute = 77; }},
      {"scaling_nan", false, {Code::CALL_VALUE}, "SQ-LIN-045", {"nan"}, [](Call& c) { c.lora.scaling = NAN; }},
      {"scaling_infinite", false, {Code::CALL_VALUE}, "SQ-LIN-045", {"inf"}, [](Call& c) { c.lora.scaling = INFINITY; }},
      {"h_without_branch", false, {Code::CALL_VALUE}, "SQ-LOR-015", {"h"}, [](Call& c) { c.forward.lora = nullptr; }},
      // backward
      {"dy_width", true, {Code::CALL_SHAPE}, "SQ-LIN-041", {"dy", "15", "16"}, [](Call& c) { c.backward.dy = c.tensor(SQ_F32, {3, 15}); }},
      {"backward_x_rows", true, {Code::CALL_SHAPE}, "SQ-LIN-041", {"x", "4", "3"}, [](Call& c) { c.backward.x = c.tensor(SQ_F32, {4, 64}); }},
      {"dx_shape", true, {Code::CALL_SHAPE}, "SQ-LIN-041", {"dx", "63", "64"}, [](Call& c) { c.backward.dx = c.tensor(SQ_F32, {3, 63}); }},
      {"dx_dtype", true, {Code::CALL_DTYPE}, "SQ-LIN-040", {"dx", "bf16|bfloat16", "f32|float32"}, [](Call& c) { c.backward.dx = c.tensor(SQ_BF16, {3, 64}); }},
      {"da_shape", true, {Code::CALL_SHAPE}, "SQ-LIN-041", {"da_t", "64", "2"}, [](Call& c) { c.backward.da_t = c.tensor(SQ_F32, {64, 2}); }},
      {"da_bf16", true, {Code::CALL_DTYPE}, "SQ-LIN-040", {"da_t", "bf16|bfloat16"}, [](Call& c) { c.backward.da_t = c.tensor(SQ_BF16, {2, 64}); }},
      {"db_shape", true, {Code::CALL_SHAPE}, "SQ-LIN-041", {"db_t", "2", "16"}, [](Call& c) { c.backward.db_t = c.tensor(SQ_F32, {2, 16}); }},
      {"saved_h_shape", true, {Code::CALL_SHAPE}, "SQ-LIN-041", {"h", "3", "2"}, [](Call& c) { c.backward.h = c.tensor(SQ_F32, {3, 3}); }},
      {"dx_rows_overlap", true, {Code::CALL_SHAPE}, "SQ-LIN-042", {"dx", "32"}, [](Call& c) { c.backward.dx = c.changed(c.dx, [](sq_tensor& t) { t.strides[0] = 32; }); }},
      {"no_dy", true, {Code::CALL_NULL}, "SQ-LIN-043", {"dy"}, [](Call& c) { c.backward.dy = nullptr; }},
      {"no_preactivation", true, {Code::CALL_NULL}, "SQ-LIN-043", {"preactivation"}, [](Call& c) { c.backward.preactivation = nullptr; }},
      {"da_without_x", true, {Code::CALL_NULL}, "SQ-LOR-015", {"x"}, [](Call& c) { c.backward.x = nullptr; }},
      {"db_without_h_and_x", true, {Code::CALL_NULL}, "SQ-LOR-015", {}, [](Call& c) { c.backward.x = nullptr, c.backward.h = nullptr, c.backward.da_t = nullptr; }},
      {"da_without_branch", true, {Code::CALL_VALUE}, "SQ-LOR-015", {}, [](Call& c) { c.backward.lora = nullptr, c.backward.h = nullptr, c.backward.db_t = nullptr; }},
      {"dx_lora_without_own_x", true, {Code::CALL_VALUE}, "SQ-LOR-015", {"dx_lora"}, [](Call& c) { c.backward.dx_lora = c.dx_lora.tensor(); }},
      {"backward_activation", true, {Code::CALL_VALUE}, "SQ-LIN-045", {"-1"}, [](Call& c) { c.backward.activation = -1; }},
      {"backward_zero_point", true, {Code::DT_ZP_NONZERO}, "SQ-QNT-015", {}, [](Call& c) { c.p.layer.zero_point.set(0, -1.0); }},
  };
  return all;
}

void run_fault(Trial& trial, const Fault& fault) {
  Call call(trial);
  fault.plant(call);
  Instance& instance = trial.instance();
  const std::string what = std::string(fault.in_backward ? "linear_backward" : "linear_forward") + " with the fault '" + fault.slug + "'";
  for (auto& extra : call.extra) extra->arm();
  std::initializer_list<Guarded*> all = {&call.p.x, &call.p.layer.qweight, &call.p.layer.scale, &call.p.layer.zero_point, &call.p.layer.bias, &call.p.adapter->a_t, &call.p.adapter->b_t, &call.y, &call.pre_out,
                                         &call.h_out, &call.dy, &call.pre_in, &call.h_in, &call.dx, &call.dx_lora, &call.da_t, &call.db_t};
  const sq_error e = call_refused(what, fault.codes, all, [&](sq_error* error) {
    return fault.in_backward ? instance.linear().linear_backward(instance.get(), &call.backward, error) : instance.linear().linear_forward(instance.get(), &call.forward, error);
  });
  for (auto& extra : call.extra)
    if (const std::string damage = extra->damage_after_refusal(); !damage.empty()) fail(what + ": " + damage);
  must_name(what, e, {layer_name});
  must_name(what, e, fault.names);
}

}  // namespace

void add_linear(Cases& cases) {
  for (const Fault& fault : faults()) {
    std::vector<std::string> needs = {"linear", "lora", "operation:linear_forward", "operation:linear_backward"};
    if (fault.of_view()) needs.push_back("in_process");
    cases.push_back({10, std::string("errors.") + (fault.in_backward ? "backward." : "forward.") + fault.slug, Kind::vector, {fault.requirement, "SQ-ERR-007", "SQ-LIN-046", "SQ-CNV-003"}, needs,
                     "a wrong argument accepted, refused under another code, or without both values", [&fault](Trial& t) { run_fault(t, fault); }});
  }
}

}  // namespace squareq::gates::g10
