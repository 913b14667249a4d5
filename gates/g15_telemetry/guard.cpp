// The numeric guard: exact counts for known tensors in every float dtype, rank and stride.
#include <bit>
#include <cmath>
#include <cstring>

#include "gates/g15_telemetry/g15_telemetry.hpp"
#include "gates/harness/linear_cases.hpp"
#include "squareq/tensor.hpp"

namespace squareq::gates::g15 {

Counts guarded_counts(Instance& instance, const sq_tensor& x, std::initializer_list<Guarded*> tensors) {
  Guarded counts("counts", Role::inout, SQ_I64, {2});
  counts.set(0, 1000);
  counts.set(1, 2000);
  counts.arm();
  auto args = sized<sq_numeric_guard_args>();
  args.x = &x;
  args.counts = counts.tensor();
  call_ok("numeric_guard", tensors, [&](sq_error* e) { return instance.linear().numeric_guard(instance.get(), &args, e); });
  if (const std::string damage = counts.damage_after_success(); !damage.empty()) fail(damage);
  return {static_cast<std::int64_t>(counts.at(0)) - 1000, static_cast<std::int64_t>(counts.at(1)) - 2000};
}

namespace {

void same(const std::string& what, const Counts& got, const Counts& expected) {
  require(got.nans == expected.nans && got.infinite == expected.infinite, what + ": counted " + std::to_string(got.nans) + " NaN and " + std::to_string(got.infinite) + " infinite, there are " +
                                                                              std::to_string(expected.nans) + " and " + std::to_string(expected.infinite));
}

/// Bit patterns on both sides of every border: largest finite, infinity, quiet and signalling NaN of either sign, subnormals.
std::vector<std::uint32_t> borders(std::int32_t dtype, Counts& counts) {
  const std::uint32_t infinity = dtype == SQ_F32 ? 0x7F800000u : dtype == SQ_BF16 ? 0x7F80u : 0x7C00u;
  const std::uint32_t sign = dtype == SQ_F32 ? 0x80000000u : 0x8000u;
  const std::uint32_t quiet = dtype == SQ_F32 ? 0x00400000u : dtype == SQ_BF16 ? 0x0040u : 0x0200u;
  std::vector<std::uint32_t> bits;
  for (const std::uint32_t s : {0u, sign}) {
    for (const std::uint32_t finite : {0u, 1u, quiet, infinity - 1}) bits.push_back(s | finite);
    bits.push_back(s | infinity);
    for (const std::uint32_t payload : {1u, quiet, quiet | 1u, quiet - 1}) bits.push_back(s | infinity | payload);
  }
  counts = {8, 2};
  return bits;
}

void run_borders(Trial& trial, std::int32_t dtype) {
  Counts expected;
  const std::vector<std::uint32_t> bits = borders(dtype, expected);
  Guarded x("x", Role::in, dtype, {static_cast<std::int64_t>(bits.size())});
  std::vector<std::byte> bytes;
  for (const std::uint32_t b : bits) {
    const auto* from = reinterpret_cast<const std::byte*>(&b);  // little endian: the low bytes come first
    bytes.insert(bytes.end(), from, from + dtype_bytes(dtype));
  }
  x.set_bytes(bytes);
  same("border patterns", guarded_counts(trial.instance(), *x.tensor(), {&x}), expected);
}

/// A large tensor with known numbers of each, its rows apart: gaps hold NaN and must not be counted.
void run_large(Trial& trial, std::int32_t dtype) {
  Random random = trial.random("x");
  Guarded x("x", Role::in, dtype, {203, 517}, 600);
  x.fill([&] { return random.normal(); });
  Counts expected;
  for (std::int64_t i = 0; i < x.count(); i += random.integer(1, 40)) {
    const std::int64_t kind = random.integer(0, 4);
    if (kind == 0) x.set(i, random.integer(0, 1) ? NAN : -NAN), ++expected.nans;
    if (kind == 1) x.set(i, random.integer(0, 1) ? INFINITY : -INFINITY), ++expected.infinite;
  }
  require(expected.nans > 100 && expected.infinite > 100, "the suite's own data hold too few of either");
  same("a tensor of 203 x 517", guarded_counts(trial.instance(), *x.tensor(), {&x}), expected);
}

/// Ranks 0 to 4, transposed and overlapping views, and nothing at all.
void run_views(Trial& trial) {
  Instance& instance = trial.instance();
  Guarded x("x", Role::in, SQ_F32, {24});
  x.fill([] { return 1.0; });
  x.set(0, NAN);
  x.set(7, INFINITY);
  x.set(23, NAN);
  const auto view = [&](std::vector<std::int64_t> shape, std::vector<std::int64_t> strides) {
    sq_tensor t = *x.tensor();
    t.rank = static_cast<std::int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), t.shape);
    std::copy(strides.begin(), strides.end(), t.strides);
    return t;
  };
  const auto check_view = [&](const std::string& what, const sq_tensor& t, const Counts& expected) { same(what, guarded_counts(instance, t, {&x}), expected); };
  check_view("a scalar", view({}, {}), {1, 0});
  check_view("rank 3", view({2, 3, 4}, {12, 4, 1}), {2, 1});
  check_view("rank 4", view({2, 3, 2, 2}, {12, 4, 2, 1}), {2, 1});
  check_view("a transposed view", view({4, 6}, {1, 4}), {2, 1});
  check_view("every second element", view({12}, {2}), {1, 0});
  check_view("one element seen three times", view({3}, {0}), {3, 0});
  check_view("no element", view({0, 5}, {5, 1}), {0, 0});
}

