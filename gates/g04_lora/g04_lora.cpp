// Gate 4: the low-rank branch, forward and gradients.
#include <cmath>

#include "gates/harness/goldens.hpp"
#include "gates/harness/half.hpp"
#include "gates/harness/linear.hpp"
#include "gates/harness/linear_cases.hpp"
#include "gates/harness/linear_vectors.hpp"
#include "gates/harness/property.hpp"
#include "gates/harness/registry.hpp"

namespace squareq::gates {
namespace {

Expected exactly(std::vector<double> values) {
  Expected e;
  for (const double v : values) e.add(v, 0);
  return e;
}

void set(Guarded& tensor, const std::vector<double>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) tensor.set(static_cast<std::int64_t>(i), values[i]);
}

/// [rows, columns] -> [columns, rows], row-major.
std::vector<double> transpose(const std::vector<double>& v, std::size_t rows, std::size_t columns) {
  std::vector<double> out(v.size());
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c) out[c * rows + r] = v[r * columns + c];
  return out;
}

/// The golden: in 5 padded to 8, out 3, rank 2, alpha 3; all values dyadic, so outputs and all gradients are exact in any order.
Problem golden_problem(std::int32_t dtype) {
  const auto& g = goldens()["linear"][0];
  Problem p(2, Layer("golden", 3, 5, 8, true), dtype);
  p.y_dtype = dtype;
  set(p.layer.qweight, matrix_of_numbers(g["qweight"]));
  set(p.layer.scale, g["scale"].get<std::vector<double>>());
  set(p.layer.bias, g["bias"].get<std::vector<double>>());
  set(p.x, matrix_of_numbers(g["x"]));
  const double scaling = g["alpha"].get<double>() / g["rank"].get<double>();
  Adapter& a = p.adapter.emplace(2, 3, 5, static_cast<float>(scaling));
  set(a.a_t, transpose(matrix_of_numbers(g["lora_A"]), 5, 2));
  set(a.b_t, transpose(matrix_of_numbers(g["lora_B"]), 2, 3));
  return p;
}

void run_golden_forward(Trial& trial, std::int32_t dtype) {
  const auto& g = goldens()["linear"][0];
  Problem p = golden_problem(dtype);
  Instance& instance = trial.instance();
  const char* suffix = dtype == SQ_F32 ? "_f32" : "_bf16";
  // With bf16 activations H is rounded to bf16 (SQ-LOR-003), which the Python layer does not do: its branch is a golden for F32 only.
  compare(trial, forward(instance, p).y, dtype == SQ_F32 ? exactly(matrix_of_numbers(g["y_lora_f32"])) : oracle_forward(p).y);
  p.adapter.reset();
  compare(trial, forward(instance, p).y, exactly(matrix_of_numbers(g[std::string("y_base") + suffix])));
}

Guarded golden_dy() {
  Guarded dy("dy", Role::in, SQ_F32, {2, 3});
  set(dy, matrix_of_numbers(goldens()["linear"][0]["grad_y"]));
  return dy;
}

void run_golden_backward(Trial& trial, bool saved_h) {
  const auto& g = goldens()["linear"][0];
  Problem p = golden_problem(SQ_F32);
  Instance& instance = trial.instance();
  ForwardOutputs out = forward(instance, p, {.h = true});
  Guarded h("h", Role::in, SQ_F32, {2, 2}), dy = golden_dy();
  h.set_bytes(out.h->bytes());
  BackwardOutputs back = backward(instance, p, dy, nullptr, saved_h ? &h : nullptr);
  compare(trial, *back.dx, exactly(matrix_of_numbers(g["grad_x"])));
  compare(trial, *back.da_t, exactly(transpose(matrix_of_numbers(g["grad_lora_A"]), 5, 2)));
  compare(trial, *back.db_t, exactly(transpose(matrix_of_numbers(g["grad_lora_B"]), 2, 3)));
}

