// Every value of the 16-bit floats, in and out: conversions are right on all of them or they are not right.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>

#include "gates/g05_forward/g05_forward.hpp"
#include "gates/harness/half.hpp"

namespace squareq::gates::g05 {
namespace {

double value_of(std::int32_t dtype, std::uint16_t bits) { return dtype == SQ_BF16 ? static_cast<double>(from_bf16(bits)) : from_f16(bits); }

/// X holds all 65,536 bit patterns, the weight is 1: Y in F32 is the same number, NaN stays NaN and infinity infinity.
void run_read(Trial& trial, std::int32_t dtype) {
  constexpr std::int64_t count = 65536;
  Problem p(count, Layer("identity", 1, 1, 1, false), dtype);
  p.layer.qweight.set(0, 1);
  p.layer.scale.set(0, 1);
  std::vector<std::byte> bytes(count * 2);
  Expected expected;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    std::memcpy(bytes.data() + 2 * i, &bits, 2);
    expected.add(value_of(dtype, bits), 0);
  }
  p.x.set_bytes(bytes);
  p.y_dtype = SQ_F32;
  Instance& instance = trial.instance();
  compare(trial, forward(instance, p).y, expected);
  // And back: a value of the dtype is its own nearest. One NaN stands for all, lest one look like an element that was not written.
  for (std::int64_t i = 0; i < count; ++i)
    if (std::isnan(expected.value[static_cast<std::size_t>(i)])) p.x.set(i, NAN);
  p.y_dtype = dtype;
  compare(trial, forward(instance, p).y, expected);
}

/// Codes of +1 and -1 times scales at, half-way between and one fp32 step beside half-way between neighbours: what they round to follows
/// from where they lie, ties go to the even pattern, and half-way above the largest value lies infinity.
void run_write(Trial& trial, std::int32_t dtype) {
  const std::uint16_t infinity = dtype == SQ_BF16 ? 0x7F80 : 0x7C00;
  std::vector<float> scales;
  std::vector<double> rounded;
  const auto add = [&](float scale, std::uint16_t bits) {
    scales.push_back(scale);
    rounded.push_back(value_of(dtype, bits));
  };
  for (std::uint16_t low = 0; low < infinity; ++low) {
    const auto high = static_cast<std::uint16_t>(low + 1);
    const double below = value_of(dtype, low);
    // The neighbour of the largest value is infinity; for rounding it counts as the next power of two.
    const double above = high == infinity ? 2 * value_of(dtype, static_cast<std::uint16_t>(infinity - (dtype == SQ_BF16 ? 0x80 : 0x400))) : value_of(dtype, high);
    const auto middle = static_cast<float>((below + above) / 2);
    const float inf = static_cast<float>(INFINITY);
    if (low != 0) add(static_cast<float>(below), low);
    if (std::nextafter(middle, 0.0f) > 0) add(std::nextafter(middle, 0.0f), low);
    add(middle, low % 2 ? high : low);
    add(std::nextafter(middle, inf), high);
  }
  const auto rows = static_cast<std::int64_t>(scales.size());
  Layer layer("rounding", rows, 2, 1, false);
  layer.scale.set_bytes(std::as_bytes(std::span(scales)));
  std::vector<std::int8_t> codes;
  for (std::int64_t i = 0; i < rows; ++i) codes.insert(codes.end(), {1, -1});
  layer.qweight.set_bytes(std::as_bytes(std::span(codes)));
  Guarded out("out", Role::out, dtype, {rows, 2});
  const DirectWeight direct(layer);
  auto args = sized<sq_dequantize_args>();
  args.weight = direct.ref();
  args.out = out.tensor();
  Instance& instance = trial.instance();
  call_ok("dequantize", {&layer.qweight, &layer.scale, &layer.zero_point, &out}, [&](sq_error* e) { return instance.linear().dequantize(instance.get(), &args, e); });
  Expected expected;
  for (const double v : rounded) expected.add(v, 0), expected.add(-v, 0);
  compare(trial, out, expected);
}

/// A NaN of any payload in an F32 adapter is a NaN in 16 bits too: H and Y are NaN in its column and nowhere else.
void run_nan_adapter(Trial& trial, std::int32_t dtype) {
  Instance& instance = trial.instance();
  for (const std::uint32_t bits : {0x7F800001u, 0x7FBFFFFFu, 0xFF800001u, 0xFF80FFFFu, 0x7FC00000u, 0xFFFFFFFFu}) {
    Problem p(2, Layer("nan", 1, 2, 1, false), dtype);
    p.layer.qweight.fill(1.0);
    p.layer.scale.fill(1.0);
    p.x.fill(1.0);
    p.y_dtype = dtype;
    Adapter& a = p.adapter.emplace(2, 1, 2, 1.0f);
    const float nan = std::bit_cast<float>(bits), rows[4] = {1, 1, 1, nan};
    a.a_t.set_bytes(std::as_bytes(std::span(rows)));
    a.b_t.fill(1.0);
    const ForwardOutputs out = forward(instance, p, {.h = true});
    compare(trial, out.y, Expected{{NAN, NAN}, {0, 0}});
    compare(trial, *out.h, Expected{{2, NAN, 2, NAN}, {0, 0, 0, 0}});
  }
}

}  // namespace

void add_numbers(Cases& cases) {
  for (const auto& [dtype, name] : activation_dtypes) {
    if (dtype == SQ_F32) continue;
    const std::string need = std::string("dtype:") + name;
    cases.push_back({5, std::string("numbers.every_value_read.") + name, Kind::vector, {"SQ-NUM-001", "SQ-NUM-003"}, {"linear", "operation:linear_forward", need},
                     "subnormals flushed, NaN made finite, sign lost", [dtype = dtype](Trial& t) { run_read(t, dtype); }});
    cases.push_back({5, std::string("numbers.every_rounding.") + name, Kind::vector, {"SQ-NUM-001", "SQ-QNT-012"}, {"linear", "operation:dequantize", need},
                     "truncation, ties away from even, a wrong border to subnormals or to infinity", [dtype = dtype](Trial& t) { run_write(t, dtype); }});
    cases.push_back({5, std::string("numbers.nan_adapter.") + name, Kind::vector, {"SQ-NUM-001", "SQ-LOR-003"}, {"linear", "lora", "operation:linear_forward", need},
                     "a NaN whose payload is cut off becomes infinity or a number", [dtype = dtype](Trial& t) { run_nan_adapter(t, dtype); }});
  }
}

}  // namespace squareq::gates::g05
