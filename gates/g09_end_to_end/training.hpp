// A small model trained with plain loops around the contract: what gate 9 compares between resident, streamed, resumed and mutated runs.
//   block: y = x + W2 gelu_tanh(W1 x + b1) + b2, a LoRA on both linears; loss = mean (y_last - target)^2; AdamW on the adapters only.
// Gradient checkpointing as the trainer does it: a block's backward visit recomputes its forward and uses it in the same lease.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "gates/harness/stream.hpp"

namespace squareq::gates::g09 {

inline constexpr std::int64_t rows = 10, width = 40, hidden = 100, rank = 4;
inline constexpr std::uint32_t layers_per_block = 2;

/// fp32 master of one adapter with AdamW's moments.
struct Trained {
  std::vector<float> value, first, second;
};
struct AdapterState {
  Trained a_t, b_t;
};
/// Everything that a resume needs: adapters, moments, step count. One per linear, in order of blocks and layers.
struct TrainState {
  std::vector<AdapterState> adapters;
  int step = 0;
};

/// What one step leaves, for bit comparison.
struct StepTrace {
  double loss = 0;
  std::vector<std::byte> output, input_gradient;
  std::vector<std::vector<std::byte>> da, db;
};

/// Where the weights of a block come from during one visit. The pointers stay valid until leave().
struct WeightSource {
  std::function<void()> begin_step, end_step;
  std::function<void(std::uint32_t block)> enter, leave;
  std::function<const sq_weight_ref*(std::uint32_t block, std::uint32_t layer)> weight;
};

struct Model {
  Model(Trial& trial, std::uint32_t block_count);
  /// One block per entry: its hidden width, so that extents differ in size.
  Model(Trial& trial, const std::vector<std::int64_t>& hidden_widths);
  Blocks blocks;
  std::vector<float> input, target;  // [rows, width]
  TrainState start;                  // A random, B zero
};

/// The layer's own tensors, no session.
WeightSource direct_source(Model& model);
/// Leases of an open session, schedule 0.
WeightSource leased_source(StreamSession& session);

/// `steps` training steps from `state`, which is advanced; one trace per step.
std::vector<StepTrace> train(Instance& instance, Model& model, const WeightSource& source, TrainState& state, int steps);

/// Fails naming the first step and tensor that differ in any bit.
void same_traces(const std::string& what, const std::vector<StepTrace>& a, const std::vector<StepTrace>& b);
void same_state(const std::string& what, const TrainState& a, const TrainState& b);

}  // namespace squareq::gates::g09
