// rms_norm_rope: queries and keys against the formula in float64, exact numbers, heads apart, in place, and what is refused.
#include <cmath>
#include <functional>
#include <vector>

#include "gates/g05_forward/refused.hpp"
#include "gates/harness/bounds.hpp"

namespace squareq::gates::g05 {
namespace {

struct Sizes {
  std::int64_t rows, heads, d, positions;  // positions 0: no table
};

/// Both directions' tensors. dx and y are outputs of their own unless a call is made in place.
struct Tokens {
  Sizes s;
  Guarded x, dy, weight, rope, y, dx;
  sq_rms_norm_rope_forward_args forward = sized<sq_rms_norm_rope_forward_args>();
  sq_rms_norm_rope_backward_args backward = sized<sq_rms_norm_rope_backward_args>();

  Tokens(const Sizes& sizes, std::int32_t dtype, float epsilon, std::int64_t gap = 0, bool in_place = false) : s(sizes) {
    const std::int64_t columns = s.heads * s.d;
    const Role input = in_place ? Role::inout : Role::in;
    x = Guarded("x", input, dtype, {s.rows, columns}, columns + gap), dy = Guarded("dy", input, dtype, {s.rows, columns}, columns + 2 * gap);
    y = Guarded("y", Role::out, dtype, {s.rows, columns}, columns + 3 * gap), dx = Guarded("dx", Role::out, dtype, {s.rows, columns}, columns + gap);
    weight = Guarded("weight", Role::in, dtype, {s.d});
    forward.epsilon = backward.epsilon = epsilon;
    forward.x = backward.x = x.tensor(), forward.weight = backward.weight = weight.tensor();
    forward.y = in_place ? x.tensor() : y.tensor(), backward.dy = dy.tensor(), backward.dx = in_place ? dy.tensor() : dx.tensor();
    if (s.positions == 0) return;
    rope = Guarded("rope", Role::in, SQ_F32, {s.positions, s.d}, s.d + gap);
    forward.rope = backward.rope = rope.tensor();
  }

  void fill(Random& random) {
    x.fill([&] { return 2 * random.normal(); });
    dy.fill([&] { return random.normal(); });
    weight.fill([&] { return 1 + 0.3 * random.normal(); });
    if (s.positions) fill_table(random);
  }
  /// Unit vectors at any angle, as rotations have them.
  void fill_table(Random& random) {
    for (std::int64_t p = 0; p < s.positions; ++p)
      for (std::int64_t j = 0; j < s.d; j += 2) {
        const double angle = 3 * random.normal();
        rope.set(p, j, std::cos(angle)), rope.set(p, j + 1, std::sin(angle));
      }
  }

  void run(Instance& instance) {
    Guarded* const table = s.positions ? &rope : nullptr;
    // Backward first: in place, forward overwrites x.
    call_ok("rms_norm_rope_backward", {&x, &weight, table, &dy, backward.dx == dx.tensor() ? &dx : nullptr},
            [&](sq_error* e) { return instance.linear().rms_norm_rope_backward(instance.get(), &backward, e); });
    call_ok("rms_norm_rope_forward", {&x, &weight, table, forward.y == y.tensor() ? &y : nullptr},
            [&](sq_error* e) { return instance.linear().rms_norm_rope_forward(instance.get(), &forward, e); });
  }