/// Two backwards into the same accumulators: exactly twice the gradient; accumulate = 0 afterwards overwrites.
void run_accumulate(Trial& trial) {
  Instance& instance = trial.instance();
  check_property(trial, 12, [&](Draws& draws) {
    const std::int64_t m = draws.integer("m", 1, 7), n = draws.integer("n", 1, 33), k = draws.integer("k", 1, 70), rank = draws.integer("rank", 1, 5);
    Random random = draws.random("data");
    Problem p(m, Layer("accumulate", n, k, 64, true), SQ_F32);
    fill(p, random, {.rank = rank});
    Guarded dy("dy", Role::in, SQ_F32, {m, n});
    dy.fill([&] { return random.normal(); });
    BackwardOutputs once = backward(instance, p, dy, nullptr, nullptr);
    BackwardOutputs sum;
    sum.da_t.emplace("da_t", Role::inout, SQ_F32, std::vector<std::int64_t>{rank, k});
    sum.db_t.emplace("db_t", Role::inout, SQ_F32, std::vector<std::int64_t>{n, rank});
    for (int i = 0; i < 2; ++i) backward(instance, p, dy, nullptr, nullptr, {.accumulate = true}, nullptr, &sum);
    const auto doubled = [](const Guarded& g) {
      std::vector<double> v = g.values();
      for (double& x : v) x *= 2;
      return exactly(v);
    };
    compare(trial, *sum.da_t, doubled(*once.da_t));
    compare(trial, *sum.db_t, doubled(*once.db_t));
    BackwardOutputs again = backward(instance, p, dy, nullptr, nullptr);
    same_bits("a later call without accumulate", *again.da_t, *once.da_t);
  });
}

/// alpha enters as alpha / rank, linearly and exactly: powers of two times the branch.
void run_alpha(Trial& trial) {
  Random random = trial.random("data");
  // Integers throughout: base and branch are exact, so their difference is too.
  Problem p(4, Layer("alpha", 9, 12, 4, false), SQ_F32);
  fill(p, random, {.dyadic_scales = true, .integer_x = 8, .rank = 4});
  p.adapter->a_t.fill([&] { return static_cast<double>(random.integer(-2, 2)); });
  p.adapter->b_t.fill([&] { return static_cast<double>(random.integer(-2, 2)); });
  Instance& instance = trial.instance();
  p.adapter->scaling = 0.25f;
  const std::vector<double> quarter = forward(instance, p).y.values();
  p.adapter->scaling = 0.5f;
  const ForwardOutputs half = forward(instance, p);
  p.adapter->scaling = 0.f;
  const std::vector<double> base = forward(instance, p).y.values();
  Expected expected;
  bool moved = false;
  for (std::size_t i = 0; i < base.size(); ++i) {
    expected.add(base[i] + 2 * (quarter[i] - base[i]), 0);
    moved = moved || quarter[i] != base[i];
  }
  require(moved, "the branch contributes nothing");
  compare(trial, half.y, expected);
  p.adapter->scaling = 0.25f;
  compare(trial, forward(instance, p).y, exactly(oracle_forward(p).y.value));
}

/// At the start of training B = 0: output of the base to the bit, dA exactly 0, dB not, dX that of the base.
void run_start(Trial& trial) {
  Instance& instance = trial.instance();
  check_property(trial, 12, [&](Draws& draws) {
    const std::int64_t m = draws.integer("m", 1, 6), n = draws.integer("n", 1, 40), k = draws.integer("k", 1, 72), rank = draws.integer("rank", 1, 8);
    Random random = draws.random("data");
    Problem p(m, Layer("start", n, k, 64, true), SQ_F32);
    fill(p, random, {.rank = rank, .b_zero = true});
    Guarded dy("dy", Role::in, SQ_F32, {m, n});
    dy.fill([&] { return random.normal(); });
    const ForwardOutputs with = forward(instance, p);
    BackwardOutputs back = backward(instance, p, dy, nullptr, nullptr);
    for (const double v : back.da_t->values()) require(v == 0, "dA is not 0 although B is");
    compare(trial, *back.db_t, oracle_backward(p, dy, nullptr).db_t);
    p.adapter.reset();
    const ForwardOutputs without = forward(instance, p);
    BackwardOutputs base = backward(instance, p, dy, nullptr, nullptr);
    for (std::int64_t i = 0; i < with.y.count(); ++i) require(with.y.at(i) == without.y.at(i), "B = 0 changes the output at " + std::to_string(i));
    for (std::int64_t i = 0; i < base.dx->count(); ++i) require(back.dx->at(i) == base.dx->at(i), "B = 0 changes dX at " + std::to_string(i));
  });
}

