// The `forward` command: a recognised model run once on tensors of a file, with gradients where asked (DESIGN: command surface). For
// debugging, and for comparing us with anyone. No torch in this header.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/training/shadow.hpp"

namespace squareq::training {

struct ForwardRequest {
  std::filesystem::path model;                  ///< float checkpoint (file, index, folder) or slab (file, manifest, stem)
  std::optional<std::filesystem::path> base;    ///< checkpoint of a slab without companion
  std::optional<std::filesystem::path> config;  ///< config.json that overrides the found one
  std::optional<std::filesystem::path> lora;    ///< adapter file of any known format; keeps its own parametrization
  std::filesystem::path inputs;                 ///< tensors named as the diffusers class's arguments, with `grad` also `cotangent`
  std::filesystem::path output;                 ///< gets `sample`, and with `grad` `grad.<input>` and `grad.<lora tensor>`
  bool grad = false;
  std::string backend = "auto";      ///< for slabs
  std::string dtype = "f32";         ///< of activations: f32, bf16, f16; f64 with float checkpoints
  std::uint64_t budget = 0;          ///< bytes of weights on the device; 0 = no limit
  std::int64_t resident_blocks = 0;  ///< 0 = all
  unsigned threads = 0;
  std::optional<ShadowOptions> shadow;  ///< compute every quantized linear a second time; slabs only (CFG_VALUE)
  std::function<void(std::uint64_t, std::uint64_t, std::string_view)> progress;
};

struct ForwardReport {
  std::string architecture, backend, dtype;
  struct Output {
    std::string name;
    std::vector<std::int64_t> shape;
  };
  std::vector<Output> outputs;
  std::vector<std::string> ignored;                       ///< tensors of the input file that are no argument; safe to print
  std::uint64_t peak_weight_bytes = 0, loaded_bytes = 0;  ///< 0 for a float checkpoint
  std::optional<ShadowSummary> shadow;                    ///< where it was asked for
};

/// Runs the request and writes the output file atomically; on failure none is left. Gradients are those of sum(sample * cotangent).
/// Throws DS_TENSOR (argument missing or not taken by this model), DS_SHAPE (shape or dtype, both values named), NUM_NONFINITE,
/// the LR_* codes of the adapter, what Transformer::open throws, and NUM_BOUND where the shadow disagrees.
ForwardReport run_forward(const ForwardRequest& request);

}  // namespace squareq::training
