// What a linear call may touch, how it answers wrong arguments, and that it repeats itself.
#include "gates/g05_forward/g05_forward.hpp"

namespace squareq::gates::g05 {
namespace {

Problem generic_problem(Trial& trial, const Shape& s, std::int32_t dtype = SQ_F32, std::int64_t stride = 0, std::int64_t shift = 0) {
  Random random = trial.random("data");
  Problem p(s.m, Layer("contract", s.n, s.k, s.pack, true), dtype, stride, shift);
  p.y_dtype = dtype;
  fill(p, random, {});
  return p;
}

void run_strided_x(Trial& trial, std::int32_t dtype) {
  // The gap after each row holds NaN: reading it spoils the result even where the padded codes are zero.
  Problem p = generic_problem(trial, {6, 100, 24, 64}, dtype, 137, 0);
  compare(trial, forward(trial.instance(), p).y, oracle_forward(p).y);
}

void run_strided_y(Trial& trial) {
  Problem p = generic_problem(trial, {6, 100, 24, 64});
  p.y_stride = 31;
  compare(trial, forward(trial.instance(), p).y, oracle_forward(p).y);
}

void run_shifted(Trial& trial, std::int32_t dtype) {
  Problem p = generic_problem(trial, {3, 67, 19, 64}, dtype, 0, 1);
  compare(trial, forward(trial.instance(), p).y, oracle_forward(p).y);
}

/// Garbage in the padding of the codes is not the format's, but it must not reach a result either.
void run_padding(Trial& trial) {
  Problem p = generic_problem(trial, {5, 100, 24, 64});
  const ForwardOutputs clean = forward(trial.instance(), p);
  Guarded dy("dy", Role::in, SQ_F32, {5, 24});
  dy.fill(0.75);
  BackwardOutputs clean_back = backward(trial.instance(), p, dy, nullptr, nullptr);
  for (std::int64_t n = 0; n < p.layer.n; ++n)
    for (std::int64_t k = p.layer.k; k < p.layer.padded; ++k) p.layer.qweight.set(n, k, static_cast<double>(n % 2 ? 127 : -127));
  Instance& instance = trial.instance();
  same_bits("y with garbage in the padding", forward(instance, p).y, clean.y);
  same_bits("dX with garbage in the padding", *backward(instance, p, dy, nullptr, nullptr).dx, *clean_back.dx);
}

void run_no_rows(Trial& trial) {
  Problem p = generic_problem(trial, {0, 64, 16, 64});
  forward(trial.instance(), p);
  Guarded dy("dy", Role::in, SQ_F32, {0, 16});
  backward(trial.instance(), p, dy, nullptr, nullptr);
}

void run_repeat(Trial& trial, std::int32_t dtype) {
  Problem p = generic_problem(trial, {65, 320, 130, 64}, dtype);
  Guarded dy("dy", Role::in, dtype, {65, 130});
  Random random = trial.random("dy");
  dy.fill([&] { return random.normal(); });
  Instance& first = trial.instance();
  const ForwardOutputs y = forward(first, p);
  BackwardOutputs dx = backward(first, p, dy, nullptr, nullptr);
  for (int i = 0; i < 5; ++i) {
    // Odd runs use a fresh context, and all use fresh buffers: no bit may depend on an address or on history.
    Instance& again = i % 2 ? trial.instance() : first;
    same_bits("forward, run " + std::to_string(i + 2), forward(again, p).y, y.y);
    same_bits("backward, run " + std::to_string(i + 2), *backward(again, p, dy, nullptr, nullptr).dx, *dx.dx);
  }
}

void run_zero_bias(Trial& trial) {
  Random random = trial.random("data");
  Problem with(7, Layer("zero", 33, 100, 64, true), SQ_F32);
  fill(with, random, {});
  with.layer.bias.fill(0.0);
  Problem without(7, Layer("zero", 33, 100, 64, false), SQ_F32);
  without.layer.qweight.set_bytes(with.layer.qweight.bytes());
  without.layer.scale.set_bytes(with.layer.scale.bytes());
  without.x.set_bytes(with.x.bytes());
  Instance& instance = trial.instance();
  const ForwardOutputs a = forward(instance, with), b = forward(instance, without);
  for (std::int64_t i = 0; i < a.y.count(); ++i)
    require(a.y.at(i) == b.y.at(i), "element " + std::to_string(i) + " differs between a zero bias and none");
}

/// Every wrong argument of linear_forward is refused by its code and nothing is written.
void run_refusals(Trial& trial) {
  Problem p = generic_problem(trial, {3, 64, 16, 64});
  Guarded y("y", Role::out, SQ_F32, {3, 16}), narrow("y", Role::out, SQ_F32, {3, 15}), integer("x", Role::in, SQ_I32, {3, 64}), longer("x", Role::in, SQ_F32, {3, 65});
  Instance& instance = trial.instance();
  const DirectWeight direct(p.layer);
  const auto good = [&] {
    auto args = sized<sq_linear_forward_args>();
    args.weight = direct.ref();
    args.x = p.x.tensor();
    args.y = y.tensor();
    return args;
  };
  const auto refuse = [&](const std::string& what, const std::vector<Code>& codes, const sq_linear_forward_args& args) {
    call_refused("linear_forward with " + what, codes, {&p.x, &y, &narrow, &p.layer.qweight, &p.layer.scale, &p.layer.bias},
                 [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); });
  };
  auto args = good();
  args.y = nullptr;
  refuse("y null", {Code::CALL_NULL}, args);
  args = good();
  args.x = nullptr;
  refuse("neither x nor xq", {Code::CALL_NULL, Code::CALL_VALUE}, args);
  args = good();
  args.weight = nullptr;
  refuse("weight null", {Code::CALL_NULL}, args);
  args = good();
  args.y = narrow.tensor();
  refuse("y one column short", {Code::CALL_SHAPE}, args);
  args = good();
  args.x = longer.tensor();
  refuse("x one column long", {Code::CALL_SHAPE}, args);
  args = good();
  args.x = integer.tensor();
  refuse("x of I32", {Code::CALL_DTYPE}, args);
  args = good();
  args.activation = 99;
  refuse("activation 99", {Code::CALL_VALUE}, args);