void run_gradients(Trial& trial, std::int32_t dtype, std::int64_t rank) {
  Random random = trial.random("data");
  Problem p(11, Layer("gradients", 45, 70, 64, true), dtype);
  p.y_dtype = dtype;
  fill(p, random, {.rank = rank, .scaling = 0.75f});
  Instance& instance = trial.instance();
  ForwardOutputs out = forward(instance, p, {.h = true});
  const ForwardOracle oracle = oracle_forward(p);
  compare(trial, out.y, oracle.y);
  compare(trial, *out.h, oracle.h);
  Guarded dy("dy", Role::in, dtype, {11, 45}), h("h", Role::in, SQ_F32, {11, rank});
  dy.fill([&] { return random.normal(); });
  h.set_bytes(out.h->bytes());
  const BackwardOracle expected = oracle_backward(p, dy, nullptr);
  BackwardOutputs back = backward(instance, p, dy, nullptr, &h);
  compare(trial, *back.dx, expected.dx);
  compare(trial, *back.da_t, expected.da_t);
  compare(trial, *back.db_t, expected.db_t);
  BackwardOutputs recomputed = backward(instance, p, dy, nullptr, nullptr);
  same_bits("dA with H recomputed", *recomputed.da_t, *back.da_t);
  same_bits("dB with H recomputed", *recomputed.db_t, *back.db_t);
}

/// With dropout the branch has its own input: dx and dx_lora are kept apart, dA uses the branch's x.
void run_own_x(Trial& trial, std::int32_t dtype) {
  Random random = trial.random("data");
  Problem p(8, Layer("dropout", 21, 66, 64, true), dtype);
  p.y_dtype = dtype;
  fill(p, random, {.rank = 4});
  Guarded& own = p.adapter->x_own.emplace("lora x", Role::in, dtype, std::vector<std::int64_t>{8, 66});
  for (std::int64_t i = 0; i < own.count(); ++i) own.set(i, random.integer(0, 3) ? p.x.at(i) * 4 / 3 : 0.0);
  Instance& instance = trial.instance();
  compare(trial, forward(instance, p).y, oracle_forward(p).y);
  Guarded dy("dy", Role::in, dtype, {8, 21});
  dy.fill([&] { return random.normal(); });
  BackwardOutputs back = backward(instance, p, dy, nullptr, nullptr);
  const BackwardOracle expected = oracle_backward(p, dy, nullptr);
  compare(trial, *back.dx, expected.dx);
  compare(trial, *back.dx_lora, expected.dx_lora);
  compare(trial, *back.da_t, expected.da_t);
  compare(trial, *back.db_t, expected.db_t);
}

/// dX of the frozen weight flows although there is no adapter, and the branch adds its own share.
void run_dx_without_adapter(Trial& trial) {
  Problem p = golden_problem(SQ_F32);
  Guarded dy = golden_dy();
  p.adapter.reset();
  BackwardOutputs back = backward(trial.instance(), p, dy, nullptr, nullptr);
  compare(trial, *back.dx, exactly(oracle_backward(p, dy, nullptr).dx.value));
}

