// What a transformer block costs to compute: floating-point operations and activation bytes, from its linears and the number of tokens
// each of them sees (spec/60-streaming.md, "Predictions"). Estimates for planning, not measurements.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace squareq::streaming {

/// Tokens of one sample.
struct Tokens {
  std::uint64_t image = 0;
  std::uint64_t text = 0;
};

/// One linear of a block, by its diffusers name within the model ("transformer_blocks.0.attn.to_q").
struct CostLayer {
  std::string name;
  std::uint64_t out = 0, in = 0;
};

/// Which tokens a linear sees. Modulation (adaLN) sees one vector per sample; the context stream's layers, and keys and values of a
/// cross-attention, see text; layers of a single-stream block see all tokens; the others see the image.
enum class Sees { vector, image, text, all };

/// `kind` is the block's: "single" for blocks that work on the joined stream, "transformer" for a UNet's (cross-attention on text).
Sees sees(std::string_view layer, std::string_view kind);

/// One sample through one block.
struct BlockCost {
  double linear_flops = 0;          // forward, 2 per multiply-add
  double attention_flops = 0;       // forward: 4 T^2 D
  std::uint64_t working_elements = 0;  // inputs and outputs of all linears: what a recomputed block holds until its backward is done
  std::uint64_t input_elements = 0;    // what a checkpoint keeps of the block: its input stream

  double forward_flops() const { return linear_flops + attention_flops; }
  /// Recompute and dX: 2 linear + 3.5 attention; with the forward the step's 3 linear + 4.5 attention.
  double backward_flops() const { return 2 * linear_flops + 3.5 * attention_flops; }
};

/// `width` is the channels of the block's token stream.
BlockCost block_cost(const std::vector<CostLayer>& layers, std::string_view kind, std::uint64_t width, const Tokens& tokens);

}  // namespace squareq::streaming
