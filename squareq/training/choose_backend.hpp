// Which backend "auto" means. Needs no libtorch to include.
#pragma once

#include <string>

namespace squareq::training {

/// What "auto" means on this machine, and why.
struct ChosenBackend {
  std::string name;    ///< "cuda" where it describes the groups linear, lora and stream, a GPU is usable and libtorch has CUDA; else "cpu"
  std::string reason;  ///< the GPU's name, or what keeps cuda from being chosen
};
ChosenBackend choose_backend();

}  // namespace squareq::training
