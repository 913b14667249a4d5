#include <algorithm>
#include <cmath>

#include "gates/mutants/copies.hpp"

namespace squareq::mutants {
namespace {

struct Outputs {
  explicit Outputs(const sq_quantize_args& a)
      : q(find_part(a.out, a.out_count, "qweight")->tensor), scale(find_part(a.out, a.out_count, "scale")->tensor), rows(q.shape[0]), columns(a.w->shape[1]) {}
  std::int8_t* row(std::int64_t r) const { return static_cast<std::int8_t*>(q.data) + r * q.strides[0]; }
  float* scales() const { return static_cast<float*>(scale.data); }
  sq_tensor q, scale;
  std::int64_t rows, columns;
};

/// Runs the reference, then `spoil` on what it wrote.
template <void (*spoil)(const sq_quantize_args&, const Outputs&)>
sq_status then(sq_context* c, const sq_quantize_args* a, sq_error* e) {
  const sq_status status = base().linear->quantize(c, a, e);
  if (status == SQ_OK) spoil(*a, Outputs(*a));
  return status;
}

void truncate(const sq_quantize_args& a, const Outputs& o) {
  if (a.w->dtype != SQ_F32) return;
  for (std::int64_t r = 0; r < o.rows; ++r)
    for (std::int64_t k = 0; k < o.columns; ++k) o.row(r)[k] = static_cast<std::int8_t>(std::trunc(f32_row(*a.w, r)[k] * (1.0f / o.scales()[r])));
}
void half_away(const sq_quantize_args& a, const Outputs& o) {
  if (a.w->dtype != SQ_F32) return;
  for (std::int64_t r = 0; r < o.rows; ++r)
    for (std::int64_t k = 0; k < o.columns; ++k) o.row(r)[k] = static_cast<std::int8_t>(std::round(f32_row(*a.w, r)[k] * (1.0f / o.scales()[r])));
}
void divide(const sq_quantize_args& a, const Outputs& o) {
  if (a.w->dtype != SQ_F32) return;
  for (std::int64_t r = 0; r < o.rows; ++r)
    for (std::int64_t k = 0; k < o.columns; ++k) o.row(r)[k] = static_cast<std::int8_t>(std::rint(f32_row(*a.w, r)[k] / o.scales()[r]));
}
void seven_bits(const sq_quantize_args&, const Outputs& o) {
  for (std::int64_t r = 0; r < o.rows; ++r)
    for (std::int64_t k = 0; k < o.columns; ++k) o.row(r)[k] = static_cast<std::int8_t>(o.row(r)[k] == 127 ? 127 : o.row(r)[k] / 2 * 2);
}
void scales_off_by_one(const sq_quantize_args&, const Outputs& o) { std::rotate(o.scales(), o.scales() + 1, o.scales() + o.rows); }
void minus_128(const sq_quantize_args&, const Outputs& o) {
  for (std::int64_t r = 0; r < o.rows; ++r)
    for (std::int64_t k = 0; k < o.columns; ++k)
      if (o.row(r)[k] == -127) o.row(r)[k] = -128;
}
void dirty_padding(const sq_quantize_args&, const Outputs& o) {
  for (std::int64_t r = 0; r < o.rows; ++r)
    for (std::int64_t k = o.columns; k < o.q.shape[1]; ++k) o.row(r)[k] = 1;
}

sq_status accept_nonfinite(sq_context* c, const sq_quantize_args* a, sq_error* e) {
  if (!a->w || a->w->dtype != SQ_F32) return base().linear->quantize(c, a, e);
  FloatCopy w(*a->w);
  for (float& v : w.values)
    if (!std::isfinite(v)) v = 0;
  sq_quantize_args args = *a;
  args.w = &w.tensor;
  return base().linear->quantize(c, &args, e);
}

/// An overflowing row is clipped instead of refused.
sq_status overflow_clipped(sq_context* c, const sq_quantize_args* a, sq_error* e) {
  if (!a->w || a->w->dtype != SQ_F32 || a->w->rank != 2) return base().linear->quantize(c, a, e);
  FloatCopy w(*a->w);
  for (float& v : w.values)
    if (std::isfinite(v)) v = std::fmax(std::fmin(v, 1e38f), -1e38f);
  sq_quantize_args args = *a;
  args.w = &w.tensor;
  return base().linear->quantize(c, &args, e);
}

sq_status first_row_ignored(sq_context* c, const sq_dequantize_args* a, sq_error* e) {
  sq_dequantize_args args = *a;
  if (args.first_row > 0) args.first_row -= 1;
  return base().linear->dequantize(c, &args, e);
}

}  // namespace

const Mutation quantize_mutations[] = {
    {"truncated_codes", [](Tables& t) { t.linear.quantize = then<truncate>; }},
    {"half_away_from_zero", [](Tables& t) { t.linear.quantize = then<half_away>; }},
    {"divides_by_scale", [](Tables& t) { t.linear.quantize = then<divide>; }},
    {"seven_bits", [](Tables& t) { t.linear.quantize = then<seven_bits>; }},
    {"scale_row_off_by_one", [](Tables& t) { t.linear.quantize = then<scales_off_by_one>; }},
    {"minus_128_emitted", [](Tables& t) { t.linear.quantize = then<minus_128>; }},
    {"dirty_padding", [](Tables& t) { t.linear.quantize = then<dirty_padding>; }},
    {"nan_weight_accepted", [](Tables& t) { t.linear.quantize = accept_nonfinite; }},
    {"overflow_clipped", [](Tables& t) { t.linear.quantize = overflow_clipped; }},
    {"dequantize_row_off_by_one", [](Tables& t) { t.linear.dequantize = first_row_ignored; }},
};
const unsigned quantize_mutation_count = std::size(quantize_mutations);

}  // namespace squareq::mutants
