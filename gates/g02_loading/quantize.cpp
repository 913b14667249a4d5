// Quantization to bp8_v2 against the published vectors, each of which separates the right arithmetic from a named wrong one, and as
// properties of random weights.
#include <fmt/format.h>

#include <cmath>

#include "gates/g02_loading/g02_loading.hpp"
#include "gates/harness/bounds.hpp"
#include "gates/harness/goldens.hpp"
#include "gates/harness/half.hpp"
#include "gates/harness/property.hpp"
#include "gates/harness/quantize_call.hpp"
#include "squareq/text.hpp"

namespace squareq::gates::g02 {
namespace {

using nlohmann::json;

Guarded weights_of_hex(const json& vector) {
  Guarded w("w", Role::in, SQ_F32, {vector["orig_shape"][0].get<std::int64_t>(), vector["orig_shape"][1].get<std::int64_t>()});
  const std::vector<double> values = matrix_of_hex(vector["weight_f32_hex"]);
  for (std::size_t i = 0; i < values.size(); ++i) w.set(static_cast<std::int64_t>(i), values[i]);
  return w;
}

/// Which known mistake gives what we see, for the message.
std::string likely_cause(const json& vector, const Quantized& q) {
  if (!vector.contains("wrong_if")) return "";
  for (const auto& [mistake, wrong] : vector["wrong_if"].items()) {
    if (wrong.contains("qweight") && matrix_of_numbers(wrong["qweight"]) == q.qweight.values()) return " (as with the mistake '" + mistake + "')";
    if (wrong.contains("qweight_sha256")) {
      const auto bytes = q.qweight.bytes();
      if (wrong["qweight_sha256"] == sha256_hex(bytes.data(), bytes.size())) return " (as with the mistake '" + mistake + "')";
    }
  }
  return "";
}

void check_zero_points(const Quantized& q) {
  for (std::int64_t i = 0; i < q.zero_point.count(); ++i)
    require(q.zero_point.at(i) == 0 && !std::signbit(q.zero_point.at(i)), "zero_point[" + std::to_string(i) + "] is not +0");
}

void run_row(Trial& trial, const json& vector) {
  Guarded w = weights_of_hex(vector);
  const std::int64_t pack = vector["pack_k"].get<std::int64_t>();
  if (vector["name"] == "flt_max_row") {
    // 127 * scale overflows: the arithmetic has an answer, but no slab may hold it.
    quantize_refused(trial.instance(), w, pack, {Code::DT_WEIGHT_NONFINITE, Code::DT_SCALE_RANGE}, "a row whose dequantized maximum overflows");
    return;
  }
  const Quantized q = quantize(trial.instance(), w, pack);
  for (std::int64_t n = 0; n < w.rows(); ++n) {
    const std::string expected = vector["scale_f32_hex"][static_cast<std::size_t>(n)].get<std::string>();
    const std::string actual = hex_of_float(static_cast<float>(q.scale.at(n)));
    require(actual == expected, fmt::format("scale[{}] is {}, expected {}{}", n, actual, expected, likely_cause(vector, q)));
  }
  const std::vector<double> codes = q.qweight.values(), expected = matrix_of_numbers(vector["qweight"]);
  for (std::size_t i = 0; i < expected.size(); ++i)
    require(codes[i] == expected[i], fmt::format("code {} is {}, expected {}{}", i, codes[i], expected[i], likely_cause(vector, q)));
  check_zero_points(q);
}

/// The goldens' generator: four draws of a 16-bit LCG per weight.
Guarded generated_weights(const json& vector) {
  const std::int64_t n = vector["orig_shape"][0].get<std::int64_t>(), k = vector["orig_shape"][1].get<std::int64_t>();
  const std::string dtype = vector["dtype"].get<std::string>();
  Guarded w("w", Role::in, dtype == "bf16" ? SQ_BF16 : dtype == "f16" ? SQ_F16 : SQ_F32, {n, k});
  auto state = vector["seed"].get<std::uint32_t>();
  const auto u16 = [&] {
    state = state * 1664525u + 1013904223u;
    return static_cast<std::int64_t>(state >> 16);
  };
  const int shift = vector["shift"].get<int>();
  w.fill([&] {
    std::int64_t t = -131070;
    for (int i = 0; i < 4; ++i) t += u16();
    return std::ldexp(static_cast<double>(t), -shift);
  });
  return w;
}

void run_hashed(Trial& trial, const json& vector) {
  Guarded w = generated_weights(vector);
  std::vector<float> as_float;
  for (const double v : w.values()) as_float.push_back(static_cast<float>(v));
  require(sha256_hex(as_float.data(), as_float.size() * sizeof(float)) == vector["weight_f32_sha256"].get<std::string>(), "the suite's own weight generator is off: not the implementation's fault");
  const Quantized q = quantize(trial.instance(), w, vector["pack_k"].get<std::int64_t>());
  const auto scale = q.scale.bytes(), codes = q.qweight.bytes();
  require(sha256_hex(scale.data(), scale.size()) == vector["scale_sha256"].get<std::string>(), "scales differ from the golden" + likely_cause(vector, q));
  require(sha256_hex(codes.data(), codes.size()) == vector["qweight_sha256"].get<std::string>(), "codes differ from the golden" + likely_cause(vector, q));
  check_zero_points(q);
}

void run_non_finite(Trial& trial, const json& vector) {
  Guarded w("w", Role::in, SQ_F32, {1, 4});
  const std::vector<double> values = matrix_of_hex(vector["weight_f32_hex"]);
  for (std::size_t i = 0; i < values.size(); ++i) w.set(static_cast<std::int64_t>(i), values[i]);
  quantize_refused(trial.instance(), w, vector["pack_k"].get<std::int64_t>(), {Code::DT_WEIGHT_NONFINITE}, "a weight with NaN or infinity");
}

/// Error of every element, the invariants of a row, padding zero. The published bound is a whole step, which a floor or 7 bits pass.
void run_bound(Trial& trial, std::int32_t dtype) {
  Instance& instance = trial.instance();
  check_property(trial, 24, [&](Draws& draws) {
    const std::int64_t rows = draws.integer("n", 1, 40), k = draws.choose("k", {1, 7, 63, 64, 65, 200}), pack = draws.choose("pack", {1, 8, 64});
    const double size = std::ldexp(1.0, static_cast<int>(draws.integer("exponent", -12, 8)));
    Random random = draws.random("weights");
    Guarded w("w", Role::in, dtype, {rows, k});
    w.fill([&] { return size * random.normal(); });
    const Quantized q = quantize(instance, w, pack);
    double worst = 0;
    for (std::int64_t n = 0; n < w.rows(); ++n) {
      const double s = q.scale.at(n);
      double largest = 0, amax = 0;
      for (std::int64_t c = 0; c < k; ++c) {
        worst = std::max(worst, std::fabs(w.at(n, c) - q.qweight.at(n, c) * s) / quantization_bound(s));
        largest = std::max(largest, std::fabs(q.qweight.at(n, c)));
        amax = std::max(amax, std::fabs(w.at(n, c)));
        require(q.qweight.at(n, c) >= -127, "code -128 at row " + std::to_string(n));
      }
      require(amax < 1.27e-6 || largest == 127, "row " + std::to_string(n) + " does not use the whole range: its largest code is " + std::to_string(largest));
      for (std::int64_t c = k; c < q.qweight.columns(); ++c) require(q.qweight.at(n, c) == 0, "padding column " + std::to_string(c) + " is not 0");
    }
    trial.margin(worst);
    check_zero_points(q);
  });
}

/// nn.Linear's uniform initialization: RMSE / mean |w| is 2 / (127 sqrt 12) = 0.00455 at 8 bits, 0.0091 at 7.
void run_uniform_rmse(Trial& trial) {
  Random random = trial.random("weights");
  Guarded w("w", Role::in, SQ_F32, {256, 512});
  w.fill([&] { return random.uniform(-0.044, 0.044); });
  const Quantized q = quantize(trial.instance(), w, 64);
  double squares = 0, magnitude = 0;
  for (std::int64_t n = 0; n < w.rows(); ++n)
    for (std::int64_t k = 0; k < w.columns(); ++k) {
      const double error = w.at(n, k) - q.qweight.at(n, k) * q.scale.at(n);
      squares += error * error;
      magnitude += std::fabs(w.at(n, k));
    }
  const auto count = static_cast<double>(w.count());
  const double ratio = std::sqrt(squares / count) / (magnitude / count), expected = 2 / (127 * std::sqrt(12.0));
  trial.margin(std::fabs(ratio / expected - 1) / 0.05);
}

/// A 16-bit or 64-bit source gives what its exact F32 value gives.
void run_source_dtype(Trial& trial, std::int32_t dtype) {
  Instance& instance = trial.instance();
  check_property(trial, 16, [&](Draws& draws) {
    const std::int64_t rows = draws.integer("n", 1, 33), k = draws.integer("k", 1, 130), gap = draws.integer("gap", 0, 17), pack = draws.choose("pack", {1, 8, 64});
    Random random = draws.random("weights");
    Guarded w("w", Role::in, dtype, {rows, k}, k + gap), wide("w", Role::in, SQ_F32, {rows, k});
    w.fill([&] { return 0.03 * random.normal(); });
    for (std::int64_t i = 0; i < w.count(); ++i) wide.set(i, w.at(i));
    const Quantized a = quantize(instance, w, pack), b = quantize(instance, wide, pack);
    same_bits("scale", a.scale, b.scale);
    same_bits("qweight", a.qweight, b.qweight);
  });
}

/// The bad row is the last of many: nothing of the good rows before it may have been written.
void run_refused_late(Trial& trial) {
  Random random = trial.random("weights");
  for (const double bad : {static_cast<double>(NAN), -static_cast<double>(INFINITY)}) {
    Guarded w("w", Role::in, SQ_F32, {300, 40});
    w.fill([&] { return random.normal(); });
    w.set(299, 39, bad);
    quantize_refused(trial.instance(), w, 64, {Code::DT_WEIGHT_NONFINITE}, "300 rows of which the last is bad");
  }
}

void run_floored(Trial& trial) {
  Guarded w("w", Role::in, SQ_F32, {4, 8});
  w.set(1, 3, 1.26e-6);
  w.set(2, 0, 1.0);
  w.set(3, 5, 1e-30);
  const Quantized q = quantize(trial.instance(), w, 8);
  require(q.floored_rows == 3, "3 rows hit the scale floor, reported " + std::to_string(q.floored_rows));
}

}  // namespace

void add_quantize(Cases& cases) {
  const std::vector<std::string> needs = {"linear", "operation:quantize"};
  for (const json& vector : goldens()["rows"])
    cases.push_back({2, "quantize.row." + vector["name"].get<std::string>(), Kind::vector, vector["name"] == "flt_max_row" ? std::vector<std::string>{"SQ-QNT-008"} : std::vector<std::string>{"SQ-QNT-002", "SQ-QNT-003", "SQ-QNT-004", "SQ-QNT-005"}, needs, vector["note"].get<std::string>(), [&vector](Trial& t) { run_row(t, vector); }});
  for (const json& vector : goldens()["hashed"])
    cases.push_back({2, "quantize.hashed." + vector["name"].get<std::string>(), Kind::vector, {"SQ-QNT-002", "SQ-QNT-003", "SQ-QNT-004"}, needs, "one ulp in a scale or one code in 163,840",
                     [&vector](Trial& t) { run_hashed(t, vector); }});
  for (const json& vector : goldens()["non_finite"])
    cases.push_back({2, "quantize.refused." + vector["name"].get<std::string>(), Kind::vector, {"SQ-QNT-007"}, needs, "NaN or infinity turned into a slab of zeros",
                     [&vector](Trial& t) { run_non_finite(t, vector); }});
  const std::pair<std::int32_t, const char*> dtypes[] = {{SQ_F32, "f32"}, {SQ_F16, "f16"}, {SQ_BF16, "bf16"}, {SQ_F64, "f64"}};
  for (const auto& [dtype, name] : dtypes) {
    cases.push_back({2, std::string("quantize.bound.") + name, Kind::property, {"SQ-QNT-004", "SQ-QNT-001"}, needs, "floor or truncation, fewer bits, -128, dirty padding",
                     [dtype = dtype](Trial& t) { run_bound(t, dtype); }});
    if (dtype == SQ_F16 || dtype == SQ_BF16)
      cases.push_back({2, std::string("quantize.source.") + name, Kind::property, {"SQ-QNT-006"}, needs, "a 16-bit source rounded or strided differently",
                       [dtype = dtype](Trial& t) { run_source_dtype(t, dtype); }});
  }
  cases.push_back({2, "quantize.uniform_rmse", Kind::property, {"SQ-QNT-002", "SQ-QNT-004"}, needs, "7 bits or fewer (0.0091 instead of 0.0045)", run_uniform_rmse});
  cases.push_back({2, "quantize.refused.last_row", Kind::vector, {"SQ-QNT-009", "SQ-CNV-003"}, needs, "half a weight written before the bad row was seen", run_refused_late});
  cases.push_back({2, "quantize.floored_rows", Kind::vector, {"SQ-QNT-010"}, needs, "rows that lose precision at the scale floor go unreported", run_floored});
}

}  // namespace squareq::gates::g02
