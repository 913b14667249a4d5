// Queries and keys of attention through the contract as a differentiable libtorch operation: RMSNorm of every head and RoPE in one pass over the
// projections (SQ-LIN-060 to 065), written where the token streams are joined.
#pragma once

#include <torch/types.h>

#include <vector>

#include "squareq/contract.hpp"

namespace squareq::training {

/// One stream's projection, and the RMSNorm weight of its heads.
struct HeadStream {
  torch::Tensor x;       ///< [B, S, H d]
  torch::Tensor weight;  ///< [d]
};

/// Whether `backend` offers the operation for this dtype.
bool offers_normed_heads(const Context& backend, torch::Dtype dtype);

/// All streams in their order, [B, sum of S, H, d]. rope [sum of S, d / 2] complex64 turns neighbouring pairs of a head. Differentiable in every x;
/// CALL_UNSUPPORTED for a weight or a table that wants a gradient, and what the contract refuses. May be called and differentiated from any thread.
torch::Tensor normed_heads(const Context& backend, const std::vector<HeadStream>& streams, const torch::Tensor& rope, double epsilon);

}  // namespace squareq::training