void run_refused(Trial& trial) {
  Instance& instance = trial.instance();
  Guarded x("x", Role::in, SQ_F32, {8}), codes("x", Role::in, SQ_I8, {8}), counts("counts", Role::inout, SQ_I64, {2}), narrow("counts", Role::inout, SQ_I64, {1}), wrong("counts", Role::inout, SQ_I32, {2});
  const auto refuse = [&](const char* what, std::initializer_list<Code> wanted, const sq_tensor* t, const sq_tensor* c) {
    auto args = sized<sq_numeric_guard_args>();
    args.x = t;
    args.counts = c;
    call_refused(what, wanted, {&x, &codes, &counts, &narrow, &wrong}, [&](sq_error* e) { return instance.linear().numeric_guard(instance.get(), &args, e); });
  };
  refuse("numeric_guard of codes", {Code::CALL_DTYPE}, codes.tensor(), counts.tensor());
  refuse("numeric_guard without a tensor", {Code::CALL_NULL}, nullptr, counts.tensor());
  refuse("numeric_guard without counters", {Code::CALL_NULL}, x.tensor(), nullptr);
  refuse("numeric_guard with one counter", {Code::CALL_SHAPE}, x.tensor(), narrow.tensor());
  refuse("numeric_guard with counters of I32", {Code::CALL_DTYPE}, x.tensor(), wrong.tensor());
}

}  // namespace

void add_guard(Cases& cases) {
  const std::vector<std::string> needs = {"linear", "operation:numeric_guard"};
  for (const auto& [dtype, name] : activation_dtypes) {
    cases.push_back({15, std::string("guard.borders.") + name, Kind::vector, {"SQ-LIN-030"}, needs, "the largest finite number, or a NaN with a payload, taken for an infinity", [dtype = dtype](Trial& t) { run_borders(t, dtype); }});
    cases.push_back({15, std::string("guard.large.") + name, Kind::property, {"SQ-LIN-030"}, needs, "a lost update of a counter; row gaps counted", [dtype = dtype](Trial& t) { run_large(t, dtype); }});
  }
  cases.push_back({15, "guard.views", Kind::vector, {"SQ-LIN-030"}, needs, "strides or ranks ignored", run_views});
  cases.push_back({15, "guard.refused", Kind::vector, {"SQ-LIN-040", "SQ-LIN-041", "SQ-LIN-043", "SQ-LIN-046"}, needs, "counters written by a refused call", run_refused});
}

}  // namespace squareq::gates::g15
