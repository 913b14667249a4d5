// Which layers get an adapter, and what it starts as. No torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "squareq/training/lora/lora_file.hpp"
#include "squareq/training/trainer/config.hpp"

namespace squareq::training {

/// A linear of the model: diffusers name, sizes, its block (-1: outside).
struct TargetLayer {
  std::string name;
  std::int64_t in = 0, out = 0, block = -1;
};

/// Layers chosen by `targets`, in model order. "default": attention and MLP linears of the blocks (not the modulations);
/// "attention": q, k, v and output projections of the attentions; "all-block-linears"; anything else is a pattern: a name or its end
/// after a dot ("attn.to_q"), or with `*` (any characters) the whole name. Several entries add up. Throws CFG_VALUE for an entry that
/// chooses nothing, naming the nearest layer ending.
std::vector<TargetLayer> choose_targets(const std::vector<TargetLayer>& model, const std::vector<std::string>& targets);

/// Adapters that change nothing yet: up is 0, down is drawn. peft: U(+-1/sqrt(in)); squareq: U(+-sqrt(6/rank)); gaussian:
/// N(0, 1/rank^2).
std::vector<LoraLayer> initial_adapters(const std::vector<TargetLayer>& layers, std::int64_t rank, double alpha, LoraInit init,
                                        std::uint64_t seed);

}  // namespace squareq::training
