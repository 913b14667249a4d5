// Mutants of the refusals: another code, a text that says nothing, an older struct read past its end.
#include <cstdio>

#include "gates/mutants/copies.hpp"

namespace squareq::mutants {
namespace {

using Args = sq_linear_forward_args;

sq_status code_swapped(sq_context* c, const Args* a, sq_error* e) {
  const sq_status status = base().linear->linear_forward(c, a, e);
  if (status != SQ_CALL_SHAPE) return status;
  if (e) e->code = SQ_CALL_VALUE;
  return SQ_CALL_VALUE;
}
sq_status says_nothing(sq_context* c, const Args* a, sq_error* e) {
  const sq_status status = base().linear->linear_forward(c, a, e);
  if (status != SQ_OK && e) std::snprintf(e->message, sizeof e->message, "bad argument");
  return status;
}
sq_status size_ignored(sq_context* c, const Args* a, sq_error* e) {
  Args args;
  std::memcpy(&args, a, sizeof args);
  args.size = sizeof args;
  return base().linear->linear_forward(c, &args, e);
}
/// A stride is taken as dense: the rows overlap no more.
sq_status stride_made_dense(sq_context* c, const Args* a, sq_error* e) {
  if (!a->y || a->y->rank != 2) return base().linear->linear_forward(c, a, e);
  sq_tensor y = *a->y;
  y.strides[1] = 1;
  y.strides[0] = std::max(y.strides[0], y.shape[1]);
  Args args = *a;
  args.y = &y;
  return base().linear->linear_forward(c, &args, e);
}
sq_status explains_everything(sq_context*, std::int32_t, const void*, sq_text_sink sink, void* user, sq_error*) {
  constexpr std::string_view text = R"({"op":"linear_forward","kernel":"any","rejected":[]})";
  sink(user, text.data(), text.size());
  return SQ_OK;
}
sq_status version_ignored(const sq_host* host, sq_context** context, sq_error* e) {
  sq_host copy = *host;
  copy.abi_version = SQ_ABI_VERSION;
  return base().create(&copy, context, e);
}
/// Promises int8 activations that it does not name.
sq_status describe_without_classes(sq_context* context, sq_text_sink sink, void* user, sq_error* e) {
  std::string text;
  if (const sq_status status = base().describe(context, append_text, &text, e); status != SQ_OK) return status;
  if (const std::size_t at = text.find("\"R4\""); at != std::string::npos) text.replace(at, 4, "\"R1\"");
  sink(user, text.data(), text.size());
  return SQ_OK;
}

}  // namespace

const Mutation errors_mutations[] = {
    {"error_code_swapped", [](Tables& t) { t.linear.linear_forward = code_swapped; }},
    {"error_says_nothing", [](Tables& t) { t.linear.linear_forward = says_nothing; }},
    {"struct_size_ignored", [](Tables& t) { t.linear.linear_forward = size_ignored; }},
    {"stride_made_dense", [](Tables& t) { t.linear.linear_forward = stride_made_dense; }},
    {"explains_everything", [](Tables& t) { t.linear.explain = explains_everything; }},
    {"contract_version_ignored", [](Tables& t) { t.implementation.create = version_ignored; }},
    {"class_not_described", [](Tables& t) { t.implementation.describe = describe_without_classes; }},
};
const unsigned errors_mutation_count = std::size(errors_mutations);

}  // namespace squareq::mutants
