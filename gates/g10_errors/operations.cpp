// Wrong arguments of quantize, dequantize, quantize_activation and rms_norm_rope.
#include <cmath>
#include <limits>

#include "gates/g10_errors/g10_errors.hpp"
#include "gates/harness/quantize_call.hpp"
#include "squareq/tensor.hpp"

namespace squareq::gates::g10 {
namespace {

/// A right quantize call: W [6, 40], padded to 64.
struct QuantizeCall {
  Guarded w{"w", Role::in, SQ_F32, {6, 40}}, q{"qweight", Role::out, SQ_I8, {6, 64}}, scale{"scale", Role::out, SQ_F32, {6}}, zero{"zero_point", Role::out, SQ_F32, {6}};
  std::vector<sq_part> parts;
  std::uint64_t floored = 4711;
  sq_tensor view{};
  sq_quantize_args args;

  explicit QuantizeCall(Trial& trial) {
    Random random = trial.random("w");
    w.fill([&] { return random.normal(); });
    parts = {{"qweight", *q.tensor()}, {"scale", *scale.tensor()}, {"zero_point", *zero.tensor()}};
    view = *w.tensor();
    args = sized<sq_quantize_args>();
    args.pack_k = 64;
    args.format = "bp8_v2";
    args.name = "blocks.3.mlp.fc1";
    args.w = &view;
    args.out = parts.data();
    args.out_count = 3;
    args.floored_rows = &floored;
  }
};

struct QuantizeFault {
  const char* slug;
  std::vector<Code> codes;
  const char* requirement;
  std::vector<std::string_view> names;
  void (*plant)(QuantizeCall&);
};

const std::vector<QuantizeFault>& quantize_faults() {
  static const std::vector<QuantizeFault> all = {
      {"nan", {Code::DT_WEIGHT_NONFINITE}, "SQ-QNT-007", {"5", "39"}, [](QuantizeCall& c) { c.w.set(5, 39, NAN); }},
      {"minus_inf", {Code::DT_WEIGHT_NONFINITE}, "SQ-QNT-007", {"2", "17"}, [](QuantizeCall& c) { c.w.set(2, 17, -INFINITY); }},
      {"scale_overflow", {Code::DT_WEIGHT_NONFINITE}, "SQ-QNT-008", {"5", "23"}, [](QuantizeCall& c) { c.w.set(5, 23, static_cast<double>(std::numeric_limits<float>::max())); }},
      {"w_dtype", {Code::CALL_DTYPE}, "SQ-LIN-040", {"w", "i32|int32"}, [](QuantizeCall& c) { c.view.dtype = SQ_I32; }},
      {"w_rank", {Code::CALL_SHAPE}, "SQ-LIN-041", {"w"}, [](QuantizeCall& c) { c.view.rank = 1; }},
      {"w_column_stride", {Code::CALL_SHAPE}, "SQ-LIN-042", {"w", "2"}, [](QuantizeCall& c) { c.view.shape[1] = 20, c.view.strides[1] = 2; }},
      {"no_w", {Code::CALL_NULL}, "SQ-LIN-043", {"w"}, [](QuantizeCall& c) { c.args.w = nullptr; }},
      {"no_scale", {Code::CALL_PART}, "SQ-LIN-044", {"scale"}, [](QuantizeCall& c) { c.parts.erase(c.parts.begin() + 1), c.args.out = c.parts.data(), c.args.out_count = 2; }},
      {"no_zero_point", {Code::CALL_PART}, "SQ-LIN-044", {"zero_point"}, [](QuantizeCall& c) { c.args.out_count = 2; }},
      {"unpadded_out", {Code::CALL_SHAPE}, "SQ-QNT-001", {"qweight", "64"}, [](QuantizeCall& c) { c.parts[0].tensor.shape[1] = 40; }},
      {"scale_length", {Code::CALL_SHAPE}, "SQ-LIN-041", {"scale", "5", "6"}, [](QuantizeCall& c) { c.parts[1].tensor.shape[0] = 5; }},
      {"codes_u8", {Code::CALL_DTYPE}, "SQ-LIN-040", {"qweight", "u8|uint8", "i8|int8"}, [](QuantizeCall& c) { c.parts[0].tensor.dtype = SQ_U8; }},
      {"scale_bf16", {Code::CALL_DTYPE}, "SQ-LIN-040", {"scale", "bf16|bfloat16", "f32|float32"}, [](QuantizeCall& c) { c.parts[1].tensor.dtype = SQ_BF16; }},
      {"format", {Code::CALL_UNSUPPORTED}, "SQ-LIN-044", {"nf4"}, [](QuantizeCall& c) { c.args.format = "nf4"; }},
  };
  return all;
}

void run_quantize(Trial& trial, const QuantizeFault& fault) {
  QuantizeCall call(trial);
  fault.plant(call);
  Instance& instance = trial.instance();
  const std::string what = std::string("quantize with the fault '") + fault.slug + "'";
  const sq_error e = call_refused(what, fault.codes, {&call.w, &call.q, &call.scale, &call.zero}, [&](sq_error* error) { return instance.linear().quantize(instance.get(), &call.args, error); });
  must_name(what, e, {"blocks.3.mlp.fc1"});
  must_name(what, e, fault.names);
  require(call.floored == 4711, what + ": floored_rows was written");
}

void run_dequantize(Trial& trial) {
  Random random = trial.random("data");
  Problem p(1, Layer("blocks.3.mlp.fc2", 6, 40, 64, false), SQ_F32);
  fill(p, random, {});
  Instance& instance = trial.instance();
  const DirectWeight direct(p.layer);
  Guarded out("out", Role::out, SQ_F32, {4, 40}), wide("out", Role::out, SQ_F32, {4, 64}), integer("out", Role::out, SQ_I8, {4, 40});
  const auto refuse = [&](const std::string& what, const std::vector<Code>& codes, const Guarded* target, std::int64_t first, const std::vector<std::string_view>& names) {
    auto args = sized<sq_dequantize_args>();
    args.weight = direct.ref();
    args.first_row = first;
    args.out = target ? target->tensor() : nullptr;
    const sq_error e = call_refused("dequantize with " + what, codes, {&p.layer.qweight, &p.layer.scale, &out, &wide, &integer}, [&](sq_error* error) { return instance.linear().dequantize(instance.get(), &args, error); });
    must_name("dequantize with " + what, e, {"blocks.3.mlp.fc2"});
    must_name("dequantize with " + what, e, names);
  };
  refuse("rows past the end", {Code::CALL_SHAPE}, &out, 3, {"3", "6"});
  refuse("a negative first row", {Code::CALL_SHAPE}, &out, -1, {"-1"});
  refuse("a first row that overflows", {Code::CALL_SHAPE}, &out, std::numeric_limits<std::int64_t>::max(), {});
  refuse("padded columns asked for", {Code::CALL_SHAPE}, &wide, 0, {"64", "40"});
  refuse("integers asked for", {Code::CALL_DTYPE}, &integer, 0, {"i8|int8"});
  refuse("no output", {Code::CALL_NULL}, nullptr, 0, {"out"});
  p.layer.zero_point.set(1, 0.5);
  refuse("a zero point", {Code::DT_ZP_NONZERO}, &out, 0, {});
}

void run_quantize_activation(Trial& trial) {
  Instance& instance = trial.instance();
  Guarded x("x", Role::in, SQ_F32, {4, 32}), shift("shift", Role::in, SQ_F32, {2, 32}), scale("scale", Role::in, SQ_F32, {2, 32}), three("shift", Role::in, SQ_F32, {3, 32}),
      q("q", Role::out, SQ_I8, {4, 32}), xs("scale", Role::out, SQ_F32, {4}), short_scale("scale", Role::out, SQ_F32, {3}), codes("x", Role::in, SQ_I8, {4, 32});
  struct Call {
    sq_quantize_activation_args args = sized<sq_quantize_activation_args>();
    sq_part parts[2];
  };
  const auto refuse = [&](const std::string& what, const std::vector<Code>& wanted, const auto& change, const std::vector<std::string_view>& names) {
    Call call;
    call.parts[0] = {"q", *q.tensor()};
    call.parts[1] = {"scale", *xs.tensor()};
    call.args.format = "per_token_int8";
    call.args.x = x.tensor();
    call.args.out = call.parts;
    call.args.out_count = 2;
    change(call);
    const sq_error e = call_refused("quantize_activation with " + what, wanted, {&x, &shift, &scale, &three, &q, &xs, &short_scale, &codes},
                                    [&](sq_error* error) { return instance.linear().quantize_activation(instance.get(), &call.args, error); });
    must_name("quantize_activation with " + what, e, names);
  };
  refuse("no x", {Code::CALL_NULL}, [](Call& c) { c.args.x = nullptr; }, {"x"});
  refuse("x of codes", {Code::CALL_DTYPE}, [&](Call& c) { c.args.x = codes.tensor(); }, {"x", "i8|int8"});
  refuse("an unknown producer", {Code::CALL_VALUE}, [](Call& c) { c.args.producer = 42; }, {"42"});
  refuse("an unknown format", {Code::CALL_UNSUPPORTED, Code::CALL_VALUE}, [](Call& c) { c.args.format = "per_block_int4"; }, {"per_block_int4"});
  refuse("no scale part", {Code::CALL_PART}, [](Call& c) { c.args.out_count = 1; }, {"scale"});
  refuse("a scale part of 3 rows", {Code::CALL_SHAPE}, [&](Call& c) { c.parts[1].tensor = *short_scale.tensor(); }, {"3", "4"});
  refuse("modulation without shift", {Code::CALL_NULL}, [&](Call& c) { c.args.producer = SQ_PRODUCER_LAYERNORM_MODULATE, c.args.scale = scale.tensor(), c.args.epsilon = 1e-6f; }, {"shift"});
  refuse("3 groups for 4 rows", {Code::CALL_SHAPE}, [&](Call& c) { c.args.producer = SQ_PRODUCER_LAYERNORM_MODULATE, c.args.shift = three.tensor(), c.args.scale = three.tensor(), c.args.epsilon = 1e-6f; }, {"3", "4"});
}

/// x [4, 2 heads of 16] of BF16 with a table of 2 rows. Both directions refuse what both are given, and name it.
struct HeadsCall {
  Guarded x{"x", Role::in, SQ_BF16, {4, 32}}, dy{"dy", Role::in, SQ_BF16, {4, 32}}, weight{"weight", Role::in, SQ_F32, {16}}, rope{"rope", Role::in, SQ_F32, {2, 16}}, y{"y", Role::out, SQ_BF16, {4, 32}},
      dx{"dx", Role::out, SQ_BF16, {4, 32}};
  sq_tensor x_view = *x.tensor(), dy_view = *dy.tensor(), weight_view = *weight.tensor(), rope_view = *rope.tensor(), y_view = *y.tensor(), dx_view = *dx.tensor();
  sq_rms_norm_rope_forward_args forward = sized<sq_rms_norm_rope_forward_args>();
  sq_rms_norm_rope_backward_args backward = sized<sq_rms_norm_rope_backward_args>();

