// libsquareq_mutants.so: $SQUAREQ_MUTANT names the mutation, "none" the plain wrapper. What each one hunts: mutants.json.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>

#include "gates/mutants/tables.hpp"

namespace squareq::mutants {
namespace {

sq_allocator allocator;
bool has_allocator = false;

sq_status create(const sq_host* host, sq_context** context, sq_error* e) {
  has_allocator = host && host->allocator;
  if (has_allocator) allocator = *host->allocator;
  return base().create(host, context, e);
}

}  // namespace

const sq_implementation& base() {
  static const Implementation implementation = Implementation::load(find_backend("reference"));
  return implementation.table();
}

const sq_allocator* host_allocator() { return has_allocator ? &allocator : nullptr; }

namespace {

const sq_implementation* make() {
  static Tables tables;
  tables.implementation = base();
  tables.linear = *base().linear;
  tables.stream = *base().stream;
  tables.telemetry = *base().telemetry;
  tables.implementation.linear = &tables.linear;
  tables.implementation.stream = &tables.stream;
  tables.implementation.telemetry = &tables.telemetry;
  tables.implementation.create = create;
  const char* wanted = std::getenv("SQUAREQ_MUTANT");
  if (!wanted || std::strcmp(wanted, "none") == 0) return &tables.implementation;
  const std::span<const Mutation> groups[] = {{quantize_mutations, quantize_mutation_count}, {forward_mutations, forward_mutation_count},
                                              {backward_mutations, backward_mutation_count}, {stream_mutations, stream_mutation_count},
                                              {telemetry_mutations, telemetry_mutation_count}, {module_mutations, module_mutation_count},
                                              {errors_mutations, errors_mutation_count},     {whole_mutations, whole_mutation_count},
                                              {format_mutations, format_mutation_count},       {border_mutations, border_mutation_count},
                                              {head_mutations, head_mutation_count}};
  for (const auto& group : groups)
    for (const Mutation& m : group)
      if (std::strcmp(m.name, wanted) == 0) {
        m.apply(tables);
        return &tables.implementation;
      }
  std::fprintf(stderr, "no mutant '%s'\n", wanted);
  return nullptr;
}

}  // namespace
}  // namespace squareq::mutants

extern "C" __attribute__((visibility("default"))) const sq_implementation* squareq_implementation(uint32_t host_abi_version, uint32_t* own_abi_version) {
  if (own_abi_version) *own_abi_version = SQ_ABI_VERSION;
  return host_abi_version == SQ_ABI_VERSION ? squareq::mutants::make() : nullptr;
}
