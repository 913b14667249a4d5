// Turning a model's Linear modules into QuantLinear, and filling them from a slab. Strict: a name that matches nothing is an error.
#pragma once

#include <torch/nn/module.h>

#include <optional>
#include <string>
#include <vector>

#include "squareq/slab/slab.hpp"
#include "squareq/training/modules/quant_linear.hpp"

namespace squareq::training {

/// Replaces the torch::nn::Linear or LinearShape at every spec's path by a QuantLinear and freezes everything but adapters. A path that
/// holds a QuantLinear already is left alone, adapter and all. Returns the paths replaced. Throws MD_LAYER naming layer and both values
/// where a path is not in the tree, is given twice, or holds a module of another type, shape or bias, and then changes nothing.
std::vector<std::string> scaffold(torch::nn::Module& root, const std::vector<LinearSpec>& layers, const std::optional<LoraSpec>& lora);

/// The layers of a slab, for scaffold().
std::vector<LinearSpec> layers_of(const Slab& slab);

/// Fills every QuantLinear of the tree. Slab layers and modules must be the same set, shapes and biases included: MD_LAYER otherwise, and
/// DT_CHECKSUM where bytes are not those that the companion vouches for. On failure no module changes. Returns the number of modules.
std::size_t load_slab(torch::nn::Module& root, const Slab& slab);

/// Nothing but adapters requires a gradient.
void freeze(torch::nn::Module& root);

/// lora_A and lora_B of every QuantLinear, by module path: everything that may be trained.
std::vector<torch::Tensor> trainable_parameters(torch::nn::Module& root);

}  // namespace squareq::training
