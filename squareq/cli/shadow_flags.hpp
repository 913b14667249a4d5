// --shadow and --shadow-dump of `forward` and `train`.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "squareq/cli/command.hpp"
#include "squareq/error.hpp"
#include "squareq/training/shadow.hpp"

namespace squareq::cli {

struct ShadowFlags {
  std::string backend;
  std::filesystem::path dump;

  void add_to(CLI::App& command) {
    command.add_option(
        "--shadow", backend,
        "compute every quantized linear, forward and backward, a second time on this backend (reference) and stop at the first\n"
        "result that is farther off than both results' rounding allows (NUM_BOUND); slow, for finding a wrong kernel");
    command.add_option("--shadow-dump", dump, "existing folder that gets the inputs and both outputs of that call");
  }

  /// None without --shadow. CFG_FLAG for --shadow-dump alone.
  std::optional<training::ShadowOptions> options(const Common& common) const {
    if (backend.empty()) {
      if (!dump.empty()) throw Error(Code::CFG_FLAG, "--shadow-dump goes with --shadow");
      return std::nullopt;
    }
    training::ShadowOptions shadow;
    shadow.backend = backend;
    shadow.dump = dump;
    shadow.repro = common.command_line;
    return shadow;
  }
};

inline void tell_shadow(const training::ShadowSummary& s) {
  fmt::print("shadow {}: {} calls, {} numbers within their bounds", s.backend, s.calls, s.elements);
  if (s.calls) fmt::print("; largest margin {:.3g} of 1 ({}, {}, {})", s.margin, s.where, s.layer, s.tensor);
  fmt::print("\n");
}

inline nlohmann::ordered_json shadow_json(const training::ShadowSummary& s) {
  return {{"backend", s.backend}, {"calls", s.calls}, {"elements", s.elements}, {"margin", s.margin},
          {"where", s.where},     {"layer", s.layer}, {"tensor", s.tensor}};
}

}  // namespace squareq::cli
