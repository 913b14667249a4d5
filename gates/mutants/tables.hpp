// A mutant is the reference backend with one thing changed. Its tables start as copies of the reference's; a mutation replaces one entry.
#pragma once

#include "squareq/contract.hpp"

namespace squareq::mutants {

struct Tables {
  sq_implementation implementation;
  sq_linear_group linear;
  sq_stream_group stream;
  sq_telemetry_group telemetry;
};

struct Mutation {
  const char* name;
  void (*apply)(Tables&);
};

/// The unmutated reference, loaded once.
const sq_implementation& base();
/// The allocator that the host gave to the last created context; null without one.
const sq_allocator* host_allocator();

extern const Mutation quantize_mutations[];
extern const unsigned quantize_mutation_count;
extern const Mutation forward_mutations[];
extern const unsigned forward_mutation_count;
extern const Mutation backward_mutations[];
extern const unsigned backward_mutation_count;
extern const Mutation stream_mutations[];
extern const unsigned stream_mutation_count;
extern const Mutation format_mutations[];
extern const unsigned format_mutation_count;
extern const Mutation border_mutations[];
extern const unsigned border_mutation_count;
extern const Mutation head_mutations[];
extern const unsigned head_mutation_count;
extern const Mutation telemetry_mutations[];
extern const unsigned telemetry_mutation_count;
extern const Mutation module_mutations[];
extern const unsigned module_mutation_count;
extern const Mutation errors_mutations[];
extern const unsigned errors_mutation_count;
extern const Mutation whole_mutations[];
extern const unsigned whole_mutation_count;

}  // namespace squareq::mutants
