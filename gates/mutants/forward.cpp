#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include <unistd.h>

#include "gates/mutants/copies.hpp"

namespace squareq::mutants {
namespace {

using Args = sq_linear_forward_args;

sq_status run(sq_context* c, const Args* a, sq_error* e) { return base().linear->linear_forward(c, a, e); }

template <void (*spoil)(const Args&)>
sq_status then(sq_context* c, const Args* a, sq_error* e) {
  const sq_status status = run(c, a, e);
  if (status == SQ_OK) spoil(*a);
  return status;
}

template <class F>
void each_f32(const sq_tensor* t, F f) {
  if (!t || t->dtype != SQ_F32) return;
  for (std::int64_t r = 0; r < t->shape[0]; ++r)
    for (std::int64_t k = 0; k < t->shape[1]; ++k) f(f32_row(*t, r)[k]);
}

void relu(const Args& a) {
  if (a.activation == SQ_ACT_NONE) each_f32(a.y, [](float& v) { v = v > 0 ? v : 0; });
}
void bf16_output(const Args& a) {
  each_f32(a.y, [](float& v) { v = through_bf16(v); });
}
void past_the_row(const Args& a) {
  if (a.y->dtype == SQ_F32 && a.y->shape[0] > 0) f32_row(*a.y, a.y->shape[0] - 1)[a.y->shape[1]] = 0;
}
void input_changed(const Args& a) {
  if (a.x && a.x->dtype == SQ_F32 && a.x->shape[0] > 0) f32_row(*a.x, 0)[0] += 1;
}
void every_second_call(const Args& a) {
  static bool odd = false;
  odd = !odd;
  if (odd && a.y->dtype == SQ_F32 && a.y->shape[0] > 0) f32_row(*a.y, 0)[0] = std::nextafter(f32_row(*a.y, 0)[0], 1e30f);
}
void codes_changed(const Args& a) {
  if (a.weight->weight) *static_cast<std::int8_t*>(const_cast<void*>(static_cast<const void*>(a.weight->weight->parts[0].tensor.data))) ^= 1;
}

sq_status gelu_swapped(sq_context* c, const Args* a, sq_error* e) {
  Args args = *a;
  args.activation = a->activation == SQ_ACT_GELU_TANH ? SQ_ACT_GELU_ERF : a->activation == SQ_ACT_GELU_ERF ? SQ_ACT_GELU_TANH : a->activation;
  return run(c, &args, e);
}
sq_status bias_ignored(sq_context* c, const Args* a, sq_error* e) {
  if (!a->weight || !a->weight->weight) return run(c, a, e);
  WeightCopy w(*a->weight);
  std::erase_if(w.parts, [](const sq_part& p) { return std::string_view(p.name) == "bias"; });
  w.link();
  Args args = *a;
  args.weight = &w.ref;
  return run(c, &args, e);
}
sq_status scale_in_bf16(sq_context* c, const Args* a, sq_error* e) {
  if (!a->weight || !a->weight->weight) return run(c, a, e);
  WeightCopy w(*a->weight);
  sq_part* scale = w.part("scale");
  if (!scale || scale->tensor.dtype != SQ_F32) return run(c, a, e);
  FloatCopy rounded(scale->tensor);
  for (float& v : rounded.values) v = through_bf16(v);
  scale->tensor = rounded.tensor;
  Args args = *a;
  args.weight = &w.ref;
  return run(c, &args, e);
}
sq_status nan_swallowed(sq_context* c, const Args* a, sq_error* e) {
  if (!a->x || a->x->dtype != SQ_F32) return run(c, a, e);
  FloatCopy x(*a->x);
  for (float& v : x.values)
    if (!std::isfinite(v)) v = 0;
  Args args = *a;
  args.x = &x.tensor;
  return run(c, &args, e);
}
sq_status last_row_missing(sq_context* c, const Args* a, sq_error* e) {
  if (!a->x || !a->y || a->x->shape[0] < 2 || a->preactivation || a->h || (a->lora && a->lora->x)) return run(c, a, e);
  sq_tensor x = *a->x, y = *a->y;
  if (x.shape[0] != y.shape[0]) return run(c, a, e);
  --x.shape[0];
  --y.shape[0];
  Args args = *a;
  args.x = &x;
  args.y = &y;
  return run(c, &args, e);
}
sq_status alpha_not_divided(sq_context* c, const Args* a, sq_error* e) {
  if (!a->lora || !a->lora->a_t) return run(c, a, e);
  sq_lora lora = *a->lora;
  lora.scaling *= static_cast<float>(lora.a_t->shape[0]);
  Args args = *a;
  args.lora = &lora;
  return run(c, &args, e);
}
sq_status own_input_ignored(sq_context* c, const Args* a, sq_error* e) {
  if (!a->lora) return run(c, a, e);
  sq_lora lora = *a->lora;
  lora.x = nullptr;
  Args args = *a;
  args.lora = &lora;
  return run(c, &args, e);
}
/// The padded columns of X are taken as 1 and the layer as wide as its padding.
sq_status padding_takes_part(sq_context* c, const Args* a, sq_error* e) {
  if (!a->weight || !a->weight->weight || !a->x || a->x->dtype != SQ_F32 || a->lora) return run(c, a, e);
  WeightCopy w(*a->weight);
  const sq_part* q = w.part("qweight");
  if (!q || q->tensor.rank != 2 || a->x->shape[1] != w.weight.in_features) return run(c, a, e);
  const std::int64_t padded = q->tensor.shape[1], rows = a->x->shape[0];
  std::vector<float> wide(static_cast<std::size_t>(rows * padded), 1.f);
  for (std::int64_t r = 0; r < rows; ++r) std::copy_n(f32_row(*a->x, r), w.weight.in_features, wide.data() + r * padded);
  w.weight.in_features = padded;
  const sq_tensor x = make_tensor(wide.data(), SQ_F32, {rows, padded});
  Args args = *a;
  args.weight = &w.ref;
  args.x = &x;
  return run(c, &args, e);
}
/// A copy of the adapter is made at first sight of a layer and used ever after.
sq_status stale_adapter(sq_context* c, const Args* a, sq_error* e) {
  if (!a->lora || !a->weight || !a->weight->weight) return run(c, a, e);
  static std::map<std::string, std::pair<FloatCopy, FloatCopy>> seen;
  const auto [at, added] = seen.try_emplace(a->weight->weight->name, FloatCopy(*a->lora->a_t), FloatCopy(*a->lora->b_t));
  at->second.first.tensor.data = at->second.first.values.data();
  at->second.second.tensor.data = at->second.second.values.data();
  sq_lora lora = *a->lora;
  lora.a_t = &at->second.first.tensor;
  lora.b_t = &at->second.second.tensor;
  Args args = *a;
  args.lora = &lora;
  return run(c, &args, e);
}
/// The same cache keyed by where the adapter lies: an optimizer that steps in place is never seen.
sq_status adapter_cached_by_address(sq_context* c, const Args* a, sq_error* e) {
  if (!a->lora || !a->lora->a_t || !a->lora->b_t) return run(c, a, e);
  static std::map<const void*, std::pair<FloatCopy, FloatCopy>> seen;
  const auto [at, added] = seen.try_emplace(a->lora->a_t->data, FloatCopy(*a->lora->a_t), FloatCopy(*a->lora->b_t));
  at->second.first.tensor.data = at->second.first.values.data();
  at->second.second.tensor.data = at->second.second.values.data();
  sq_lora lora = *a->lora;
  lora.a_t = &at->second.first.tensor;
  lora.b_t = &at->second.second.tensor;
  Args args = *a;
  args.lora = &lora;
  return run(c, &args, e);
}
/// B^T read as if its memory held B.
sq_status b_transposed(sq_context* c, const Args* a, sq_error* e) {
  if (!a->lora || !a->lora->b_t) return run(c, a, e);
  FloatCopy b(*a->lora->b_t);
  const std::vector<float> given = b.values;
  const std::int64_t n = b.tensor.shape[0], r = b.tensor.shape[1];
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t k = 0; k < r; ++k) b.values[static_cast<std::size_t>(i * r + k)] = given[static_cast<std::size_t>(k * n + i)];
  sq_lora lora = *a->lora;
  lora.b_t = &b.tensor;
  Args args = *a;
  args.lora = &lora;
  return run(c, &args, e);
}
/// Every layer of a leased block is its first.
sq_status layer_index_ignored(sq_context* c, const Args* a, sq_error* e) {
  if (!a->weight || a->weight->weight) return run(c, a, e);
  sq_weight_ref ref = *a->weight;
  ref.layer = 0;
  Args args = *a;
  args.weight = &ref;
  return run(c, &args, e);
}
sq_status int8_wish_ignored(sq_context* c, const Args* a, sq_error* e) {
  Args args = *a;
  if (!args.xq && args.compute == SQ_COMPUTE_W8A8) args.compute = SQ_COMPUTE_EXACT_W;
  return run(c, &args, e);
}
sq_status zero_point_ignored(sq_context* c, const Args* a, sq_error* e) {
  if (!a->weight || !a->weight->weight) return run(c, a, e);
  WeightCopy w(*a->weight);
  std::erase_if(w.parts, [](const sq_part& p) { return std::string_view(p.name) == "zero_point"; });
  w.link();
  Args args = *a;
  args.weight = &w.ref;
  return run(c, &args, e);
}
/// Integer sums kept in a float that has lost its last six bits.
void coarse_sums(const Args& a) {
  if (a.xq) each_f32(a.y, [](float& v) { v = std::fabs(v) > 16777216.f ? std::rint(v / 64) * 64 : v; });
}
void sixteen_bit_sums(const Args& a) {
  if (a.x && a.x->dtype == SQ_F16) each_f32(a.y, [](float& v) { v = std::min(v, 2048.f); });
}
void prints(const Args&) { std::puts("linear_forward"); }
std::uint64_t float_bytes(const Args* a) {
  return a->weight && a->weight->weight ? static_cast<std::uint64_t>(a->weight->weight->out_features * a->weight->weight->in_features) * 4 : 0;
}
sq_status float_weight_in_scratch(sq_context* c, const Args* a, sq_error* e) {
  const sq_allocator* m = host_allocator();
  const std::uint64_t bytes = float_bytes(a);
  if (!m || !bytes) return run(c, a, e);
  void* p = m->allocate(m->user, SQ_MEM_SCRATCH, bytes, 64, nullptr, "float weight");
  const sq_status status = run(c, a, e);
  if (p) m->release(m->user, p, SQ_MEM_SCRATCH, bytes, nullptr);
  return status;
}
sq_status float_weight_by_malloc(sq_context* c, const Args* a, sq_error* e) {
  const std::uint64_t bytes = float_bytes(a);
  std::vector<float> hidden(bytes / 4, 1.f);
  const sq_status status = run(c, a, e);
  volatile float keep = hidden.empty() ? 0 : hidden[bytes / 8];
  static_cast<void>(keep);
  return status;
}
sq_status errors_are_ok(sq_context* c, const Args* a, sq_error* e) {
  run(c, a, e);
  return SQ_OK;
}
sq_status crashes(sq_context* c, const Args* a, sq_error* e) {
  if (a->x && a->x->shape[0] == 0) std::raise(SIGSEGV);
  return run(c, a, e);
}
sq_status hangs(sq_context* c, const Args* a, sq_error* e) {
  while (a->x && a->x->shape[0] == 0) ::usleep(1000);
  return run(c, a, e);
}

}  // namespace

