#include "squareq/training/trainer/inputs.hpp"

#include <torch/torch.h>

#include <algorithm>

namespace squareq::training {

torch::Tensor image_ids(const TokenGrid& grid, std::int64_t axes, torch::Device device) {
  torch::Tensor ids = torch::zeros({grid.height, grid.width, axes});
  ids.select(2, 1).copy_(torch::arange(grid.height, torch::kFloat32).unsqueeze(1).expand({grid.height, grid.width}));
  ids.select(2, 2).copy_(torch::arange(grid.width, torch::kFloat32).unsqueeze(0).expand({grid.height, grid.width}));
  return ids.reshape({-1, axes}).to(device);
}

torch::Tensor read_latents(const Cache& cache, const std::vector<std::int64_t>& rows, torch::Device device) {
  const CacheShape& s = cache.shape();
  torch::Tensor batch = torch::empty({static_cast<std::int64_t>(rows.size()), s.tokens, s.channels});
  float* out = batch.data_ptr<float>();
  for (std::size_t b = 0; b < rows.size(); ++b) cache.read_latents(rows[b], out + static_cast<std::int64_t>(b) * s.tokens * s.channels);
  return batch.to(device);
}

TextBatch read_text(const Cache& cache, const std::vector<std::int64_t>& rows, const std::vector<std::uint8_t>& keep, torch::Device device,
                    torch::Dtype dtype) {
  const CacheShape& s = cache.shape();
  const auto batch = static_cast<std::int64_t>(rows.size());
  torch::Tensor tokens = torch::zeros({batch, s.text_tokens, s.text_dim});
  torch::Tensor pooled = torch::zeros({batch, s.pooled_dim});
  for (std::int64_t b = 0; b < batch; ++b) {
    if (!keep[static_cast<std::size_t>(b)]) continue;
    const std::int64_t row = rows[static_cast<std::size_t>(b)];
    cache.read_text(row, tokens.data_ptr<float>() + b * s.text_tokens * s.text_dim);
    cache.read_pooled(row, pooled.data_ptr<float>() + b * s.pooled_dim);
  }
  return {tokens.to(dtype).to(device), pooled.to(dtype).to(device)};
}

ForwardInputs make_inputs(const TextBatch& text, const torch::Tensor& img_ids, double guidance, const Transformer& model) {
  ForwardInputs in;
  in.encoder_hidden_states = text.tokens;
  in.pooled_projections = text.pooled;
  in.img_ids = img_ids;
  in.txt_ids = torch::zeros({text.tokens.size(1), img_ids.size(1)}, img_ids.options());
  if (model.config().guidance_embeds)
    in.guidance = torch::full({text.tokens.size(0)}, guidance, torch::TensorOptions(model.device()).dtype(torch::kFloat32));
  return in;
}

}  // namespace squareq::training
