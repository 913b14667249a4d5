// The FLUX.1 transformer at any size: the mathematics of diffusers' FluxTransformer2DModel (facts: models 3.3), block by block, over
// whatever holds the weights. Activations keep the compute dtype; LayerNorm, RMSNorm, RoPE and the time embedding are FP32 inside.
#pragma once

#include <torch/types.h>

#include <vector>

#include "squareq/training/models/linears.hpp"
#include "squareq/training/models/weight_store.hpp"

namespace squareq::training {

class Flux1 {
 public:
  Flux1(const ModelConfig& config, WeightStore& store, torch::Dtype dtype);

  std::int64_t block_count() const { return static_cast<std::int64_t>(doubles_.size() + singles_.size()); }

  /// Throws MD_TENSOR (missing, superfluous) or CALL_SHAPE / CALL_DTYPE naming the input, what it is and what it has to be.
  void check(const ForwardInputs& inputs) const;

  /// What every block sees besides the token streams.
  struct Conditioning {
    torch::Tensor silu_vec;  ///< [B, D] silu of time + guidance + text vector: every modulation starts with it
    torch::Tensor rope;      ///< [T + L, head_dim / 2] complex64, text tokens first
  };
  Conditioning condition(const ForwardInputs& inputs, AdapterTensors adapters) const;

  torch::Tensor embed_image(const torch::Tensor& hidden_states, AdapterTensors adapters) const;
  torch::Tensor embed_text(const torch::Tensor& encoder_hidden_states, AdapterTensors adapters) const;

  /// Block `index` in execution order. A double block takes and returns {image [B, L, D], text [B, T, D]}; a single block takes and
  /// returns {text and image joined [B, T + L, D]}. `in` ends with silu_vec and rope, then come the block's adapters.
  bool is_double(std::int64_t index) const { return index < static_cast<std::int64_t>(doubles_.size()); }
  std::vector<torch::Tensor> block(std::int64_t index, const std::vector<torch::Tensor>& in) const;

  /// [B, L, D] -> [B, L, patch_size^2 * out_channels]
  torch::Tensor finish(const torch::Tensor& x, const torch::Tensor& silu_vec, AdapterTensors adapters) const;

 private:
  /// Indices into Linears, and the qk-norm weights [head_dim], of one attention input.
  struct Attention {
    std::size_t q, k, v;
    torch::Tensor norm_q, norm_k;
  };
  struct Stream {  // half of a double block
    std::size_t modulation, out, mlp_in, mlp_out;
    Attention attention;
  };
  struct DoubleBlock {
    Stream image, text;
  };
  struct SingleBlock {
    std::size_t modulation, mlp, out;
    Attention attention;
  };
  struct Embedder {
    std::size_t first, second;
  };

  std::vector<torch::Tensor> double_block(const DoubleBlock& block, const std::vector<torch::Tensor>& in) const;
  std::vector<torch::Tensor> single_block(const SingleBlock& block, const std::vector<torch::Tensor>& in) const;
  torch::Tensor stream_tail(const Stream& s, const torch::Tensor& x, const torch::Tensor& attended, const std::vector<torch::Tensor>& m,
                            AdapterTensors adapters) const;
  struct Projections {
    torch::Tensor q, k;  // [B, S, H d]: before norm and rotation
    torch::Tensor v;     // [B, S, H, d]
  };
  Projections project(const Attention& a, const LinearInput& x, AdapterTensors adapters) const;
  torch::Tensor sinusoid(const torch::Tensor& value) const;
  torch::Tensor rope_table(const torch::Tensor& txt_ids, const torch::Tensor& img_ids) const;
  torch::Tensor embed(const Embedder& e, const torch::Tensor& x, AdapterTensors adapters) const;
  torch::Tensor linear(std::size_t layer, const LinearInput& x, AdapterTensors adapters, std::int32_t activation = SQ_ACT_NONE) const {
    return linears_->apply(layer, x, activation, adapters);
  }

  ModelConfig config_;
  Linears* linears_;
  torch::Dtype dtype_;
  std::size_t x_embedder_, context_embedder_, norm_out_, proj_out_;
  Embedder time_{}, guidance_{}, text_{};
  std::vector<DoubleBlock> doubles_;
  std::vector<SingleBlock> singles_;
};

}  // namespace squareq::training
