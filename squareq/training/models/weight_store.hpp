// What holds a model's frozen weights, and when a block of them may be used.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "squareq/training/models/block_function.hpp"
#include "squareq/training/models/linears.hpp"

namespace squareq::training {

class WeightStore {
 public:
  virtual ~WeightStore() = default;
  virtual Linears& linears() = 0;
  /// An unquantized tensor by its diffusers name (qk-norm weights), in the compute dtype. MD_TENSOR where it is missing.
  virtual torch::Tensor tensor(const std::string& name) = 0;

  /// Starts the weights' part of a pass. In a train pass backward will visit blocks `first_backward_block` and above.
  virtual void begin(Pass pass, std::int64_t first_backward_block) = 0;
  virtual void end(bool abandoned) = 0;
  /// Holds block `block` (-1: the layers outside blocks) until the result is destroyed.
  virtual std::unique_ptr<BlockTask::Hold> hold(std::int64_t block) = 0;

  virtual torch::Device device() const = 0;
  virtual std::string backend_name() const = 0;
  virtual std::string slab_id() const = 0;
  virtual sq_stream_stats stream_stats() const = 0;
  virtual sq_step_metrics last_step() const = 0;
};

/// Everything that Transformer::open learned about a model before its code runs.
struct OpenedModel {
  ModelConfig config;
  Architecture architecture;
  std::unique_ptr<WeightStore> store;
  std::map<std::string, Placement> native;  ///< each linear's place in the fused naming scheme
};

/// Opens a float checkpoint, or a slab (with its companion, or a base checkpoint).
OpenedModel open_checkpoint(const OpenOptions& options);
OpenedModel open_slab(const OpenOptions& options);

}  // namespace squareq::training
