// Mutants of the borders of a call: int8 activations, refusals, explain, what a host may say. One for each group of such cases.
#include <algorithm>
#include <cmath>

#include "gates/mutants/copies.hpp"

namespace squareq::mutants {
namespace {

sq_status forward(sq_context* c, const sq_linear_forward_args* a, sq_error* e) { return base().linear->linear_forward(c, a, e); }
sq_status backward(sq_context* c, const sq_linear_backward_args* a, sq_error* e) { return base().linear->linear_backward(c, a, e); }

/// Runs the reference on arguments that `change` has changed.
template <class Args, sq_status (*run)(sq_context*, const Args*, sq_error*), void (*change)(Args&)>
sq_status changed(sq_context* c, const Args* a, sq_error* e) {
  Args args = *a;
  change(args);
  return run(c, &args, e);
}

sq_status first_scale_for_all_rows(sq_context* c, const sq_linear_forward_args* a, sq_error* e) {
  const sq_part* scale = a->xq ? find_part(a->xq->parts, a->xq->part_count, "scale") : nullptr;
  if (!scale) return forward(c, a, e);
  FloatCopy copy(scale->tensor);
  std::fill(copy.values.begin(), copy.values.end(), copy.values.empty() ? 0.f : copy.values[0]);
  std::vector<sq_part> parts(a->xq->parts, a->xq->parts + a->xq->part_count);
  for (sq_part& p : parts)
    if (std::string_view(p.name) == "scale") p.tensor = copy.tensor;
  sq_quantized_activation xq = *a->xq;
  xq.parts = parts.data();
  sq_linear_forward_args args = *a;
  args.xq = &xq;
  return forward(c, &args, e);
}
sq_status stride_of_x_ignored(sq_context* c, const sq_linear_forward_args* a, sq_error* e) {
  if (!a->x || a->compute != SQ_COMPUTE_W8A8) return forward(c, a, e);
  sq_tensor x = *a->x;
  x.strides[0] = x.shape[1];
  sq_linear_forward_args args = *a;
  args.x = &x;
  return forward(c, &args, e);
}
sq_status stride_of_dy_ignored(sq_context* c, const sq_linear_backward_args* a, sq_error* e) {
  sq_tensor dy = *a->dy;
  dy.strides[0] = dy.shape[1];
  sq_linear_backward_args args = *a;
  args.dy = &dy;
  return backward(c, &args, e);
}
sq_status branch_reads_codes(sq_context* c, const sq_linear_forward_args* a, sq_error* e) {
  const sq_part* q = a->xq ? find_part(a->xq->parts, a->xq->part_count, "q") : nullptr;
  if (!q || !a->lora || !a->lora->x || a->lora->x->dtype != SQ_F32) return forward(c, a, e);
  FloatCopy x(*a->lora->x);
  const std::int64_t columns = q->tensor.shape[1];
  for (std::size_t i = 0; i < x.values.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    x.values[i] = static_cast<const std::int8_t*>(q->tensor.data)[at / columns * q->tensor.strides[0] + at % columns];
  }
  sq_lora lora = *a->lora;
  lora.x = &x.tensor;
  sq_linear_forward_args args = *a;
  args.lora = &lora;
  return forward(c, &args, e);
}
sq_status branch_in_fp32(sq_context* c, const sq_linear_forward_args* a, sq_error* e) {
  if (!a->x || !a->lora || a->x->dtype != SQ_BF16 || a->y->dtype != SQ_F32) return forward(c, a, e);
  std::vector<float> values;
  for (std::int64_t r = 0; r < a->x->shape[0]; ++r)
    for (std::int64_t k = 0; k < a->x->shape[1]; ++k) {
      const std::uint32_t bits = std::uint32_t{static_cast<const std::uint16_t*>(a->x->data)[r * a->x->strides[0] + k]} << 16;
      float value = 0;
      std::memcpy(&value, &bits, 4);
      values.push_back(value);
    }
  const sq_tensor x = make_tensor(values.data(), SQ_F32, {a->x->shape[0], a->x->shape[1]});
  sq_linear_forward_args args = *a;
  args.x = &x;
  return forward(c, &args, e);
}
void exact_for_int8(sq_linear_forward_args& a) {
  if (a.x) a.compute = SQ_COMPUTE_EXACT_W;
}
void int8_for_exact(sq_linear_forward_args& a) {
  if (a.x && a.compute == SQ_COMPUTE_EXACT_W) a.compute = SQ_COMPUTE_W8A8;
}
void x_beside_codes(sq_linear_forward_args& a) {
  if (a.xq) a.x = nullptr;
}
sq_status infinite_scaling_taken(sq_context* c, const sq_linear_forward_args* a, sq_error* e) {
  if (!a->lora || !std::isinf(a->lora->scaling)) return forward(c, a, e);
  sq_linear_forward_args args = *a;
  args.lora = nullptr;
  args.h = nullptr;
  return forward(c, &args, e);
}
sq_status any_output_dtype(sq_context* c, const sq_linear_forward_args* a, sq_error* e) {
  const sq_status status = forward(c, a, e);
  return status == SQ_CALL_DTYPE ? SQ_OK : status;
}
void h_without_branch(sq_linear_backward_args& a) {
  if (!a.lora) a.h = nullptr;
}
/// The branch's gradients come only along with dX.
void gradients_need_dx(sq_linear_backward_args& a) {
  if (!a.dx) a.da_t = a.db_t = nullptr;
}

void name_not_needed(sq_quantize_args& a) {
  if (!a.name) a.name = "";
}
void pack_of_two_ignored(sq_quantize_args& a) {
  if (a.pack_k == 2) a.pack_k = 1;
}
sq_status quantize(sq_context* c, const sq_quantize_args* a, sq_error* e) { return base().linear->quantize(c, a, e); }

void epsilon_twice(sq_quantize_activation_args& a) { a.epsilon *= 2; }
void needless_shift(sq_quantize_activation_args& a) {
  if (a.producer != SQ_PRODUCER_LAYERNORM_MODULATE) a.shift = a.scale = nullptr;
}
sq_status quantize_activation(sq_context* c, const sq_quantize_activation_args* a, sq_error* e) { return base().linear->quantize_activation(c, a, e); }

sq_status rows_past_the_end(sq_context* c, const sq_dequantize_args* a, sq_error* e) {
  const sq_status status = base().linear->dequantize(c, a, e);
  return status == SQ_CALL_SHAPE ? SQ_OK : status;
}
sq_status zero_point_of_row_0(sq_context* c, const sq_dequantize_args* a, sq_error* e) {
  if (!a->weight || !a->weight->weight || !a->weight->weight->parts) return base().linear->dequantize(c, a, e);
  WeightCopy w(*a->weight);
  std::erase_if(w.parts, [](const sq_part& p) { return std::string_view(p.name) == "zero_point" && *static_cast<const float*>(p.tensor.data) == 0; });
  w.link();
  sq_dequantize_args args = *a;
  args.weight = &w.ref;
  return base().linear->dequantize(c, &args, e);
}
/// 16-bit results are cut off instead of rounded.
sq_status truncated_bf16(sq_context* c, const sq_dequantize_args* a, sq_error* e) {
  if (a->out->dtype != SQ_BF16) return base().linear->dequantize(c, a, e);
  const std::int64_t rows = a->out->shape[0], columns = a->out->shape[1];
  std::vector<float> wide(static_cast<std::size_t>(rows * columns));
  const sq_tensor out = make_tensor(wide.data(), SQ_F32, {rows, columns});
  sq_dequantize_args args = *a;
  args.out = &out;
  const sq_status status = base().linear->dequantize(c, &args, e);
  for (std::int64_t i = 0; i < rows * columns && status == SQ_OK; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &wide[static_cast<std::size_t>(i)], 4);
    static_cast<std::uint16_t*>(a->out->data)[i / columns * a->out->strides[0] + i % columns] = static_cast<std::uint16_t>(bits >> 16);
  }
  return status;
}
sq_status payload_lost(sq_context* c, const sq_linear_forward_args* a, sq_error* e) {
  if (!a->lora || !a->x || a->x->dtype != SQ_BF16) return forward(c, a, e);
  FloatCopy copy(*a->lora->a_t);
  for (float& v : copy.values)
    if (std::isnan(v)) v = HUGE_VALF;
  sq_lora lora = *a->lora;
  lora.a_t = &copy.tensor;
  sq_linear_forward_args args = *a;
  args.lora = &lora;
  return forward(c, &args, e);
}
void subnormals_flushed(sq_linear_forward_args& a) {
  if (!a.x || a.x->dtype != SQ_BF16) return;
  for (std::int64_t r = 0; r < a.x->shape[0]; ++r)
    for (std::int64_t k = 0; k < a.x->shape[1]; ++k) {
      std::uint16_t& bits = static_cast<std::uint16_t*>(a.x->data)[r * a.x->strides[0] + k];
      if ((bits & 0x7F80) == 0) bits &= 0x8000;
    }
}

void dense_guard(sq_numeric_guard_args& a) {
  static sq_tensor x;
  if (!a.x || a.x->rank < 1 || a.x->rank > SQ_MAX_RANK) return;
  x = *a.x;
  std::int64_t stride = 1;
  for (std::int32_t d = x.rank; d-- > 0; stride *= x.shape[d]) x.strides[d] = stride;
  a.x = &x;
}
sq_status guard(sq_context* c, const sq_numeric_guard_args* a, sq_error* e) { return base().linear->numeric_guard(c, a, e); }

sq_status explain_runs(sq_context* c, std::int32_t op, const void* args, sq_text_sink sink, void* user, sq_error* e) {
  const sq_status status = base().linear->explain(c, op, args, sink, user, e);
  if (status == SQ_OK && op == SQ_OP_NUMERIC_GUARD) guard(c, static_cast<const sq_numeric_guard_args*>(args), nullptr);
  return status;
}

sq_status any_version(const sq_host* given, sq_context** context, sq_error* e) {
  sq_host host = *given;
  host.abi_version = SQ_ABI_VERSION;
  return base().create(&host, context, e);
}
sq_status allocator_demanded(const sq_host* host, sq_context** context, sq_error* e) { return host->allocator ? base().create(host, context, e) : SQ_CALL_NULL; }

sq_status counts_lost(sq_context* c, std::uint64_t session, sq_step_metrics* metrics, sq_error* e) {
  const sq_status status = base().telemetry->last_step(c, session, metrics, e);
  if (status == SQ_OK) metrics->nan_count = metrics->inf_count = 0;
  return status;
}

template <void (*change)(sq_linear_forward_args&)>
void spoil_forward(Tables& t) { t.linear.linear_forward = changed<sq_linear_forward_args, forward, change>; }
template <void (*change)(sq_linear_backward_args&)>
void spoil_backward(Tables& t) { t.linear.linear_backward = changed<sq_linear_backward_args, backward, change>; }
template <void (*change)(sq_quantize_args&)>
void spoil_quantize(Tables& t) { t.linear.quantize = changed<sq_quantize_args, quantize, change>; }
template <void (*change)(sq_quantize_activation_args&)>
void spoil_activation(Tables& t) { t.linear.quantize_activation = changed<sq_quantize_activation_args, quantize_activation, change>; }

}  // namespace