  double cosine(std::int64_t m, std::int64_t j) const { return s.positions ? rope.at(m % s.positions, j / 2 * 2) : 1; }
  double sine(std::int64_t m, std::int64_t j) const { return s.positions ? rope.at(m % s.positions, j / 2 * 2 + 1) : 0; }
};

struct Want {
  double value, bound;
};

/// What the table of spec/35-numerics.md says of every element of one head.
void expect_head(const Tokens& t, std::int64_t m, std::int64_t first, const std::function<void(std::int64_t, Want y, Want dx)>& check) {
  const auto d = static_cast<double>(t.s.d);
  const auto at = [&](const Guarded& g, std::int64_t j) { return j < t.s.d ? g.at(m, first + j) : 0; };
  const auto weight = [&](std::int64_t j) { return j < t.s.d ? t.weight.at(j) : 0; };
  double squares = 0;
  for (std::int64_t j = 0; j < t.s.d; ++j) squares += at(t.x, j) * at(t.x, j);
  const double r = 1 / std::sqrt(squares / d + static_cast<double>(t.forward.epsilon));
  std::vector<Want> weighted;
  double mean = 0, mean_size = 0;
  for (std::int64_t j = 0; j < t.s.d; ++j) {
    const double own = at(t.dy, j) * t.cosine(m, j), other = at(t.dy, j ^ 1) * t.sine(m, j), sign = j % 2 == 0 ? 1 : -1;
    weighted.push_back({weight(j) * (own + sign * other), std::fabs(weight(j)) * (std::fabs(own) + std::fabs(other))});
    mean += at(t.x, j) * weighted.back().value / d, mean_size += std::fabs(at(t.x, j)) * weighted.back().bound / d;
  }
  for (std::int64_t j = 0; j < t.s.d; ++j) {
    const double own = at(t.x, j) * r * weight(j) * t.cosine(m, j), other = at(t.x, j ^ 1) * r * weight(j ^ 1) * t.sine(m, j), x = at(t.x, j);
    const Want& w = weighted[static_cast<std::size_t>(j)];
    check(j, {j % 2 == 0 ? own - other : own + other, norm_rope_bound(d, std::fabs(own) + std::fabs(other))},
          {r * (w.value - x * r * r * mean), norm_rope_gradient_bound(d, r * w.bound + std::fabs(x) * r * r * r * mean_size)});
  }
}

/// Random numbers in every shape of head, rows apart, tables shorter than the rows; and again, for the same bits.
void run_generic(Trial& trial, std::int32_t dtype) {
  Random random = trial.random("data");
  for (const Sizes& s : {Sizes{1, 1, 2, 1}, Sizes{5, 3, 8, 5}, Sizes{6, 2, 1, 0}, Sizes{4, 3, 7, 0}, Sizes{6, 5, 24, 3}, Sizes{8, 2, 64, 2}, Sizes{3, 24, 128, 3}, Sizes{2, 3, 256, 1}, Sizes{2, 2, 330, 2}}) {
    Tokens t(s, dtype, 1e-6f, s.rows % 2);
    t.fill(random);
    t.run(trial.instance());
    for (std::int64_t m = 0; m < s.rows; ++m)
      for (std::int64_t first = 0; first < s.heads * s.d; first += s.d)
        expect_head(t, m, first, [&](std::int64_t j, Want y, Want dx) {
          trial.margin(std::fabs(t.y.at(m, first + j) - y.value) / with_output_rounding(y.value, y.bound, dtype));
          trial.margin(std::fabs(t.dx.at(m, first + j) - dx.value) / with_output_rounding(dx.value, dx.bound, dtype));
        });
    const std::vector<std::byte> y = t.y.bytes(), dx = t.dx.bytes();
    t.run(trial.instance());
    require(y == t.y.bytes() && dx == t.dx.bytes(), "the same call again gave other bits");
  }
}

/// Elements of +-2 and an epsilon of 12 make r = 1/4; weights are powers of two and the table's entries small multiples of 1/4, so that every step of any
/// order is exact. Row m of the table and element j of the weight differ from all others.
void run_exact(Trial& trial, std::int32_t dtype) {
  Random random = trial.random("data");
  constexpr Sizes s{6, 3, 8, 3};
  Tokens t(s, dtype, 12.0f, 1);
  t.x.fill([&] { return random.normal() < 0 ? -2.0 : 2.0; });
  t.dy.fill([&] { return std::nearbyint(2 * random.normal()); });
  for (std::int64_t j = 0; j < s.d; ++j) t.weight.set(j, std::ldexp(1.0, static_cast<int>(j % 4) - 1));
  for (std::int64_t p = 0; p < s.positions; ++p)
    for (std::int64_t j = 0; j < s.d; ++j) t.rope.set(p, j, 0.25 * static_cast<double>(1 + (3 * p + 2 * j) % 7) * (j % 4 == 1 ? -1 : 1));
  t.run(trial.instance());
  for (std::int64_t m = 0; m < s.rows; ++m)
    for (std::int64_t first = 0; first < s.heads * s.d; first += s.d)
      expect_head(t, m, first, [&](std::int64_t j, Want y, Want) {
        require(t.y.at(m, first + j) == y.value, "y [" + std::to_string(m) + ", " + std::to_string(first + j) + "] is " + std::to_string(t.y.at(m, first + j)) + ", exactly " + std::to_string(y.value));
      });
}

/// A table of cosines 1 and sines 0 is no table, in every bit.
void run_no_rotation(Trial& trial) {
  Random random = trial.random("data");
  Tokens without({4, 3, 16, 0}, SQ_F32, 1e-5f), with({4, 3, 16, 2}, SQ_F32, 1e-5f);
  without.fill(random);
  for (auto part : {&Tokens::x, &Tokens::dy, &Tokens::weight}) (with.*part).set_bytes((without.*part).bytes());
  for (std::int64_t p = 0; p < 2; ++p)
    for (std::int64_t j = 0; j < 16; ++j) with.rope.set(p, j, j % 2 == 0 ? 1 : 0);
  without.run(trial.instance()), with.run(trial.instance());
  require(without.y.values() == with.y.values() && without.dx.values() == with.dx.values(), "a rotation by nothing changes the result");
}

void run_in_place(Trial& trial, std::int32_t dtype) {
  Random random = trial.random("data");
  for (const Sizes& s : {Sizes{5, 4, 16, 5}, Sizes{4, 2, 300, 2}, Sizes{3, 3, 5, 0}}) {
    Tokens apart(s, dtype, 1e-6f), same(s, dtype, 1e-6f, 0, true);
    apart.fill(random);
    for (auto part : {&Tokens::x, &Tokens::dy, &Tokens::weight}) (same.*part).set_bytes((apart.*part).bytes());
    if (s.positions) same.rope.set_bytes(apart.rope.bytes());
    apart.run(trial.instance()), same.run(trial.instance());
    require(apart.y.bytes() == same.x.bytes(), "y over x is not y");
    require(apart.dx.bytes() == same.dy.bytes(), "dx over dy is not dx");
  }
}

/// NaN and infinity make their own head what they make it, and no other.
void run_apart(Trial& trial) {
  Random random = trial.random("data");
  constexpr Sizes s{4, 5, 8, 2};
  Tokens clean(s, SQ_F32, 1e-6f), bad(s, SQ_F32, 1e-6f);
  clean.fill(random);
  for (auto part : {&Tokens::x, &Tokens::dy, &Tokens::weight, &Tokens::rope}) (bad.*part).set_bytes((clean.*part).bytes());
  bad.x.set(2, 3 * 8 + 5, NAN), bad.dy.set(1, 8, INFINITY);
  clean.run(trial.instance()), bad.run(trial.instance());
  for (std::int64_t m = 0; m < s.rows; ++m)
    for (std::int64_t j = 0; j < s.heads * s.d; ++j) {
      const bool of_x = m == 2 && j / 8 == 3, of_dy = m == 1 && j / 8 == 1;
      const std::string place = "[" + std::to_string(m) + ", " + std::to_string(j) + "]";
      require(of_x ? std::isnan(bad.y.at(m, j)) : bad.y.at(m, j) == clean.y.at(m, j), "y " + place + " beside a NaN in x");
      require(of_x || of_dy ? !std::isfinite(bad.dx.at(m, j)) : bad.dx.at(m, j) == clean.dx.at(m, j), "dx " + place + " beside a NaN in x or an infinity in dy");
    }
}

/// A call of [6, 2 heads of 8] with a table of 3 rows, damaged in one place.
struct Damaged {
  Tensors t;
  sq_rms_norm_rope_forward_args forward = sized<sq_rms_norm_rope_forward_args>();
  sq_rms_norm_rope_backward_args backward = sized<sq_rms_norm_rope_backward_args>();
  const sq_tensor *x, *weight, *rope, *y, *dy, *dx;
  float epsilon = 1e-6f;

