// From rows of a cache to the model's arguments.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "squareq/training/data/cache.hpp"
#include "squareq/training/model.hpp"

namespace squareq::training {

/// Position ids of a token grid: [height * width, axes] with (0, h, w) in row h * width + w, F32.
torch::Tensor image_ids(const TokenGrid& grid, std::int64_t axes, torch::Device device);

/// Latents of the rows, F32 [B, tokens, channels] on `device`.
torch::Tensor read_latents(const Cache& cache, const std::vector<std::int64_t>& rows, torch::Device device);

/// Text embeddings of the rows. `keep` [B]: 0 gives the empty caption, all zeros.
struct TextBatch {
  torch::Tensor tokens;  ///< [B, text_tokens, text_dim]
  torch::Tensor pooled;  ///< [B, pooled_dim]
};
TextBatch read_text(const Cache& cache, const std::vector<std::int64_t>& rows, const std::vector<std::uint8_t>& keep, torch::Device device,
                    torch::Dtype dtype);

/// Everything but hidden_states and timestep. `guidance` is used where the model has a guidance embedding.
ForwardInputs make_inputs(const TextBatch& text, const torch::Tensor& img_ids, double guidance, const Transformer& model);

}  // namespace squareq::training
