// An activation quantized once for all the linears that read it.
#pragma once

#include <torch/types.h>

#include "squareq/contract.hpp"
#include "squareq/training/tensor_bridge.hpp"

namespace squareq::training {

/// x [M, K] as a W8A8 product reads it (SQ-QNT-020): codes I8 [M, K] and one scale per row, F32 [M]. Undefined: x was not quantized.
struct TokenCodes {
  torch::Tensor q, scale;

  bool defined() const { return q.defined(); }
};

/// The codes that a W8A8 forward would make of x [M, K] F32, BF16 or F16 itself, on x's device and its current stream. Not differentiable: a layer's
/// gradient is that of x. CALL_UNSUPPORTED where the backend does not offer quantize_activation, and what the contract refuses. May be called from any thread.
TokenCodes token_codes(const Context& backend, const torch::Tensor& x);

/// sq_quantized_activation with the views that it points to; `codes` must outlive it.
struct TokenCodesView {
  explicit TokenCodesView(const TokenCodes& codes);
  TokenCodesView(const TokenCodesView&) = delete;
  TokenCodesView& operator=(const TokenCodesView&) = delete;

  std::array<sq_part, 2> parts;
  sq_quantized_activation activation = sized<sq_quantized_activation>();
};

}  // namespace squareq::training
