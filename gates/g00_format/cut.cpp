// A pair that ends too early or too late, at any byte: never accepted, and refused for that reason.
#include <algorithm>

#include "gates/g00_format/g00_format.hpp"
#include "gates/harness/property.hpp"

namespace squareq::gates::g00 {
namespace {

void run_cut(Trial& trial) {
  const char* const goldens[] = {"three_layers", "prefix_filtered", "pack1"};
  check_property(trial, 40, [&](Draws& draws) {
    const Pair whole = golden_pair(goldens[draws.choose("golden", {0, 1, 2})]);
    Pair pair = whole;
    const bool of_manifest = draws.coin("manifest");
    std::string& bytes = of_manifest ? pair.manifest : pair.slab;
    const auto size = static_cast<std::int64_t>(bytes.size());
    // What is left of the file, or how many bytes too many.
    if (draws.coin("longer"))
      bytes.append(static_cast<std::size_t>(draws.integer("more", 1, 64)), '\0');
    else
      bytes.resize(static_cast<std::size_t>(size - draws.integer("less", 1, size)));
    const auto codes = problem_codes(call_format(trial, "validate", {{"slab", write_pair(trial, pair).string()}}));
    const std::vector<std::string> expected =
        of_manifest ? std::vector<std::string>{"MF_JSON"}
                    : std::vector<std::string>{"ST_TOO_SMALL", "ST_HEADER_PAST_EOF", "ST_TRUNCATED", "ST_TRAILING"};
    require(std::find_first_of(codes.begin(), codes.end(), expected.begin(), expected.end()) != codes.end(),
            std::string(of_manifest ? "manifest" : "slab") + " of " + std::to_string(bytes.size()) + " instead of " + std::to_string(size) +
                " bytes: " + (codes.empty() ? "accepted" : "refused with " + codes.front()));
  });
}

}  // namespace

void add_cut(Cases& cases) {
  cases.push_back({0,
                   "format.bad.cut_anywhere",
                   Kind::property,
                   {"SQ-FMT-027", "SQ-FMT-010", "SQ-FMT-012", "SQ-FMT-041"},
                   {"format"},
                   "a file cut or grown at a byte that no vector tries",
                   run_cut});
}

}  // namespace squareq::gates::g00