/// Central differences of the forward, in exact arithmetic of small integers: no formula of the gradient is used at all.
void run_finite_differences(Trial& trial) {
  Instance& instance = trial.instance();
  check_property(trial, 8, [&](Draws& draws) {
    const std::int64_t m = draws.integer("m", 1, 3), n = draws.integer("n", 1, 5), k = draws.integer("k", 1, 6), rank = draws.integer("rank", 1, 2);
    Random random = draws.random("data");
    Problem p(m, Layer("differences", n, k, 2, false), SQ_F32);
    fill(p, random, {.dyadic_scales = true, .integer_x = 4, .rank = rank});
    p.layer.scale.fill(0x1p-7);
    p.adapter->a_t.fill([&] { return static_cast<double>(random.integer(-4, 4)) / 4; });
    p.adapter->b_t.fill([&] { return static_cast<double>(random.integer(-4, 4)) / 4; });
    Guarded dy("dy", Role::in, SQ_F32, {m, n});
    dy.fill([&] { return static_cast<double>(random.integer(-3, 3)); });
    BackwardOutputs back = backward(instance, p, dy, nullptr, nullptr);
    const auto value = [&] {
      const std::vector<double> y = forward(instance, p).y.values();
      double sum = 0;
      for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * dy.at(static_cast<std::int64_t>(i));
      return sum;
    };
    // The output is linear in x, in A and in B separately: a central difference of step 1 is the exact derivative.
    const auto differences = [&](Guarded& tensor) {
      Expected e;
      for (std::int64_t i = 0; i < tensor.count(); ++i) {
        const double here = tensor.at(i);
        tensor.set(i, here + 1);
        const double up = value();
        tensor.set(i, here - 1);
        const double down = value();
        tensor.set(i, here);
        e.add((up - down) / 2, 0);
      }
      return e;
    };
    compare(trial, *back.dx, differences(p.x));
    compare(trial, *back.da_t, differences(p.adapter->a_t));
    compare(trial, *back.db_t, differences(p.adapter->b_t));
  });
}

void run_activated(Trial& trial, sq_activation activation) {
  Random random = trial.random("data");
  Problem p(6, Layer("activated", 30, 50, 64, true), SQ_F32);
  p.activation = activation;
  fill(p, random, {.rank = 4, .scaling = 2.f});
  Instance& instance = trial.instance();
  ForwardOutputs out = forward(instance, p, {.preactivation = true});
  const ForwardOracle oracle = oracle_forward(p);
  compare(trial, out.y, oracle.y);
  compare(trial, *out.preactivation, oracle.preactivation);
  Guarded dy("dy", Role::in, SQ_F32, {6, 30}), z("preactivation", Role::in, SQ_F32, {6, 30});
  dy.fill([&] { return random.normal(); });
  z.set_bytes(out.preactivation->bytes());
  BackwardOutputs back = backward(instance, p, dy, &z, nullptr);
  const BackwardOracle expected = oracle_backward(p, dy, &z);
  compare(trial, *back.dx, expected.dx);
  compare(trial, *back.da_t, expected.da_t);
  compare(trial, *back.db_t, expected.db_t);
}

void run_differential(Trial& trial) {
  Random random = trial.random("data");
  Problem p(29, Layer("differential", 128, 200, 64, true), SQ_F32);
  fill(p, random, {.rank = 16});
  Guarded dy("dy", Role::in, SQ_F32, {29, 128});
  dy.fill([&] { return random.normal(); });
  const BackwardOutputs mine = backward(trial.instance(), p, dy, nullptr, nullptr), other = backward(trial.reference(), p, dy, nullptr, nullptr);
  BackwardOracle bounds = oracle_backward(p, dy, nullptr);
  const auto against = [&](const Guarded& a, const Guarded& b, Expected& oracle) {
    for (double& bound : oracle.bound) bound *= 2;
    compare(trial, a, Expected{b.values(), oracle.bound});
  };
  against(*mine.dx, *other.dx, bounds.dx);
  against(*mine.da_t, *other.da_t, bounds.da_t);
  against(*mine.db_t, *other.db_t, bounds.db_t);
}