const Mutation forward_mutations[] = {
    {"relu_by_default", [](Tables& t) { t.linear.linear_forward = then<relu>; }},
    {"output_through_bf16", [](Tables& t) { t.linear.linear_forward = then<bf16_output>; }},
    {"writes_past_the_row", [](Tables& t) { t.linear.linear_forward = then<past_the_row>; }},
    {"input_changed", [](Tables& t) { t.linear.linear_forward = then<input_changed>; }},
    {"every_second_call_differs", [](Tables& t) { t.linear.linear_forward = then<every_second_call>; }},
    {"codes_changed", [](Tables& t) { t.linear.linear_forward = then<codes_changed>; }},
    {"gelu_forms_swapped", [](Tables& t) { t.linear.linear_forward = gelu_swapped; }},
    {"adapter_cached_by_address", [](Tables& t) { t.linear.linear_forward = adapter_cached_by_address; }},
    {"b_transposed", [](Tables& t) { t.linear.linear_forward = b_transposed; }},
    {"layer_index_ignored", [](Tables& t) { t.linear.linear_forward = layer_index_ignored; }},
    {"int8_wish_ignored", [](Tables& t) { t.linear.linear_forward = int8_wish_ignored; }},
    {"zero_point_ignored", [](Tables& t) { t.linear.linear_forward = zero_point_ignored; }},
    {"int8_sums_lose_units", [](Tables& t) { t.linear.linear_forward = then<coarse_sums>; }},
    {"sixteen_bit_sums", [](Tables& t) { t.linear.linear_forward = then<sixteen_bit_sums>; }},
    {"prints", [](Tables& t) { t.linear.linear_forward = then<prints>; }},
    {"bias_ignored", [](Tables& t) { t.linear.linear_forward = bias_ignored; }},
    {"scale_in_bf16", [](Tables& t) { t.linear.linear_forward = scale_in_bf16; }},
    {"nan_swallowed", [](Tables& t) { t.linear.linear_forward = nan_swallowed; }},
    {"last_row_missing", [](Tables& t) { t.linear.linear_forward = last_row_missing; }},
    {"alpha_not_divided_by_rank", [](Tables& t) { t.linear.linear_forward = alpha_not_divided; }},
    {"own_input_ignored", [](Tables& t) { t.linear.linear_forward = own_input_ignored; }},
    {"padding_takes_part", [](Tables& t) { t.linear.linear_forward = padding_takes_part; }},
    {"stale_adapter", [](Tables& t) { t.linear.linear_forward = stale_adapter; }},
    {"float_weight_in_scratch", [](Tables& t) { t.linear.linear_forward = float_weight_in_scratch; }},
    {"float_weight_by_malloc", [](Tables& t) { t.linear.linear_forward = float_weight_by_malloc; }},
    {"errors_are_ok", [](Tables& t) { t.linear.linear_forward = errors_are_ok; }},
    {"crashes_on_no_rows", [](Tables& t) { t.linear.linear_forward = crashes; }},
    {"hangs_on_no_rows", [](Tables& t) { t.linear.linear_forward = hangs; }},
};
const unsigned forward_mutation_count = std::size(forward_mutations);

}  // namespace squareq::mutants
