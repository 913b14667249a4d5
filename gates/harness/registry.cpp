#include "gates/harness/registry.hpp"

#include <algorithm>
#include <set>

#include "squareq/error.hpp"

namespace squareq::gates {

const Cases& all_cases() {
  static const Cases cases = [] {
    Cases all;
    for (const auto add : {add_g00_format, add_g01_scaffold, add_g02_loading, add_g03_memory, add_g04_lora, add_g05_forward, add_g06_registry, add_g07_staging,
                           add_g08_dispatch, add_g09_end_to_end, add_g10_errors, add_g11_cleanup, add_g12_multi_block, add_g13_eviction, add_g14_dtype, add_g15_telemetry}) add(all);
    std::set<std::string> ids;
    for (const Case& c : all) {
      if (!ids.insert(c.id).second) throw Error(Code::INTERNAL, "two gate cases share the id " + c.id);
      if (c.requirements.empty()) throw Error(Code::INTERNAL, "gate case " + c.id + " names no requirement");
    }
    std::stable_sort(all.begin(), all.end(), [](const Case& a, const Case& b) { return a.gate < b.gate; });
    return all;
  }();
  return cases;
}

std::string_view gate_subject(int gate) {
  static constexpr std::string_view subjects[] = {
      "format",   "scaffold", "loading",    "memory",  "lora",        "forward",  "registry", "staging",
      "dispatch", "end to end", "errors", "cleanup", "multi-block", "eviction", "dtypes",   "telemetry"};
  return gate >= 0 && gate < 16 ? subjects[gate] : "?";
}

}  // namespace squareq::gates