  HeadsCall() {
    for (Guarded* t : {&x, &dy, &weight, &rope}) t->fill(0.5);
    forward.epsilon = backward.epsilon = 1e-6f;
    forward.x = backward.x = &x_view, forward.weight = backward.weight = &weight_view, forward.rope = backward.rope = &rope_view;
    forward.y = &y_view, backward.dy = &dy_view, backward.dx = &dx_view;
  }
};

struct HeadsFault {
  const char* what;
  std::vector<Code> codes;
  std::vector<std::string_view> names;
  void (*plant)(HeadsCall&);
  bool forward = true, backward = true;
};

void run_heads(Trial& trial, const std::vector<HeadsFault>& faults) {
  Instance& instance = trial.instance();
  for (const HeadsFault& fault : faults) {
    HeadsCall c;
    fault.plant(c);
    const auto refuse = [&](const char* name, const auto& operation) {
      const std::string what = std::string(name) + " with " + fault.what;
      must_name(what, call_refused(what, fault.codes, {&c.x, &c.dy, &c.weight, &c.rope, &c.y, &c.dx}, operation), fault.names);
    };
    if (fault.forward) refuse("rms_norm_rope_forward", [&](sq_error* e) { return instance.linear().rms_norm_rope_forward(instance.get(), &c.forward, e); });
    if (fault.backward) refuse("rms_norm_rope_backward", [&](sq_error* e) { return instance.linear().rms_norm_rope_backward(instance.get(), &c.backward, e); });
  }
}

void run_rms_norm_rope(Trial& trial) {
  run_heads(trial, {
      {"no x", {Code::CALL_NULL}, {"x"}, [](HeadsCall& c) { c.forward.x = c.backward.x = nullptr; }},
      {"no weight", {Code::CALL_NULL}, {"weight"}, [](HeadsCall& c) { c.forward.weight = c.backward.weight = nullptr; }},
      {"no y", {Code::CALL_NULL}, {"y"}, [](HeadsCall& c) { c.forward.y = nullptr; }, true, false},
      {"no dy", {Code::CALL_NULL}, {"dy"}, [](HeadsCall& c) { c.backward.dy = nullptr; }, false, true},
      {"no dx", {Code::CALL_NULL}, {"dx"}, [](HeadsCall& c) { c.backward.dx = nullptr; }, false, true},
      {"x of codes", {Code::CALL_DTYPE}, {"x", "i8|int8"}, [](HeadsCall& c) { c.x_view.dtype = SQ_I8; }},
      {"a table of halves", {Code::CALL_DTYPE}, {"rope", "f16|float16", "f32|float32"}, [](HeadsCall& c) { c.rope_view.dtype = SQ_F16; }},
      {"y of another dtype", {Code::CALL_DTYPE}, {"y", "f16|float16", "bf16|bfloat16"}, [](HeadsCall& c) { c.y_view.dtype = SQ_F16; }, true, false},
      {"dx of another dtype", {Code::CALL_DTYPE}, {"dx", "f16|float16", "bf16|bfloat16"}, [](HeadsCall& c) { c.dx_view.dtype = SQ_F16; }, false, true},
      {"heads that do not fill a row", {Code::CALL_SHAPE}, {"x", "32", "12"}, [](HeadsCall& c) { c.weight_view.shape[0] = 12, c.forward.rope = c.backward.rope = nullptr; }},
      {"a table of 8 columns", {Code::CALL_SHAPE}, {"rope", "8", "16"}, [](HeadsCall& c) { c.rope_view.shape[1] = 8; }},
      {"a table of 3 rows", {Code::CALL_SHAPE}, {"rope", "3", "4"}, [](HeadsCall& c) { c.rope_view = *c.weight.tensor(), c.rope_view.rank = 2, c.rope_view.shape[0] = 3, c.rope_view.shape[1] = 4, c.rope_view.strides[0] = 4, c.rope_view.strides[1] = 1, c.weight_view.shape[0] = 4; }},
      {"y of 3 rows", {Code::CALL_SHAPE}, {"y", "3", "4"}, [](HeadsCall& c) { c.y_view.shape[0] = 3; }, true, false},
      {"dy of 3 rows", {Code::CALL_SHAPE}, {"dy", "3", "4"}, [](HeadsCall& c) { c.dy_view.shape[0] = 3; }, false, true},
      {"an epsilon of -1", {Code::CALL_VALUE}, {"epsilon", "-1"}, [](HeadsCall& c) { c.forward.epsilon = c.backward.epsilon = -1; }},
  });
}

/// What does not travel to an adapter: views, devices, and calls without arguments or context.
void run_rms_norm_rope_views(Trial& trial) {
  run_heads(trial, {
      {"every second column of x", {Code::CALL_SHAPE}, {"x", "2"}, [](HeadsCall& c) { c.x_view.shape[1] = 16, c.x_view.strides[1] = 2, c.y_view.shape[1] = c.dy_view.shape[1] = c.dx_view.shape[1] = 16; }},
      {"every second column of the table", {Code::CALL_SHAPE}, {"rope", "2"}, [](HeadsCall& c) { c.rope_view.strides[1] = 2; }},
      {"rows of y that overlap", {Code::CALL_SHAPE}, {"y", "31", "32"}, [](HeadsCall& c) { c.y_view.strides[0] = 31; }, true, false},
      {"rows of dx that overlap", {Code::CALL_SHAPE}, {"dx", "31", "32"}, [](HeadsCall& c) { c.dx_view.strides[0] = 31; }, false, true},
      {"x at an odd address", {Code::CALL_ALIGN}, {"x"}, [](HeadsCall& c) { c.x_view.data = static_cast<std::byte*>(c.x_view.data) + 1, c.x_view.shape[0] = 2, c.y_view.shape[0] = c.dy_view.shape[0] = c.dx_view.shape[0] = 2; }},
      {"a table on another device", {Code::CALL_DEVICE}, {"rope"}, [](HeadsCall& c) { c.rope_view.device = {SQ_CUDA, 0}; }},
      {"no memory for the weight", {Code::CALL_NULL}, {"weight"}, [](HeadsCall& c) { c.weight_view.data = nullptr; }},
  });
  Instance& instance = trial.instance();
  const sq_linear_group& linear = instance.linear();
  HeadsCall c;
  call_refused("rms_norm_rope_forward without arguments", {Code::CALL_NULL}, {}, [&](sq_error* e) { return linear.rms_norm_rope_forward(instance.get(), nullptr, e); });
  call_refused("rms_norm_rope_backward without arguments", {Code::CALL_NULL}, {}, [&](sq_error* e) { return linear.rms_norm_rope_backward(instance.get(), nullptr, e); });
  call_refused("rms_norm_rope_forward without a context", {Code::CALL_NULL}, {&c.y}, [&](sq_error* e) { return linear.rms_norm_rope_forward(nullptr, &c.forward, e); });
  call_refused("rms_norm_rope_backward without a context", {Code::CALL_NULL}, {&c.dx}, [&](sq_error* e) { return linear.rms_norm_rope_backward(nullptr, &c.backward, e); });
}

}  // namespace

void add_operations(Cases& cases) {
  for (const QuantizeFault& fault : quantize_faults()) {
    std::vector<std::string> needs = {"linear", "operation:quantize"};
    if (std::string_view(fault.requirement) == "SQ-LIN-042") needs.push_back("in_process");  // a stride does not travel (SQ-ADP-050)
    cases.push_back({10, std::string("errors.quantize.") + fault.slug, Kind::vector, {fault.requirement, "SQ-QNT-009", "SQ-ERR-007"}, needs, "a refusal that has written half a weight, or does not say where",
                     [&fault](Trial& t) { run_quantize(t, fault); }});
  }
  cases.push_back({10, "errors.dequantize", Kind::vector, {"SQ-QNT-014", "SQ-QNT-015", "SQ-ERR-007"}, {"linear", "operation:dequantize"}, "rows read past the weight", run_dequantize});
  cases.push_back({10, "errors.quantize_activation", Kind::vector, {"SQ-LIN-040", "SQ-LIN-041", "SQ-LIN-045", "SQ-LIN-046"}, {"linear", "operation:quantize_activation"}, "a producer guessed, a group broadcast", run_quantize_activation});
  const std::vector<std::string> heads = {"linear", "operation:rms_norm_rope_forward", "operation:rms_norm_rope_backward", "dtype:bf16"};
  std::vector<std::string> in_process = heads;
  in_process.push_back("in_process");
  cases.push_back({10, "errors.rms_norm_rope", Kind::vector, {"SQ-LIN-065", "SQ-LIN-040", "SQ-LIN-041", "SQ-LIN-043", "SQ-LIN-046", "SQ-ERR-007"}, heads, "a table or a weight read past its end, a refusal that does not say which tensor", run_rms_norm_rope});
  cases.push_back({10, "errors.rms_norm_rope.views", Kind::vector, {"SQ-LIN-042", "SQ-LIN-043", "SQ-LIN-046", "SQ-CNV-003"}, in_process, "a view, a device or a null taken for a tensor of its own", run_rms_norm_rope_views});
}

}  // namespace squareq::gates::g10
