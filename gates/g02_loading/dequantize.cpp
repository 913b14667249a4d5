// Dequantization: fp32 product, one rounding to the output's dtype, padding dropped.
#include <fmt/format.h>

#include <cmath>

#include "gates/g02_loading/g02_loading.hpp"
#include "gates/harness/goldens.hpp"
#include "gates/harness/half.hpp"
#include "gates/harness/property.hpp"
#include "gates/harness/quantize_call.hpp"

namespace squareq::gates::g02 {
namespace {

void dequantize(Instance& instance, Layer& layer, std::int64_t first_row, Guarded& out) {
  const DirectWeight direct(layer);
  auto args = sized<sq_dequantize_args>();
  args.weight = direct.ref();
  args.first_row = first_row;
  args.out = out.tensor();
  require(instance.linear().dequantize != nullptr, "dequantize is described but its entry is null");
  call_ok("dequantize", {&layer.qweight, &layer.scale, &layer.zero_point, &layer.bias, &out}, [&](sq_error* e) { return instance.linear().dequantize(instance.get(), &args, e); });
}

void run_vectors(Trial& trial, std::int32_t dtype, const char* field) {
  const nlohmann::json& vectors = goldens()["dequant"];
  // One layer holds them all: a row per vector, the code in column 0.
  Layer layer("golden", static_cast<std::int64_t>(vectors.size()), 1, 4, false);
  for (std::size_t i = 0; i < vectors.size(); ++i) {
    layer.qweight.set(static_cast<std::int64_t>(i), 0, vectors[i]["q"].get<double>());
    layer.scale.set(static_cast<std::int64_t>(i), float_of_hex(vectors[i]["scale_f32_hex"].get<std::string>()));
  }
  Guarded out("out", Role::out, dtype, {layer.n, 1});
  dequantize(trial.instance(), layer, 0, out);
  for (std::size_t i = 0; i < vectors.size(); ++i) {
    const auto value = static_cast<float>(out.at(static_cast<std::int64_t>(i)));
    const std::string actual = dtype == SQ_F32 ? hex_of_float(value) : hex_of_float(value).substr(0, 4);
    require(actual == vectors[i][field].get<std::string>(), fmt::format("vector {}: {} instead of {}", i, actual, vectors[i][field].get<std::string>()));
  }
}

/// Any window of rows; fp32 exactly RN(q s), 16 bits exactly RN16(RN32(q s)).
void run_windows(Trial& trial, std::int32_t dtype) {
  Instance& instance = trial.instance();
  check_property(trial, 20, [&](Draws& draws) {
    const std::int64_t n = draws.integer("n", 1, 40), k = draws.integer("k", 1, 130), pack = draws.choose("pack", {1, 8, 64});
    const std::int64_t first = draws.integer("first_row", 0, n - 1), rows = draws.integer("rows", 0, n - first), gap = draws.integer("gap", 0, 5);
    Random random = draws.random("data");
    Problem p(0, Layer("window", n, k, pack, false), SQ_F32);
    fill(p, random, {});
    Guarded out("out", Role::out, dtype, {rows, p.layer.k}, p.layer.k + gap);
    dequantize(instance, p.layer, first, out);
    Expected e;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < k; ++c) {
        const float product = static_cast<float>(p.layer.qweight.at(first + r, c)) * static_cast<float>(p.layer.scale.at(first + r));
        e.add(dtype == SQ_F32 ? product : dtype == SQ_BF16 ? from_bf16(to_bf16(product)) : from_f16(to_f16(product)), 0);
      }
    compare(trial, out, e);
  });
}

void run_refused(Trial& trial) {
  Random random = trial.random("data");
  Problem p(0, Layer("window", 10, 20, 4, false), SQ_F32);
  fill(p, random, {});
  Guarded out("out", Role::out, SQ_F32, {4, 20}), narrow("out", Role::out, SQ_F32, {4, 19});
  Instance& instance = trial.instance();
  const DirectWeight direct(p.layer);
  const auto refuse = [&](const char* what, std::int64_t first, Guarded& target) {
    auto args = sized<sq_dequantize_args>();
    args.weight = direct.ref();
    args.first_row = first;
    args.out = target.tensor();
    call_refused(what, {Code::CALL_SHAPE, Code::CALL_VALUE}, {&target}, [&](sq_error* e) { return instance.linear().dequantize(instance.get(), &args, e); });
  };
  refuse("dequantize past the last row", 7, out);
  refuse("dequantize from row -1", -1, out);
  refuse("dequantize into too few columns", 0, narrow);
}

/// float -> slab -> float: every element within half a step of where it came from.
void run_round_trip(Trial& trial) {
  Instance& instance = trial.instance();
  check_property(trial, 20, [&](Draws& draws) {
    const std::int64_t rows = draws.integer("n", 1, 48), columns = draws.integer("k", 1, 150), pack = draws.choose("pack", {1, 8, 64});
    const double size = std::ldexp(0.05, static_cast<int>(draws.integer("exponent", -4, 8)));
    Random random = draws.random("weights");
    Guarded w("w", Role::in, SQ_F32, {rows, columns});
    w.fill([&] { return size * random.normal(); });
    Layer layer("round", rows, columns, pack, false);
    load(layer, quantize(instance, w, pack));
    Guarded out("out", Role::out, SQ_F32, {rows, columns});
    dequantize(instance, layer, 0, out);
    Expected e;
    for (std::int64_t n = 0; n < rows; ++n)
      for (std::int64_t k = 0; k < columns; ++k) {
        const double s = layer.scale.at(n);
        // Half a step, and the fp32 rounding of the product of at most 127 steps.
        e.add(w.at(n, k), s * (0.5 + 0x1p-15) + 127 * s * 0x1p-24);
      }
    compare(trial, out, e);
  });
}

}  // namespace

void add_dequantize(Cases& cases) {
  const std::vector<std::string> needs = {"linear", "operation:dequantize"};
  cases.push_back({2, "dequantize.golden.f32", Kind::vector, {"SQ-QNT-011"}, needs, "(q - zero_point) * s with another rounding", [](Trial& t) { run_vectors(t, SQ_F32, "f32_hex"); }});
  cases.push_back({2, "dequantize.golden.bf16", Kind::vector, {"SQ-QNT-012"}, needs, "one rounding of the exact product instead of two", [](Trial& t) { run_vectors(t, SQ_BF16, "bf16_hex"); }});
  const std::pair<std::int32_t, const char*> dtypes[] = {{SQ_F32, "f32"}, {SQ_BF16, "bf16"}, {SQ_F16, "f16"}};
  for (const auto& [dtype, name] : dtypes)
    cases.push_back({2, std::string("dequantize.rows.") + name, Kind::property, {"SQ-QNT-013", "SQ-QNT-011", "SQ-QNT-012"}, needs, "row window off by one, padding columns written out",
                     [dtype = dtype](Trial& t) { run_windows(t, dtype); }});
  cases.push_back({2, "dequantize.refusals", Kind::vector, {"SQ-QNT-014", "SQ-LIN-041", "SQ-CNV-003"}, needs, "reads past the last row", run_refused});
  cases.push_back({2, "quantize.round_trip", Kind::property, {"SQ-QNT-004", "SQ-QNT-011"}, {"linear", "operation:quantize", "operation:dequantize"}, "scales and codes that do not belong together", run_round_trip});
}

}  // namespace squareq::gates::g02
