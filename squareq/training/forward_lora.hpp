// An adapter file as it is, for gradients under its own keys: fused modules stay fused.
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "squareq/training/model.hpp"

namespace squareq::training {

struct LoraInFile {
  AdapterSet adapters;
  std::vector<std::pair<std::string, torch::Tensor>> tensors;  ///< the file's key and the adapter's matrix: A^T or B^T, F32
};

/// Reads a LoRA file of any known format. Layers carry the names that the file means: diffusers layers, or fused native modules.
/// Throws what read_lora throws.
LoraInFile read_lora_as_filed(const std::filesystem::path& path, const Transformer& model);

}  // namespace squareq::training