  Damaged() {
    x = t.make("x", SQ_BF16, {6, 16}, 1.5), weight = t.make("weight", SQ_F32, {8}, 1), rope = t.make("rope", SQ_F32, {3, 8}, 0.5);
    y = t.make("y", SQ_BF16, {6, 16}, 0, Role::out), dy = t.make("dy", SQ_BF16, {6, 16}, 1), dx = t.make("dx", SQ_BF16, {6, 16}, 0, Role::out);
  }
  void bind() {
    forward.epsilon = backward.epsilon = epsilon;
    forward.x = backward.x = x, forward.weight = backward.weight = weight, forward.rope = backward.rope = rope;
    forward.y = y, backward.dy = dy, backward.dx = dx;
  }
};

void run_refused(Trial& trial) {
  Instance& instance = trial.instance();
  const auto refused = [&](const char* what, Codes codes, const std::function<void(Damaged&)>& damage, bool of_forward = true) {
    Damaged c;
    damage(c);
    c.bind();
    c.t.arm();
    if (of_forward) call_refused(std::string("rms_norm_rope_forward with ") + what, codes, {}, [&](sq_error* e) { return instance.linear().rms_norm_rope_forward(instance.get(), &c.forward, e); });
    call_refused(std::string("rms_norm_rope_backward with ") + what, codes, {}, [&](sq_error* e) { return instance.linear().rms_norm_rope_backward(instance.get(), &c.backward, e); });
    std::string text;
    call_refused(std::string("explain of rms_norm_rope_backward with ") + what, codes, {},
                 [&](sq_error* e) { return instance.linear().explain(instance.get(), SQ_OP_RMS_NORM_ROPE_BACKWARD, &c.backward, append_text, &text, e); });
    c.t.untouched(what);
  };
  refused("no x", {Code::CALL_NULL}, [](Damaged& c) { c.x = nullptr; });
  refused("no weight", {Code::CALL_NULL}, [](Damaged& c) { c.weight = nullptr; });
  refused("no output", {Code::CALL_NULL}, [](Damaged& c) { c.y = c.dx = nullptr; });
  refused("no dy", {Code::CALL_NULL}, [](Damaged& c) { c.dy = nullptr; }, false);
  refused("x of F64", {Code::CALL_DTYPE}, [](Damaged& c) { c.x = c.t.make("x", SQ_F64, {6, 16}, 1); });
  refused("a weight of I8", {Code::CALL_DTYPE}, [](Damaged& c) { c.weight = c.t.make("weight", SQ_I8, {8}, 1); });
  refused("a table of BF16", {Code::CALL_DTYPE}, [](Damaged& c) { c.rope = c.t.make("rope", SQ_BF16, {3, 8}, 1); });
  refused("an output of F32 for x of BF16", {Code::CALL_DTYPE}, [](Damaged& c) { c.y = c.dx = c.t.make("out", SQ_F32, {6, 16}, 0, Role::out); });
  refused("dy of F32 for x of BF16", {Code::CALL_DTYPE}, [](Damaged& c) { c.dy = c.t.make("dy", SQ_F32, {6, 16}, 1); }, false);
  refused("x of rank 1", {Code::CALL_SHAPE}, [](Damaged& c) { c.x = c.t.make("x", SQ_BF16, {16}, 1); });
  refused("columns that are no whole heads", {Code::CALL_SHAPE}, [](Damaged& c) { c.weight = c.t.make("weight", SQ_F32, {6}, 1), c.rope = nullptr; });
  refused("heads without elements", {Code::CALL_SHAPE}, [](Damaged& c) { c.weight = c.t.make("weight", SQ_F32, {0}, 1), c.rope = nullptr; });
  refused("a wider table", {Code::CALL_SHAPE}, [](Damaged& c) { c.rope = c.t.make("rope", SQ_F32, {3, 16}, 1); });
  refused("a table of 4 rows for 6", {Code::CALL_SHAPE}, [](Damaged& c) { c.rope = c.t.make("rope", SQ_F32, {4, 8}, 1); });
  refused("a table without rows", {Code::CALL_SHAPE}, [](Damaged& c) { c.rope = c.t.make("rope", SQ_F32, {0, 8}, 1); });
  refused("pairs in heads of 1", {Code::CALL_SHAPE}, [](Damaged& c) { c.weight = c.t.make("weight", SQ_F32, {1}, 1), c.rope = c.t.make("rope", SQ_F32, {3, 1}, 1); });
  refused("an output of another shape", {Code::CALL_SHAPE}, [](Damaged& c) { c.y = c.dx = c.t.make("out", SQ_BF16, {6, 8}, 0, Role::out); });
  refused("dy of another shape", {Code::CALL_SHAPE}, [](Damaged& c) { c.dy = c.t.make("dy", SQ_BF16, {3, 16}, 1); }, false);
  for (const float epsilon : {0.0f, -1e-6f, std::nanf(""), HUGE_VALF}) refused("an epsilon that is not positive and finite", {Code::CALL_VALUE}, [epsilon](Damaged& c) { c.epsilon = epsilon; });
  Tokens none({0, 2, 8, 1}, SQ_BF16, 1e-6f);
  none.weight.fill(1.0), none.rope.fill(1.0);
  none.run(instance);
  Damaged whole;
  whole.bind();
  whole.t.arm();
  for (const auto& [op, args, name] : {std::tuple<std::int32_t, const void*, const char*>{SQ_OP_RMS_NORM_ROPE_FORWARD, &whole.forward, "rms_norm_rope_forward"},
                                       {SQ_OP_RMS_NORM_ROPE_BACKWARD, &whole.backward, "rms_norm_rope_backward"}}) {
    std::string text;
    call_ok(std::string("explain of ") + name, {}, [&](sq_error* e) { return instance.linear().explain(instance.get(), op, args, append_text, &text, e); });
    require(text.find('"' + std::string(name) + '"') != std::string::npos, std::string("explain of ") + name + " answered " + text);
  }
  whole.t.untouched("explain");
}

}  // namespace

void add_rms_norm_rope(Cases& cases) {
  const std::vector<std::string> needs = {"linear", "operation:rms_norm_rope_forward", "operation:rms_norm_rope_backward"};
  const auto with = [&](const char* dtype) {
    auto all = needs;
    all.push_back(std::string("dtype:") + dtype);
    return all;
  };
  for (const auto& [dtype, name] : activation_dtypes) {
    const auto of = [dtype = dtype](void (*run)(Trial&, std::int32_t)) { return [dtype, run](Trial& t) { run(t, dtype); }; };
    cases.push_back({5, std::string("rms_norm_rope.generic.") + name, Kind::property, {"SQ-LIN-060", "SQ-LIN-061", "SQ-LIN-062", "SQ-LIN-063", "SQ-NUM-023", "SQ-NUM-004"}, with(name),
                     "a gradient without the mean's share, or turned forwards; a rounding between norm and rotation", of(run_generic)});
    cases.push_back({5, std::string("rms_norm_rope.exact.") + name, Kind::vector, {"SQ-LIN-060", "SQ-LIN-062"}, with(name),
                     "pairs of halves, a sine's sign, another row of the table, a neighbour's weight, epsilon outside the root", of(run_exact)});
    cases.push_back({5, std::string("rms_norm_rope.in_place.") + name, Kind::property, {"SQ-LIN-063"}, with(name), "a pair half written when its other half is read", of(run_in_place)});
  }
  cases.push_back({5, "rms_norm_rope.no_rotation", Kind::property, {"SQ-LIN-062"}, needs, "a table needed where there is none", run_no_rotation});
  cases.push_back({5, "rms_norm_rope.apart", Kind::property, {"SQ-LIN-064"}, needs, "statistics over the row", run_apart});
  cases.push_back({5, "rms_norm_rope.refused", Kind::vector, refusal_ids({"SQ-LIN-065", "SQ-LIN-006", "SQ-LIN-031"}), needs, "rows of a table read past its end", run_refused});
}

}  // namespace squareq::gates::g05
