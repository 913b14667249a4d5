// One Linear layer through the contract as a differentiable libtorch operation (spec/55-modules.md). The graph holds the input, the
// pre-activation and H = X A at most; weights are looked up again in backward, inside whatever lease is then held.
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>

#include "squareq/contract.hpp"
#include "squareq/training/token_codes.hpp"
#include "squareq/training/tensor_bridge.hpp"

namespace squareq::training {

class Shadow;

/// Where a layer's quantized weight is at the moment of a call: resident tensors, or a lease.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// Throws CALL_STATE where no lease on the weight's block is held.
  virtual void bind(BoundWeight& bound) const = 0;
};

/// The constant part of a call.
struct LinearCall {
  Context backend;
  std::shared_ptr<const WeightSource> weight;
  std::int64_t out_features = 0;
  std::int32_t activation = SQ_ACT_NONE;
  float scaling = 0;               ///< alpha / rank of the adapter
  std::string name{};              ///< of the layer, and which rows of it, for messages
  std::shared_ptr<Shadow> shadow{};  ///< computes every call again and compares; null: no such thing, at no cost
  std::int32_t compute = SQ_COMPUTE_DEFAULT;  ///< sq_compute, forward and backward
};

/// The low-rank branch of a call; a_t undefined: none.
struct LowRank {
  torch::Tensor a_t;  ///< [r, K] F32
  torch::Tensor b_t;  ///< [N, r] F32
  torch::Tensor x;    ///< the branch's own input [M, K] (dropout); undefined: the layer's
};

/// y [M, N] = activation(x W^T + scaling (x A) B + bias) in x's dtype, for x [M, K] F32, BF16 or F16. Differentiable in x, in the
/// branch's input and in the adapter, never in the weight or the bias (SQ-MOD-001). `codes`: those of x, where they are there already; they change no bit.
/// CALL_VALUE for codes in any compute but W8A8, and what the contract refuses. May be called and differentiated from any thread.
torch::Tensor quantized_linear(const torch::Tensor& x, const LowRank& branch, const std::shared_ptr<const LinearCall>& call, const TokenCodes& codes = {});

}  // namespace squareq::training
