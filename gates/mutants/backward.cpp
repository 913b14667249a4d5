#include "gates/mutants/copies.hpp"

namespace squareq::mutants {
namespace {

using Args = sq_linear_backward_args;

sq_status run(sq_context* c, const Args* a, sq_error* e) { return base().linear->linear_backward(c, a, e); }

void clear(const sq_tensor* t) {
  if (!t) return;
  for (std::int64_t r = 0; r < t->shape[0]; ++r)
    std::memset(static_cast<char*>(t->data) + static_cast<std::size_t>(r * t->strides[0]) * dtype_bytes(t->dtype), 0, static_cast<std::size_t>(t->shape[1]) * dtype_bytes(t->dtype));
}

/// V1's kernel: the frozen weight passes no gradient on.
sq_status no_gradient_through_base(sq_context* c, const Args* a, sq_error* e) {
  const sq_status status = run(c, a, e);
  if (status == SQ_OK && !a->lora) clear(a->dx);
  return status;
}
sq_status no_gradient_through_branch(sq_context* c, const Args* a, sq_error* e) {
  const sq_status status = run(c, a, e);
  if (status != SQ_OK || !a->lora || a->lora->x || !a->dx) return status;
  Args args = *a;
  args.lora = nullptr;
  args.h = args.da_t = args.db_t = args.dx_lora = nullptr;
  return run(c, &args, e);
}
sq_status accumulate_ignored(sq_context* c, const Args* a, sq_error* e) {
  Args args = *a;
  args.accumulate = 0;
  return run(c, &args, e);
}
sq_status scaling_missing(sq_context* c, const Args* a, sq_error* e) {
  const sq_status status = run(c, a, e);
  if (status != SQ_OK || !a->lora || !a->da_t || a->lora->scaling == 0) return status;
  for (std::int64_t r = 0; r < a->da_t->shape[0]; ++r)
    for (std::int64_t k = 0; k < a->da_t->shape[1]; ++k) f32_row(*a->da_t, r)[k] /= a->lora->scaling;
  return status;
}
sq_status derivative_missing(sq_context* c, const Args* a, sq_error* e) {
  Args args = *a;
  args.activation = SQ_ACT_NONE;
  args.preactivation = nullptr;
  return run(c, &args, e);
}
/// A gradient step on what must stay frozen.
sq_status gradient_into_base(sq_context* c, const Args* a, sq_error* e) {
  const sq_status status = run(c, a, e);
  if (status == SQ_OK && a->weight->weight)
    if (const sq_part* scale = find_part(a->weight->weight->parts, a->weight->weight->part_count, "scale")) *static_cast<float*>(scale->tensor.data) *= 1.001f;
  return status;
}

}  // namespace

const Mutation backward_mutations[] = {
    {"no_gradient_through_base", [](Tables& t) { t.linear.linear_backward = no_gradient_through_base; }},
    {"no_gradient_through_branch", [](Tables& t) { t.linear.linear_backward = no_gradient_through_branch; }},
    {"accumulate_ignored", [](Tables& t) { t.linear.linear_backward = accumulate_ignored; }},
    {"gradient_of_a_unscaled", [](Tables& t) { t.linear.linear_backward = scaling_missing; }},
    {"derivative_missing", [](Tables& t) { t.linear.linear_backward = derivative_missing; }},
    {"gradient_into_base", [](Tables& t) { t.linear.linear_backward = gradient_into_base; }},
};
const unsigned backward_mutation_count = std::size(backward_mutations);

}  // namespace squareq::mutants
