// `--shadow`: every quantized linear is computed a second time by another backend (the reference), on the very same inputs, and the two
// results are compared within the derived bounds of spec/35-numerics.md. For finding the first wrong number of a run. No torch here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace squareq::training {

struct ShadowOptions {
  std::string backend = "reference";  ///< who computes the second time; needs the linear group on the CPU
  std::filesystem::path dump;         ///< existing folder for inputs and both outputs of the first result beyond its bound; empty: no dump
  std::string repro;                  ///< the command line that does this again, for the message
};

/// What was compared, and the result nearest to its bound (or beyond it). Margins are |difference| / bound; beyond 1 is a fault.
struct ShadowSummary {
  std::string backend;
  std::uint64_t calls = 0, elements = 0;
  double margin = 0;
  std::string where, layer, tensor;  ///< of the largest margin: "step 3", the layer's name, "backward dx"; empty before the first call
};

}  // namespace squareq::training
