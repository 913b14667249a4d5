// Mutants of the whole implementation: those that do nothing, those that lie about themselves, and one that keeps memory.
#include "gates/mutants/copies.hpp"

namespace squareq::mutants {
namespace {

template <class Operation>
struct Nothing;
template <class... Args>
struct Nothing<sq_status (*)(Args...)> {
  static sq_status call(Args...) { return SQ_OK; }
};
template <class Operation>
void do_nothing(Operation& entry) {
  entry = &Nothing<Operation>::call;
}

sq_status silent(sq_context*, sq_text_sink, void*, sq_error*) { return SQ_OK; }

sq_status keep_memory(const sq_host* host, sq_context** context, sq_error* e) {
  if (host && host->allocator) host->allocator->allocate(host->allocator->user, SQ_MEM_HOST, 4096, 64, nullptr, "kept");
  return base().create(host, context, e);
}

void empty_operations(Tables& t) {
  do_nothing(t.linear.quantize);
  do_nothing(t.linear.dequantize);
  do_nothing(t.linear.linear_forward);
  do_nothing(t.linear.linear_backward);
  do_nothing(t.linear.quantize_activation);
  do_nothing(t.linear.numeric_guard);
  do_nothing(t.linear.rms_norm_rope_forward);
  do_nothing(t.linear.rms_norm_rope_backward);
  do_nothing(t.stream.open);
  do_nothing(t.stream.begin_step);
  do_nothing(t.stream.acquire);
  do_nothing(t.stream.release);
  do_nothing(t.stream.end_step);
  do_nothing(t.stream.stats);
  do_nothing(t.stream.lease_weight);
  do_nothing(t.stream.close);
}

}  // namespace

const Mutation whole_mutations[] = {
    {"null", empty_operations},
    {"null_and_silent",
     [](Tables& t) {
       empty_operations(t);
       t.implementation.describe = silent;
     }},
    {"described_but_absent", [](Tables& t) { t.linear.linear_backward = nullptr; }},
    {"memory_kept", [](Tables& t) { t.implementation.create = keep_memory; }},
};
const unsigned whole_mutation_count = std::size(whole_mutations);

}  // namespace squareq::mutants