/// Every subset of the outputs: what is asked for does not depend on what is not.
void run_subsets(Trial& trial) {
  Random random = trial.random("data");
  for (const bool own : {false, true}) {
    Problem p(4, Layer("subsets", 21, 66, 64, true), SQ_F32);
    fill(p, random, {.rank = 3});
    if (own) p.adapter->x_own.emplace("lora x", Role::in, SQ_F32, std::vector<std::int64_t>{4, 66}).fill([&] { return random.normal(); });
    Guarded dy("dy", Role::in, SQ_F32, {4, 21});
    dy.fill([&] { return random.normal(); });
    Instance& instance = trial.instance();
    const BackwardOutputs all = backward(instance, p, dy, nullptr, nullptr);
    const DirectWeight direct(p.layer);
    auto lora = sized<sq_lora>();
    lora.scaling = p.adapter->scaling;
    lora.a_t = p.adapter->a_t.tensor();
    lora.b_t = p.adapter->b_t.tensor();
    lora.x = own ? p.adapter->x_own->tensor() : nullptr;
    for (unsigned wanted = 0; wanted < (own ? 16u : 8u); ++wanted) {
      Guarded dx("dx", Role::out, SQ_F32, {4, 66}), dx_lora("dx_lora", Role::out, SQ_F32, {4, 66}), da("da_t", Role::out, SQ_F32, {3, 66}), db("db_t", Role::out, SQ_F32, {21, 3});
      auto args = sized<sq_linear_backward_args>();
      args.weight = direct.ref();
      args.dy = dy.tensor();
      args.x = p.x.tensor();
      args.lora = &lora;
      args.dx = wanted & 1 ? dx.tensor() : nullptr;
      args.da_t = wanted & 2 ? da.tensor() : nullptr;
      args.db_t = wanted & 4 ? db.tensor() : nullptr;
      args.dx_lora = wanted & 8 ? dx_lora.tensor() : nullptr;
      call_ok("linear_backward of some outputs", {wanted & 1 ? &dx : nullptr, wanted & 2 ? &da : nullptr, wanted & 4 ? &db : nullptr, wanted & 8 ? &dx_lora : nullptr, &dy, &p.x},
              [&](sq_error* e) { return instance.linear().linear_backward(instance.get(), &args, e); });
      const std::string which = "subset " + std::to_string(wanted) + (own ? " with the branch's own x: " : ": ");
      if (wanted & 1) same_bits(which + "dX", dx, *all.dx);
      if (wanted & 2) same_bits(which + "dA", da, *all.da_t);
      if (wanted & 4) same_bits(which + "dB", db, *all.db_t);
      if (wanted & 8) same_bits(which + "dX of the branch", dx_lora, *all.dx_lora);
    }
  }
}

void run_refusals(Trial& trial) {
  Problem p = golden_problem(SQ_F32);
  Instance& instance = trial.instance();
  const DirectWeight direct(p.layer);
  Guarded y("y", Role::out, SQ_F32, {2, 3}), da("da_t", Role::out, SQ_F32, {2, 5}), half("lora a_t", Role::in, SQ_BF16, {2, 5}), wide("lora a_t", Role::in, SQ_F32, {2, 8});
  const auto refuse = [&](const char* what, std::initializer_list<Code> codes, const Guarded& a_t, const Guarded& b_t) {
    auto lora = sized<sq_lora>();
    lora.scaling = 1;
    lora.a_t = a_t.tensor();
    lora.b_t = b_t.tensor();
    auto args = sized<sq_linear_forward_args>();
    args.weight = direct.ref();
    args.x = p.x.tensor();
    args.lora = &lora;
    args.y = y.tensor();
    call_refused(what, codes, {&y, &p.x}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); });
  };
  refuse("lora A of bf16", {Code::CALL_DTYPE}, half, p.adapter->b_t);
  refuse("lora A of the padded width", {Code::CALL_SHAPE}, wide, p.adapter->b_t);
  refuse("lora A and B exchanged", {Code::CALL_SHAPE}, p.adapter->b_t, p.adapter->a_t);
  auto args = sized<sq_linear_backward_args>();
  Guarded dy = golden_dy();
  args.weight = direct.ref();
  args.dy = dy.tensor();
  args.x = p.x.tensor();
  args.da_t = da.tensor();
  call_refused("da_t asked for without an adapter", {Code::CALL_VALUE, Code::CALL_NULL}, {&da, &dy}, [&](sq_error* e) { return instance.linear().linear_backward(instance.get(), &args, e); });
}

}  // namespace

