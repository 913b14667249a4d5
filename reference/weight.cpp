#include "reference/weight.hpp"

#include "reference/arguments.hpp"
#include "reference/stream/session.hpp"

namespace squareq::reference {

Weight check_weight(const sq_weight& given, Values values) {
  if (!given.format || !given.name) throw Error(Code::CALL_NULL, "sq_weight: format and name are both required");
  Weight w;
  w.name = given.name;
  w.out_features = given.out_features;
  w.in_features = given.in_features;
  const Subject self{w.name, ""};
  if (std::string_view(given.format) != "bp8_v2") refuse(Code::CALL_UNSUPPORTED, self, "format is '" + std::string(given.format) + "', reference computes with 'bp8_v2'");
  if (w.out_features < 1 || w.in_features < 1)
    refuse(Code::CALL_SHAPE, self, "out_features is " + std::to_string(w.out_features) + ", in_features " + std::to_string(w.in_features) + "; both must be at least 1");
  check_part_names(given.parts, given.part_count, w.name, given.format, {"qweight", "scale"}, {"zero_point", "bias"});

  const auto part = [&](const char* name) -> const sq_tensor* {
    const sq_part* p = find_part(given.parts, given.part_count, name);
    return p ? &p->tensor : nullptr;
  };
  const auto vector = [&](const char* name) -> const float* {
    if (!part(name)) return nullptr;
    return static_cast<const float*>(check_tensor(part(name), {w.name, name}, {SQ_F32}, {w.out_features}, Access::read).data);
  };
  const std::int64_t columns = part("qweight")->rank == 2 ? part("qweight")->shape[1] : w.in_features;
  const Subject q{w.name, "qweight"};
  const sq_tensor& qweight = check_tensor(part("qweight"), q, {SQ_I8}, {w.out_features, columns}, Access::read);
  if (columns < w.in_features) refuse(Code::CALL_SHAPE, q, "row length is " + std::to_string(columns) + ", in_features is " + std::to_string(w.in_features));
  w.qweight = static_cast<const std::int8_t*>(qweight.data);
  w.row_stride = qweight.strides[0];
  w.scale = vector("scale");
  w.bias = vector("bias");
  // Consumers of the format disagree on what a zero_point means; they agree only while it is 0.
  if (const float* zero_point = vector("zero_point"); zero_point && values == Values::check)
    for (std::int64_t n = 0; n < w.out_features; ++n)
      if (zero_point[n] != 0.0f)
        refuse(Code::DT_ZP_NONZERO, {w.name, "zero_point"}, "row " + std::to_string(n) + " is " + std::to_string(zero_point[n]) + ", must be 0");
  return w;
}

Weight resolve(sq_context& context, const sq_weight_ref* given) {
  const sq_weight_ref ref = read_struct(given, "sq_weight_ref");
  if ((ref.weight != nullptr) == (ref.lease != 0)) throw Error(Code::CALL_VALUE, "sq_weight_ref: exactly one of weight and lease must be set");
  if (ref.weight) return check_weight(read_struct(ref.weight, "sq_weight"));
  return find_session(context, ref.session)->leased_weight(ref.lease, ref.layer);
}

}  // namespace squareq::reference
