#include "optimized/cpu/weight.hpp"

#include <utility>

#include "optimized/cpu/matrix.hpp"
#include "optimized/cpu/parts.hpp"
#include "optimized/cpu/stream/session.hpp"

namespace squareq::cpu {
namespace {

void check_zero_point(const sq_tensor& t, const std::string& layer, std::int64_t out, bool read) {
  const Matrix zp = require_vector(&t, "zero_point", layer, {SQ_F32}, out);
  if (!read) return;
  const float* values = zp.row<float>(0);
  for (std::int64_t n = 0; n < out; ++n)
    if (values[n] != 0.0f)
      refuse(SQ_DT_ZP_NONZERO, layer, "zero_point", "row " + std::to_string(n) + " is " + std::to_string(values[n]) + ", expected 0");
}

/// `values`: also look at what the zero points are, not only at their dtype and shape.
Weight resolve_parts(const sq_weight& w, bool values = true) {
  Weight result;
  result.name = require_name(w.name, "sq_weight");
  const std::string& layer = result.name;
  require_format(w.format, "bp8_v2", layer, "");
  if (w.out_features < 1 || w.in_features < 1)
    refuse(SQ_CALL_SHAPE, layer, "weight", "is [" + std::to_string(w.out_features) + ", " + std::to_string(w.in_features) + "], expected at least [1, 1]");
  result.out = w.out_features;
  result.in = w.in_features;
  const Parts parts(w.parts, w.part_count, layer, "bp8_v2", {"qweight", "scale"}, {"zero_point", "bias"});
  const Matrix q = require_matrix(parts["qweight"], "qweight", layer, {{SQ_I8}, result.out, -1, Use::input});
  if (q.cols < result.in)
    refuse(SQ_CALL_SHAPE, layer, "qweight", "has " + std::to_string(q.cols) + " columns, in_features is " + std::to_string(result.in));
  result.q = q.row<std::int8_t>(0);
  result.stride = q.stride;
  result.scale = require_vector(parts["scale"], "scale", layer, {SQ_F32}, result.out).row<float>(0);
  if (const sq_tensor* zero_point = parts["zero_point"]) check_zero_point(*zero_point, layer, result.out, values);
  if (const sq_tensor* bias = parts["bias"]) result.bias = require_vector(bias, "bias", layer, {SQ_F32}, result.out).row<float>(0);
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
