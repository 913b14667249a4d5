// Exact-by-construction vectors: integers times powers of two, sized so that fp32 holds every partial sum. One answer, to the bit, on
// every backend, in every order of summation, dequantized first or scaled last.
#include <cmath>

#include "gates/g05_forward/g05_forward.hpp"
#include "gates/harness/half.hpp"

namespace squareq::gates::g05 {
namespace {

/// The oracle's value rounded once to the output's dtype; equality is demanded.
Expected exactly(const Expected& oracle, std::int32_t dtype) {
  Expected e;
  for (double v : oracle.value) {
    if (dtype == SQ_BF16) v = from_bf16(to_bf16(static_cast<float>(v)));
    else if (dtype == SQ_F16) v = from_f16(to_f16(v));
    e.add(v, 0);
  }
  return e;
}

Problem exact_problem(Trial& trial, const Shape& s, std::int32_t x_dtype, std::int32_t y_dtype, bool bias) {
  Random random = trial.random("data");
  Problem p(s.m, Layer("exact", s.n, s.k, s.pack, bias), x_dtype);
  p.y_dtype = y_dtype;
  fill(p, random, {.dyadic_scales = true, .integer_x = exact_limit(s.k, x_dtype)});
  return p;
}

void run_forward(Trial& trial, const Shape& s, std::int32_t x_dtype, std::int32_t y_dtype, bool bias) {
  Problem p = exact_problem(trial, s, x_dtype, y_dtype, bias);
  Instance& instance = trial.instance();
  const ForwardOutputs out = forward(instance, p);
  compare(trial, out.y, exactly(oracle_forward(p).y, y_dtype));
}

void run_backward(Trial& trial, const Shape& s, std::int32_t dtype) {
  // For dX the sum runs over N, and the row scales take part in it: one scale for all rows keeps the unit common.
  Random random = trial.random("data");
  Problem p(s.m, Layer("exact", s.n, s.k, s.pack, true), dtype);
  fill(p, random, {.dyadic_scales = true, .integer_x = 1});
  p.layer.scale.fill(0x1p-7);
  Guarded dy("dy", Role::in, dtype, {s.m, s.n});
  const std::int64_t limit = exact_limit(s.n, dtype);
  dy.fill([&] { return static_cast<double>(random.integer(-limit, limit)); });
  BackwardOutputs out = backward(trial.instance(), p, dy, nullptr, nullptr);
  compare(trial, *out.dx, exactly(oracle_backward(p, dy, nullptr).dx, dtype));
}

}  // namespace

void add_exact(Cases& cases) {
  // Odd, prime, tiny and long; K on, below and above a multiple of the padding; the published tests' own (4,64,128), (1,32,48), (256,64,64).
  static constexpr Shape shapes[] = {{4, 64, 128, 64}, {1, 32, 48, 64}, {256, 64, 64, 64},  {2, 5, 3, 8},      {5, 7, 11, 1},    {13, 11, 7, 4},
                                     {3, 63, 5, 64},   {3, 65, 5, 64},  {3, 100, 33, 64},   {2, 127, 131, 64}, {8, 64, 1, 64},   {1, 1, 1, 1},
                                     {17, 256, 3, 64}, {2, 3072, 16, 64}, {1, 15360, 8, 64}, {1, 55296, 4, 64}, {33, 129, 257, 64}};
  for (const auto& [dtype, name] : activation_dtypes)
    for (const Shape& s : shapes)
      cases.push_back({5, std::string("forward.exact.") + name + "." + shape_slug(s), Kind::vector, {"SQ-NUM-010", "SQ-LIN-001"},
                       {"linear", "operation:linear_forward", std::string("dtype:") + name},
                       "indexing, row scales, padding, accumulators narrower than 24 bits", [s, dtype = dtype](Trial& t) { run_forward(t, s, dtype, dtype, true); }});
  for (const auto& [dtype, name] : activation_dtypes) {
    if (dtype != SQ_F32)
      cases.push_back({5, std::string("forward.exact.") + name + "_to_f32", Kind::vector, {"SQ-NUM-003", "SQ-NUM-010"},
                       {"linear", "operation:linear_forward", std::string("dtype:") + name},
                       "an output that passes through 16 bits although F32 was asked for", [dtype = dtype](Trial& t) { run_forward(t, {6, 192, 40, 64}, dtype, SQ_F32, true); }});
    cases.push_back({5, std::string("forward.exact.") + name + ".no_bias", Kind::vector, {"SQ-LIN-001", "SQ-LIN-007"}, {"linear", "operation:linear_forward", std::string("dtype:") + name},
                     "a bias or an activation applied by default", [dtype = dtype](Trial& t) { run_forward(t, {5, 96, 24, 64}, dtype, dtype, false); }});
    for (const Shape& s : {Shape{4, 64, 128, 64}, Shape{3, 5, 7, 8}, Shape{1, 33, 17, 64}, Shape{7, 130, 1, 64}, Shape{2, 64, 3072, 64}})
      cases.push_back({5, std::string("backward.exact.") + name + "." + shape_slug(s), Kind::vector, {"SQ-NUM-011", "SQ-LIN-010"},
                       {"linear", "operation:linear_backward", std::string("dtype:") + name},
                       "no or a wrong gradient to x through the frozen weight", [s, dtype = dtype](Trial& t) { run_backward(t, s, dtype); }});
  }
}

}  // namespace squareq::gates::g05
