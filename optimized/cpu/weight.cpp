#include "optimized/cpu/weight.hpp"

#include <string_view>

#include "optimized/cpu/matrix.hpp"
#include "optimized/cpu/stream/session.hpp"
#include "squareq/text.hpp"

namespace squareq::cpu {
namespace {

const sq_tensor* part(const sq_weight& w, std::string_view part_name) {
  const sq_part* found = w.parts == nullptr ? nullptr : find_part(w.parts, w.part_count, part_name);
  return found == nullptr ? nullptr : &found->tensor;
}

const sq_tensor& required_part(const sq_weight& w, const char* part_name, const std::string& layer) {
  const sq_tensor* t = part(w, part_name);
  if (t == nullptr) refuse(SQ_CALL_PART, layer, part_name, "format bp8_v2 requires this part and the weight has none");
  return *t;
}

void check_zero_point(const sq_tensor& t, const std::string& layer, std::int64_t out) {
  const Matrix zp = require_vector(&t, "zero_point", layer, SQ_F32, out);
  const float* values = zp.row<float>(0);
  for (std::int64_t n = 0; n < out; ++n)
    if (values[n] != 0.0f)
      refuse(SQ_DT_ZP_NONZERO, layer, "zero_point", "row " + std::to_string(n) + " is " + std::to_string(values[n]) + ", expected 0");
}

Weight resolve_parts(const sq_weight& w) {
  Weight result;
  result.name = w.name == nullptr ? "" : w.name;
  const std::string& layer = result.name;
  if (w.format == nullptr || std::string_view(w.format) != "bp8_v2")
    refuse(SQ_CALL_VALUE, layer, "", "format is " + (w.format ? "'" + printable(w.format) + "'" : std::string("null")) + ", expected 'bp8_v2'");
  if (w.out_features < 1 || w.in_features < 1)
    refuse(SQ_CALL_SHAPE, layer, "weight", "is [" + std::to_string(w.out_features) + ", " + std::to_string(w.in_features) + "], expected at least [1, 1]");
  result.out = w.out_features;
  result.in = w.in_features;
  const Matrix q = require_matrix(&required_part(w, "qweight", layer), "qweight", layer, {{SQ_I8}, result.out, -1, Use::input});
  if (q.cols < result.in)
    refuse(SQ_CALL_SHAPE, layer, "qweight", "has " + std::to_string(q.cols) + " columns, in_features is " + std::to_string(result.in));
  result.q = q.row<std::int8_t>(0);
  result.stride = q.stride;
  result.scale = require_vector(&required_part(w, "scale", layer), "scale", layer, SQ_F32, result.out).row<float>(0);
  check_zero_point(required_part(w, "zero_point", layer), layer, result.out);
  if (const sq_tensor* bias = part(w, "bias")) result.bias = require_vector(bias, "bias", layer, SQ_F32, result.out).row<float>(0);
  return result;
}

}  // namespace

Weight resolve_weight(Context& context, const sq_weight_ref* given) {
  const sq_weight_ref& ref = checked_struct(given, "weight");
  if ((ref.weight != nullptr) == (ref.lease != 0))
    refuse(SQ_CALL_VALUE, "", "weight", ref.lease != 0 ? "weight and lease are both set" : "neither weight nor lease is set");
  if (ref.weight != nullptr) return resolve_parts(checked_struct(ref.weight, "weight.weight"));
  auto hold = context.session(ref.session)->hold(ref.lease);
  Weight result = resolve_parts(hold->layer(ref.layer));
  result.hold = std::move(hold);
  return result;
}

}  // namespace squareq::cpu