  const auto with_weight = [&](const std::string& what, std::initializer_list<Code> codes, const auto& change) {
    DirectWeight wrong(p.layer);
    change(wrong);
    auto call = good();
    call.weight = wrong.ref();
    refuse(what, codes, call);
  };
  with_weight("no scale", {Code::CALL_PART}, [](DirectWeight& w) {
    w.parts().erase(w.parts().begin() + 1);
    w.weight().part_count = static_cast<std::uint32_t>(w.parts().size());
  });
  with_weight("a float qweight", {Code::CALL_DTYPE}, [](DirectWeight& w) { w.parts()[0].tensor.dtype = SQ_F32; });
  with_weight("an fp16 scale", {Code::CALL_DTYPE}, [](DirectWeight& w) { w.parts()[1].tensor.dtype = SQ_F16; });
  with_weight("one scale for all rows", {Code::CALL_SHAPE}, [](DirectWeight& w) { w.parts()[1].tensor.shape[0] = 1; });
  with_weight("qweight rows != out_features", {Code::CALL_SHAPE}, [](DirectWeight& w) { w.weight().out_features = 15; });
  with_weight("fewer columns than in_features", {Code::CALL_SHAPE}, [](DirectWeight& w) { w.weight().in_features = 65; });
  with_weight("a bias of other length", {Code::CALL_SHAPE}, [](DirectWeight& w) { w.parts()[3].tensor.shape[0] = 15; });
  with_weight("a part given twice", {Code::CALL_VALUE}, [](DirectWeight& w) {
    w.parts().push_back(w.parts()[1]);
    w.weight().parts = w.parts().data();
    w.weight().part_count = static_cast<std::uint32_t>(w.parts().size());
  });
  p.layer.zero_point.set(2, 1.0);
  with_weight("a zero_point of 1", {Code::DT_ZP_NONZERO}, [](DirectWeight&) {});
  p.layer.zero_point.set(2, -0.0);
  with_weight("an unknown format", {Code::CALL_UNSUPPORTED}, [](DirectWeight& w) { w.weight().format = "bp9_v9"; });

