// Int8 activations: given by the caller or made inside, with everything else that a layer may have; and the operation that makes them.
#include <algorithm>
#include <cmath>

#include "gates/g05_forward/g05_forward.hpp"
#include "gates/harness/half.hpp"

namespace squareq::gates::g05 {
namespace {

/// A layer, an int8 activation with power-of-two scales in rows that lie apart, and the exact result of class R4.
struct Int8Problem {
  Layer layer;
  Guarded q, scale;
  std::vector<double> sum;  // [m, n]: xs s (integer sum)

  Int8Problem(Random& random, const Shape& s, bool bias)
      : layer("int8", s.n, s.k, s.pack, bias), q("xq q", Role::in, SQ_I8, {s.m, s.k}, s.k + 3), scale("xq scale", Role::in, SQ_F32, {s.m}) {
    Problem data(0, std::move(layer), SQ_F32);
    fill(data, random, {.dyadic_scales = true, .integer_x = 1});
    layer = std::move(data.layer);
    for (std::int64_t n = 0; n < s.n; ++n)  // padding is not part of the layer
      for (std::int64_t k = s.k; k < layer.padded; ++k) layer.qweight.set(n, k, 77);
    q.fill([&] { return static_cast<double>(random.integer(-127, 127)); });
    // 127 in every row: quantizing q * scale again gives q and scale back.
    for (std::int64_t m = 0; m < s.m; ++m) q.set(m, random.integer(0, s.k - 1), random.integer(0, 1) ? 127 : -127);
    scale.fill([&] { return std::ldexp(1.0, static_cast<int>(random.integer(-6, 3))); });
    for (std::int64_t m = 0; m < s.m; ++m)
      for (std::int64_t n = 0; n < s.n; ++n) {
        double integer = 0;
        for (std::int64_t k = 0; k < s.k; ++k) integer += q.at(m, k) * layer.qweight.at(n, k);
        sum.push_back(integer * scale.at(m) * layer.scale.at(n));
      }
  }
  double bias(std::int64_t n) const { return layer.has_bias ? layer.bias.at(n) : 0; }
};

/// What a W8A8 forward may also be given.
struct Extras {
  Guarded* x = nullptr;       // instead of xq
  Adapter* adapter = nullptr;
  Guarded* h = nullptr;
};

void call_int8(Instance& instance, Int8Problem& p, Guarded& y, Guarded* preactivation, const Extras& extras) {
  const DirectWeight direct(p.layer);
  const std::vector<sq_part> parts = {{"q", *p.q.tensor()}, {"scale", *p.scale.tensor()}};
  auto xq = sized<sq_quantized_activation>();
  xq.format = "per_token_int8";
  xq.part_count = 2;
  xq.parts = parts.data();
  auto lora = sized<sq_lora>();
  Guarded *a_t = nullptr, *b_t = nullptr, *own = nullptr;
  if (Adapter* a = extras.adapter) {
    a_t = &a->a_t, b_t = &a->b_t, own = a->x_own ? &*a->x_own : nullptr;
    lora.scaling = a->scaling;
    lora.a_t = a_t->tensor();
    lora.b_t = b_t->tensor();
    lora.x = own ? own->tensor() : nullptr;
  }
  auto args = sized<sq_linear_forward_args>();
  args.compute = SQ_COMPUTE_W8A8;
  args.weight = direct.ref();
  args.x = extras.x ? extras.x->tensor() : nullptr;
  args.xq = extras.x ? nullptr : &xq;
  args.lora = extras.adapter ? &lora : nullptr;
  args.y = y.tensor();
  args.preactivation = preactivation ? preactivation->tensor() : nullptr;
  args.h = extras.h ? extras.h->tensor() : nullptr;
  call_ok("linear_forward on int8 activations", {&p.layer.qweight, &p.layer.scale, &p.layer.zero_point, &p.layer.bias, &p.q, &p.scale, extras.x, a_t, b_t, own, &y, preactivation, extras.h},
          [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); });
}

constexpr Shape int8_shapes[] = {{1, 1, 1, 1}, {1, 7, 5, 4}, {6, 75, 21, 16}, {13, 64, 64, 64}, {3, 300, 17, 64}};

void run_given(Trial& trial, std::int32_t y_dtype) {
  Random random = trial.random("data");
  Instance& instance = trial.instance();
  for (const Shape& s : int8_shapes)
    for (const bool bias : {false, true}) {
      Int8Problem p(random, s, bias);
      Guarded y("y", Role::out, y_dtype, {s.m, s.n}, s.n + 2), z("preactivation", Role::out, SQ_F32, {s.m, s.n});
      call_int8(instance, p, y, &z, {});
      Expected exact, out;
      for (std::size_t i = 0; i < p.sum.size(); ++i) {
        const double v = p.sum[i] + p.bias(static_cast<std::int64_t>(i) % s.n);
        exact.add(v, 0);
        out.add(y_dtype == SQ_BF16 ? static_cast<double>(from_bf16(to_bf16(static_cast<float>(v)))) : y_dtype == SQ_F16 ? from_f16(to_f16(v)) : v, 0);
      }
      compare(trial, z, exact);
      compare(trial, y, out);
    }
}

/// A branch beside an int8 base, fed with its own floating input or with the layer's; H is handed out.
void run_branch(Trial& trial, bool given) {
  Random random = trial.random("data");
  Instance& instance = trial.instance();
  for (const Shape& s : int8_shapes) {
    Int8Problem p(random, s, true);
    Guarded x("x", Role::in, SQ_F32, {s.m, s.k}, s.k + 1), y("y", Role::out, SQ_F32, {s.m, s.n}), h("h", Role::out, SQ_F32, {s.m, 3});
    for (std::int64_t m = 0; m < s.m; ++m)
      for (std::int64_t k = 0; k < s.k; ++k) x.set(m, k, p.q.at(m, k) * p.scale.at(m));
    Adapter adapter(3, s.n, s.k, 0.5f);
    // Small integers: H and the branch are exact, and multiples of no finer unit than the base's.
    adapter.a_t.fill([&] { return static_cast<double>(random.integer(-1, 1)); });
    adapter.b_t.fill([&] { return static_cast<double>(random.integer(-2, 2)); });
    if (given) {
      adapter.x_own.emplace("lora x", Role::in, SQ_F32, std::vector<std::int64_t>{s.m, s.k});
      adapter.x_own->fill([&] { return static_cast<double>(random.integer(-3, 3)); });
    }
    Extras extras{given ? nullptr : &x, &adapter, &h};
    call_int8(instance, p, y, nullptr, extras);
    Expected expected_y, expected_h;
    for (std::int64_t m = 0; m < s.m; ++m) {
      double hidden[3] = {};
      for (std::int64_t r = 0; r < 3; ++r) {
        for (std::int64_t k = 0; k < s.k; ++k) hidden[r] += (given ? adapter.x_own->at(m, k) : x.at(m, k)) * adapter.a_t.at(r, k);
        expected_h.add(hidden[r], 0);
      }
      for (std::int64_t n = 0; n < s.n; ++n) {
        double branch = 0;
        for (std::int64_t r = 0; r < 3; ++r) branch += hidden[r] * adapter.b_t.at(n, r);
        const double v = p.sum[static_cast<std::size_t>(m * s.n + n)] + 0.5 * branch + p.bias(n);
        // Base and branch differ in their units: two fp32 additions.
        expected_y.add(v, 3 * 0x1p-24 * (std::fabs(p.sum[static_cast<std::size_t>(m * s.n + n)]) + std::fabs(branch) + std::fabs(p.bias(n))));
      }
    }
    compare(trial, y, expected_y);
    compare(trial, h, expected_h);
  }
}

/// A floating X of any dtype and row stride, quantized inside: its rows are int8 times a power of two, so nothing is lost.
void run_made(Trial& trial, std::int32_t dtype) {
  Random random = trial.random("data");
  Instance& instance = trial.instance();
  for (const Shape& s : int8_shapes) {
    Int8Problem p(random, s, true);
    Guarded x("x", Role::in, dtype, {s.m, s.k}, s.k + 5), y("y", Role::out, SQ_F32, {s.m, s.n}), z("preactivation", Role::out, SQ_F32, {s.m, s.n});
    for (std::int64_t m = 0; m < s.m; ++m)
      for (std::int64_t k = 0; k < s.k; ++k) x.set(m, k, p.q.at(m, k) * p.scale.at(m));
    call_int8(instance, p, y, &z, {&x, nullptr, nullptr});
    Expected exact;
    for (std::size_t i = 0; i < p.sum.size(); ++i) exact.add(p.sum[i] + p.bias(static_cast<std::int64_t>(i) % s.n), 0);
    compare(trial, z, exact);
    compare(trial, y, exact);
  }
}

/// dX in class R4: rows of dY * scale are int8 times a power of two.
void run_backward_int8(Trial& trial) {
  Random random = trial.random("data");
  Instance& instance = trial.instance();
  for (const Shape& s : int8_shapes) {
    Int8Problem p(random, s, false);
    Guarded dy("dy", Role::in, SQ_F32, {s.m, s.n}, s.n + 1), dx("dx", Role::out, SQ_F32, {s.m, s.k}, s.k + 4);
    Expected expected;
    for (std::int64_t m = 0; m < s.m; ++m) {
      const double row = std::ldexp(1.0, static_cast<int>(random.integer(-5, 5)));
      std::vector<double> codes;
      for (std::int64_t n = 0; n < s.n; ++n) codes.push_back(static_cast<double>(random.integer(-127, 127)));
      codes[static_cast<std::size_t>(random.integer(0, s.n - 1))] = 127;
      for (std::int64_t n = 0; n < s.n; ++n) dy.set(m, n, codes[static_cast<std::size_t>(n)] * row / p.layer.scale.at(n));
      for (std::int64_t k = 0; k < s.k; ++k) {
        double sum = 0;
        for (std::int64_t n = 0; n < s.n; ++n) sum += codes[static_cast<std::size_t>(n)] * p.layer.qweight.at(n, k);
        expected.add(sum * row, 0);
      }
    }
    const DirectWeight direct(p.layer);
    auto args = sized<sq_linear_backward_args>();
    args.compute = SQ_COMPUTE_W8A8;
    args.weight = direct.ref();
    args.dy = dy.tensor();
    args.dx = dx.tensor();
    call_ok("linear_backward in W8A8", {&p.layer.qweight, &p.layer.scale, &p.layer.zero_point, &dy, &dx}, [&](sq_error* e) { return instance.linear().linear_backward(instance.get(), &args, e); });
    compare(trial, dx, expected);
  }
}

}  // namespace