const Mutation border_mutations[] = {
    {"first_scale_for_all_rows", [](Tables& t) { t.linear.linear_forward = first_scale_for_all_rows; }},
    {"stride_of_x_ignored", [](Tables& t) { t.linear.linear_forward = stride_of_x_ignored; }},
    {"stride_of_dy_ignored", [](Tables& t) { t.linear.linear_backward = stride_of_dy_ignored; }},
    {"branch_reads_codes", [](Tables& t) { t.linear.linear_forward = branch_reads_codes; }},
    {"branch_in_fp32", [](Tables& t) { t.linear.linear_forward = branch_in_fp32; }},
    {"exact_for_int8", spoil_forward<exact_for_int8>},
    {"int8_for_exact", spoil_forward<int8_for_exact>},
    {"x_beside_codes", spoil_forward<x_beside_codes>},
    {"infinite_scaling_taken", [](Tables& t) { t.linear.linear_forward = infinite_scaling_taken; }},
    {"any_output_dtype", [](Tables& t) { t.linear.linear_forward = any_output_dtype; }},
    {"payload_lost", [](Tables& t) { t.linear.linear_forward = payload_lost; }},
    {"subnormals_flushed", spoil_forward<subnormals_flushed>},
    {"h_without_branch", spoil_backward<h_without_branch>},
    {"gradients_need_dx", spoil_backward<gradients_need_dx>},
    {"name_not_needed", spoil_quantize<name_not_needed>},
    {"pack_of_two_ignored", spoil_quantize<pack_of_two_ignored>},
    {"epsilon_twice", spoil_activation<epsilon_twice>},
    {"needless_shift", spoil_activation<needless_shift>},
    {"rows_past_the_end", [](Tables& t) { t.linear.dequantize = rows_past_the_end; }},
    {"zero_point_of_row_0", [](Tables& t) { t.linear.dequantize = zero_point_of_row_0; }},
    {"truncated_bf16", [](Tables& t) { t.linear.dequantize = truncated_bf16; }},
    {"guard_without_strides", [](Tables& t) { t.linear.numeric_guard = changed<sq_numeric_guard_args, guard, dense_guard>; }},
    {"explain_runs", [](Tables& t) { t.linear.explain = explain_runs; }},
    {"any_contract_version", [](Tables& t) { t.implementation.create = any_version; }},
    {"allocator_demanded", [](Tables& t) { t.implementation.create = allocator_demanded; }},
    {"guard_counts_lost",
     [](Tables& t) {
       static const sq_telemetry_group group = {sizeof(sq_telemetry_group), 0, counts_lost};
       t.implementation.telemetry = &group;
     }},
};
const unsigned border_mutation_count = std::size(border_mutations);

}  // namespace squareq::mutants