  // And after all these refusals the right call still works.
  compare(trial, forward(instance, p).y, oracle_forward(p).y);
}

/// describe() lists an operation if and only if its entry is set.
void run_describe(Trial& trial) {
  const sq_linear_group& group = *trial.subject().implementation()->linear;
  const auto check_one = [&](const char* name, bool set) {
    const bool listed = trial.description().operations.contains(name);
    require(listed == set, std::string("operation '") + name + "' is " + (listed ? "described but not offered" : "offered but not described"));
  };
  require(group.reserved == 0, "the group's reserved field is " + std::to_string(group.reserved) + ", must be 0");
  check_one("quantize", group.quantize != nullptr);
  check_one("dequantize", group.dequantize != nullptr);
  check_one("linear_forward", group.linear_forward != nullptr);
  check_one("linear_backward", group.linear_backward != nullptr);
  check_one("quantize_activation", group.quantize_activation != nullptr);
  check_one("numeric_guard", group.numeric_guard != nullptr);
  check_one("rms_norm_rope_forward", offered(group, &sq_linear_group::rms_norm_rope_forward));
  check_one("rms_norm_rope_backward", offered(group, &sq_linear_group::rms_norm_rope_backward));
}

}  // namespace

void add_contract(Cases& cases) {
  const std::vector<std::string> forward_needs = {"linear", "operation:linear_forward"};
  const std::vector<std::string> both = {"linear", "operation:linear_forward", "operation:linear_backward"};
  const auto with_dtype = [](std::vector<std::string> needs, const char* dtype) {
    needs.push_back(std::string("dtype:") + dtype);
    return needs;
  };
  for (const auto& [dtype, name] : activation_dtypes) {
    cases.push_back({5, std::string("forward.strided_x.") + name, Kind::vector, {"SQ-LIN-005", "SQ-CNV-006"}, with_dtype(forward_needs, name), "reads past the row, ignores the row stride",
                     [dtype = dtype](Trial& t) { run_strided_x(t, dtype); }});
    cases.push_back({5, std::string("forward.shifted_x.") + name, Kind::vector, {"SQ-LIN-005", "SQ-LIN-043"}, with_dtype(forward_needs, name), "assumes an alignment beyond the element's own",
                     [dtype = dtype](Trial& t) { run_shifted(t, dtype); }});
    cases.push_back({5, std::string("linear.repeat.") + name, Kind::property, {"SQ-NUM-004"}, with_dtype(both, name), "a sum whose order depends on threads, addresses or history",
                     [dtype = dtype](Trial& t) { run_repeat(t, dtype); }});
  }
  cases.push_back({5, "forward.strided_y", Kind::vector, {"SQ-CNV-005", "SQ-LIN-005"}, forward_needs, "writes between the rows of y", run_strided_y});
  cases.push_back({5, "linear.padding_bytes", Kind::vector, {"SQ-LIN-002"}, both, "padded columns of the codes take part in a sum", run_padding});
  cases.push_back({5, "linear.no_rows", Kind::vector, {"SQ-LIN-006"}, both, "M = 0 crashes or is refused", run_no_rows});
  cases.push_back({5, "forward.zero_bias_is_no_bias", Kind::vector, {"SQ-LIN-007"}, forward_needs, "a bias path with other rounding", run_zero_bias});
  cases.push_back({5, "forward.refusals", Kind::vector, {"SQ-LIN-041", "SQ-LIN-040", "SQ-LIN-043", "SQ-LIN-044", "SQ-LIN-045", "SQ-LIN-046", "SQ-ERR-007", "SQ-CNV-003", "SQ-QNT-015"}, forward_needs, "broadcast scales, silent casts, out-of-bounds reads on wrong arguments", run_refusals});
  cases.push_back({5, "linear.describe_is_honest", Kind::vector, {"SQ-CNV-008"}, {"linear"}, "an operation described but absent, or the reverse", run_describe});
}

}  // namespace squareq::gates::g05