void add_g04_lora(Cases& cases) {
  const std::vector<std::string> needs = {"linear", "lora", "operation:linear_forward", "operation:linear_backward"};
  const auto with_dtype = [&](const char* dtype) {
    std::vector<std::string> all = needs;
    all.push_back(std::string("dtype:") + dtype);
    return all;
  };
  cases.push_back({4, "lora.golden.forward.f32", Kind::vector, {"SQ-LOR-001"}, needs, "alpha instead of alpha/rank, padded columns in A, B transposed", [](Trial& t) { run_golden_forward(t, SQ_F32); }});
  cases.push_back({4, "lora.golden.forward.bf16", Kind::vector, {"SQ-LOR-001"}, with_dtype("bf16"), "output rounded twice", [](Trial& t) { run_golden_forward(t, SQ_BF16); }});
  cases.push_back({4, "lora.subsets_of_outputs", Kind::property, {"SQ-LIN-013"}, needs, "an output that is needed although nobody asked for it", run_subsets});
  cases.push_back({4, "lora.golden.backward", Kind::vector, {"SQ-LOR-010", "SQ-LOR-011", "SQ-NUM-011"}, needs, "any of the gradients off by a factor or transposed", [](Trial& t) { run_golden_backward(t, false); }});
  cases.push_back({4, "lora.golden.backward_saved_h", Kind::vector, {"SQ-LOR-004", "SQ-LOR-010"}, needs, "saved H ignored or scaled twice", [](Trial& t) { run_golden_backward(t, true); }});
  cases.push_back({4, "lora.accumulate", Kind::property, {"SQ-LOR-012"}, needs, "accumulate ignored, or added where it must overwrite", run_accumulate});
  cases.push_back({4, "lora.alpha", Kind::vector, {"SQ-LOR-001"}, needs, "scaling not linear or applied twice (the published test allows 7 %)", run_alpha});
  cases.push_back({4, "lora.start_of_training", Kind::property, {"SQ-LOR-006", "SQ-LOR-013"}, needs, "B = 0 that changes the output; dA not 0", run_start});
  for (const auto& [dtype, name] : activation_dtypes) {
    for (const std::int64_t rank : {1, 8, 96})
      cases.push_back({4, std::string("lora.gradients.") + name + ".rank" + std::to_string(rank), Kind::vector, {"SQ-LOR-010", "SQ-LOR-001", "SQ-LOR-004", "SQ-LOR-014", "SQ-NUM-020", "SQ-NUM-021", dtype == SQ_F32 ? "SQ-LOR-002" : "SQ-LOR-003"}, with_dtype(name),
                       "rank above min(in, out), rounding of A, B and H", [dtype = dtype, rank](Trial& t) { run_gradients(t, dtype, rank); }});
    cases.push_back({4, std::string("lora.own_input.") + name, Kind::vector, {"SQ-LOR-005", "SQ-LOR-011"}, with_dtype(name), "dropout: the branch's gradient mixed into the base's", [dtype = dtype](Trial& t) { run_own_x(t, dtype); }});
  }
  for (const auto& [activation, name] : activations)
    cases.push_back({4, std::string("lora.activation.") + name, Kind::vector, {"SQ-LOR-001", "SQ-LIN-020"}, needs, "branch added after the activation", [activation = activation](Trial& t) { run_activated(t, activation); }});
  cases.push_back({4, "lora.dx_without_adapter", Kind::vector, {"SQ-LIN-010"}, needs, "no gradient through the frozen weight (V1's kernel)", run_dx_without_adapter});
  cases.push_back({4, "lora.finite_differences", Kind::property, {"SQ-LOR-010"}, needs, "a gradient that is not the derivative of the forward", run_finite_differences});
  cases.push_back({4, "lora.differential", Kind::differential, {"SQ-NUM-021"}, needs, "backend and reference apart by more than both bounds", run_differential});
  cases.push_back({4, "lora.refusals", Kind::vector, {"SQ-LOR-015", "SQ-LIN-040", "SQ-LIN-041", "SQ-CNV-003"}, needs, "16-bit masters accepted, shapes broadcast", run_refusals});
  add_linear_vectors(cases, 4);
}

}  // namespace squareq::gates
