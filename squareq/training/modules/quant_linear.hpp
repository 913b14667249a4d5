// QuantLinear: a Linear whose weight is INT8, as a libtorch module, with or without a LoRA adapter (spec/55-modules.md).
#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <memory>
#include <optional>
#include <string>

#include "squareq/contract.hpp"

namespace squareq::training {

struct LinearSpec {
  std::string name;  ///< module path, "transformer_blocks.0.attn.to_q"
  std::int64_t in = 0, out = 0;
  bool bias = false;
};

/// How A starts; B always starts at zero.
enum class LoraInit {
  peft,     ///< uniform(+-1/sqrt(in))
  squareq,  ///< uniform(+-sqrt(6/rank))
};

struct LoraSpec {
  std::int64_t rank = 8;
  double alpha = 1;
  LoraInit init = LoraInit::peft;
};

/// A Linear of which only the shape exists: scaffolding a model that was never allocated.
class LinearShape : public torch::nn::Module {
 public:
  explicit LinearShape(LinearSpec linear) : spec(std::move(linear)) {}
  const LinearSpec spec;
};

/// y = cast(x W^T + alpha/rank (x A) B + bias, compute_dtype), all FP32 inside, for x [..., in] of any float dtype; W = q * scale by row.
/// Buffers qweight I8 [out, padded in], scale and zero_point F32 [out] (empty before set_quant_state); frozen parameter bias F32 [out];
/// trained parameters lora_A [in, rank] and lora_B [rank, out], FP32 masters whose memory holds the transposes. No float weight, ever.
/// Casts change none of these (SQ-MOD-005): to(dtype), on the module or on a parent, leaves every bit; to(device) moves them.
/// Not for torch::nn::MultiheadAttention's out_proj in Python: that parent reads `.weight` itself. C++ has no such access.
class QuantLinear : public torch::nn::Module {
 public:
  explicit QuantLinear(LinearSpec spec, std::optional<LoraSpec> lora = std::nullopt, torch::Dtype compute_dtype = torch::kBFloat16);

  /// Throws MD_LAYER naming layer and both values for a wrong dtype, shape, padding, scale (not finite and positive), zero point (not
  /// 0), code (-128) or bias (given or missing against the spec), and then changes nothing. Takes the tensors, copies none.
  void set_quant_state(const torch::Tensor& qweight, const torch::Tensor& scale, const torch::Tensor& zero_point,
                       const torch::Tensor& bias);
  bool loaded() const { return qweight_.numel() > 0; }

  /// Throws CALL_STATE before set_quant_state, CALL_SHAPE for a last dimension that is not `in`.
  torch::Tensor forward(const torch::Tensor& x, const Context& backend) const;

  const LinearSpec& spec() const { return spec_; }
  const std::optional<LoraSpec>& lora() const { return lora_; }
  torch::Tensor lora_a() const { return lora_a_; }  ///< [in, rank]; undefined without adapter
  torch::Tensor lora_b() const { return lora_b_; }  ///< [rank, out]

  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Device device, bool non_blocking = false) override;

 private:
  LinearSpec spec_;
  std::optional<LoraSpec> lora_;
  torch::Dtype compute_dtype_;
  torch::Tensor qweight_, scale_, zero_point_, bias_, lora_a_, lora_b_;
};

}  // namespace squareq::training
