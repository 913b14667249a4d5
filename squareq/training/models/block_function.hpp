// A transformer block as one autograd node. Forward and backward each hold the block's lease for exactly as long as they compute;
// it is given up on every path, exceptions included. With checkpointing, backward runs the block again (SQ-MOD-013).
#pragma once

#include <torch/types.h>

#include <memory>
#include <vector>

namespace squareq::training {

class BlockTask {
 public:
  /// Whatever must be held while the block computes; releasing is its destructor's work.
  struct Hold {
    virtual ~Hold() = default;
  };
  virtual ~BlockTask() = default;
  virtual std::unique_ptr<Hold> hold() = 0;
  /// The block itself. `inputs` are the activations and then the block's adapters (a_t, b_t, a_t, ...), all explicit, so that a block
  /// whose activations need no gradient still trains its adapters.
  virtual std::vector<torch::Tensor> run(const std::vector<torch::Tensor>& inputs) = 0;
};

/// Runs the task and makes its outputs differentiable in every input. Without grad mode, or where no input needs a gradient, it is
/// run once and nothing is kept. All inputs must be defined.
std::vector<torch::Tensor> run_block(const std::shared_ptr<BlockTask>& task, const std::vector<torch::Tensor>& inputs, bool checkpointing);

}  // namespace squareq::training