void add_int8(Cases& cases) {
  const std::vector<std::string> forward_needs = {"linear", "operation:linear_forward", "operation:quantize_activation"};
  for (const auto& [dtype, name] : activation_dtypes) {
    std::vector<std::string> needs = forward_needs;
    needs.push_back(std::string("dtype:") + name);
    cases.push_back({5, std::string("int8.given.") + name, Kind::vector, {"SQ-LIN-003", "SQ-NUM-012", "SQ-LIN-004"}, needs, "row strides of int8 activations, scales of rows and columns, output rounded twice",
                     [dtype = dtype](Trial& t) { run_given(t, dtype); }});
    cases.push_back({5, std::string("int8.made.") + name, Kind::vector, {"SQ-LIN-003", "SQ-QNT-020", "SQ-NUM-012"}, needs, "an input quantized per tensor, or before it is read in full",
                     [dtype = dtype](Trial& t) { run_made(t, dtype); }});
  }
  std::vector<std::string> with_branch = forward_needs;
  with_branch.push_back("lora");
  cases.push_back({5, "int8.branch.own_input", Kind::vector, {"SQ-LIN-003", "SQ-LOR-005", "SQ-LOR-004"}, with_branch, "a branch that reads int8 codes as its input", [](Trial& t) { run_branch(t, true); }});
  cases.push_back({5, "int8.branch.shared_input", Kind::vector, {"SQ-LIN-003", "SQ-LOR-001", "SQ-LOR-004"}, with_branch, "a branch fed with the quantized instead of the floating input", [](Trial& t) { run_branch(t, false); }});
  cases.push_back({5, "int8.backward", Kind::vector, {"SQ-LIN-012", "SQ-NUM-012"}, {"linear", "operation:linear_backward", "operation:quantize_activation"}, "row stride or row scale lost on the way back", run_backward_int8});
}

}  // namespace squareq::gates::g05
