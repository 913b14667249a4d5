#include "optimized/cpu/weight.hpp"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "optimized/cpu/matrix.hpp"
#include "optimized/cpu/stream/session.hpp"
#include "squareq/text.hpp"

namespace squareq::cpu {
namespace {

/// The parts of a bp8_v2 weight by name.
struct Parts {
  const sq_tensor* qweight = nullptr;
  const sq_tensor* scale = nullptr;
  const sq_tensor* zero_point = nullptr;
  const sq_tensor* bias = nullptr;
};

Parts sort_parts(const sq_weight& w, const std::string& layer) {
  if (w.part_count > 0 && w.parts == nullptr) refuse(SQ_CALL_NULL, layer, "parts", "is null, part_count is " + std::to_string(w.part_count));
  Parts parts;
  const std::pair<std::string_view, const sq_tensor**> known[] = {
      {"qweight", &parts.qweight}, {"scale", &parts.scale}, {"zero_point", &parts.zero_point}, {"bias", &parts.bias}};
  for (std::uint32_t i = 0; i < w.part_count; ++i) {
    const std::string_view given = w.parts[i].name == nullptr ? "" : w.parts[i].name;
    const auto slot = std::find_if(std::begin(known), std::end(known), [&](const auto& k) { return k.first == given; });
    if (slot == std::end(known)) refuse(SQ_CALL_VALUE, layer, printable(given), "format bp8_v2 has no such part, expected qweight, scale, zero_point, bias");
    if (*slot->second != nullptr) refuse(SQ_CALL_VALUE, layer, printable(given), "is given twice, expected once");
    *slot->second = &w.parts[i].tensor;
  }
  if (parts.qweight == nullptr || parts.scale == nullptr)
    refuse(SQ_CALL_PART, layer, parts.qweight == nullptr ? "qweight" : "scale", "format bp8_v2 requires this part and the weight has none");
  return parts;
}

void check_zero_point(const sq_tensor& t, const std::string& layer, std::int64_t out, bool read) {
  const Matrix zp = require_vector(&t, "zero_point", layer, SQ_F32, out);
  if (!read) return;
  const float* values = zp.row<float>(0);
  for (std::int64_t n = 0; n < out; ++n)
    if (values[n] != 0.0f)
      refuse(SQ_DT_ZP_NONZERO, layer, "zero_point", "row " + std::to_string(n) + " is " + std::to_string(values[n]) + ", expected 0");
}

/// `values`: also look at what the zero points are, not only at their dtype and shape.
Weight resolve_parts(const sq_weight& w, bool values = true) {
  Weight result;
  result.name = w.name == nullptr ? "" : w.name;
  const std::string& layer = result.name;
  if (w.format == nullptr || std::string_view(w.format) != "bp8_v2")
    refuse(SQ_CALL_UNSUPPORTED, layer, "", "format is " + (w.format ? "'" + printable(w.format) + "'" : std::string("null")) + ", expected 'bp8_v2'");
  if (w.out_features < 1 || w.in_features < 1)
    refuse(SQ_CALL_SHAPE, layer, "weight", "is [" + std::to_string(w.out_features) + ", " + std::to_string(w.in_features) + "], expected at least [1, 1]");
  result.out = w.out_features;
  result.in = w.in_features;
  const Parts parts = sort_parts(w, layer);
  const Matrix q = require_matrix(parts.qweight, "qweight", layer, {{SQ_I8}, result.out, -1, Use::input});
  if (q.cols < result.in)
    refuse(SQ_CALL_SHAPE, layer, "qweight", "has " + std::to_string(q.cols) + " columns, in_features is " + std::to_string(result.in));
  result.q = q.row<std::int8_t>(0);
  result.stride = q.stride;
  result.scale = require_vector(parts.scale, "scale", layer, SQ_F32, result.out).row<float>(0);
  if (parts.zero_point != nullptr) check_zero_point(*parts.zero_point, layer, result.out, values);
  if (parts.bias != nullptr) result.bias = require_vector(parts.bias, "bias", layer, SQ_F32, result.out).row<float>(0);
  return result;
}

}  // namespace

void check_weight_table(const sq_weight& weight) { resolve_parts(weight, false); }

Weight resolve_weight(Context& context, const sq_weight_ref* given) {
  const sq_weight_ref ref = checked_struct(given, "weight");
  if ((ref.weight != nullptr) == (ref.lease != 0))
    refuse(SQ_CALL_VALUE, "", "weight", ref.lease != 0 ? "weight and lease are both set" : "neither weight nor lease is set");
  if (ref.weight != nullptr) return resolve_parts(checked_struct(ref.weight, "weight.weight"));
  auto hold = context.session(ref.session)->hold(ref.lease);
  Weight result = resolve_parts(hold->layer(ref.layer));
  result.hold = std::move(hold);
  return result;
}

}  // namespace squareq::cpu
