// Mutants of what is reported: the fields that StageHand never wrote, and the hits that it never counted.
#include "gates/mutants/copies.hpp"

namespace squareq::mutants {
namespace {

template <void (*spoil)(sq_step_metrics&)>
sq_status last_step(sq_context* c, std::uint64_t session, sq_step_metrics* out, sq_error* e) {
  const sq_status status = base().telemetry->last_step(c, session, out, e);
  if (status == SQ_OK) spoil(*out);
  return status;
}

void bytes_of_bf16(sq_step_metrics& m) { m.h2d_bytes *= 2; }
void always_zero(sq_step_metrics& m) { m.evictions = m.h2d_bytes = 0; }
void never_a_hit(sq_step_metrics& m) {
  m.prefetch_misses += m.prefetch_hits;
  m.prefetch_hits = 0;
}
void nothing_found(sq_step_metrics& m) { m.nan_count = m.inf_count = 0; }

sq_status zeros_before_a_pass(sq_context* c, std::uint64_t session, sq_step_metrics* out, sq_error* e) {
  const sq_status status = base().telemetry->last_step(c, session, out, e);
  if (status != SQ_CALL_STATE) return status;
  const std::uint32_t size = out->size;
  *out = {};
  out->size = size;
  return SQ_OK;
}
/// The whole record, whatever the caller's version of it.
sq_status record_past_its_end(sq_context* c, std::uint64_t session, sq_step_metrics* out, sq_error* e) {
  const std::uint32_t size = out->size;
  out->size = sizeof(sq_step_metrics);
  const sq_status status = base().telemetry->last_step(c, session, out, e);
  out->size = size;
  return status;
}

/// Infinities are not looked for.
sq_status no_infinities(sq_context* c, const sq_numeric_guard_args* a, sq_error* e) {
  if (!a->counts || a->counts->dtype != SQ_I64) return base().linear->numeric_guard(c, a, e);
  const std::int64_t before = static_cast<std::int64_t*>(a->counts->data)[1];
  const sq_status status = base().linear->numeric_guard(c, a, e);
  if (status == SQ_OK) static_cast<std::int64_t*>(a->counts->data)[1] = before;
  return status;
}

}  // namespace

const Mutation telemetry_mutations[] = {
    {"bytes_of_bf16", [](Tables& t) { t.telemetry.last_step = last_step<bytes_of_bf16>; }},
    {"counters_always_zero", [](Tables& t) { t.telemetry.last_step = last_step<always_zero>; }},
    {"prefetch_never_a_hit", [](Tables& t) { t.telemetry.last_step = last_step<never_a_hit>; }},
    {"guard_not_reported", [](Tables& t) { t.telemetry.last_step = last_step<nothing_found>; }},
    {"zeros_before_a_pass", [](Tables& t) { t.telemetry.last_step = zeros_before_a_pass; }},
    {"record_past_its_end", [](Tables& t) { t.telemetry.last_step = record_past_its_end; }},
    {"no_infinities", [](Tables& t) { t.linear.numeric_guard = no_infinities; }},
};
const unsigned telemetry_mutation_count = std::size(telemetry_mutations);

}  // namespace squareq::mutants
