// The steps of a training run: draws, forward, backward, update, and what is kept of each.
#pragma once

#include <torch/types.h>

#include <future>
#include <memory>
#include <optional>

#include "squareq/training/data/cache.hpp"
#include "squareq/training/trainer/adamw.hpp"
#include "squareq/training/trainer/checkpoint.hpp"
#include "squareq/training/trainer/draws.hpp"
#include "squareq/training/trainer/inputs.hpp"
#include "squareq/training/trainer/trainer.hpp"

namespace squareq::training {

/// The metrics of several passes as those of one step: counters and times add up, levels take the last, peaks the largest.
void add_pass(sq_step_metrics& step, const sq_step_metrics& pass);

class TrainingLoop {
 public:
  /// Opens the data and makes the adapters; throws for whatever does not fit the model. Installs the adapters in the model.
  TrainingLoop(const RunConfig& config, Transformer& model);
  ~TrainingLoop();
  TrainingLoop(const TrainingLoop&) = delete;
  TrainingLoop& operator=(const TrainingLoop&) = delete;

  struct StepResult {
    double loss = 0;           ///< mean over the accumulated micro-batches
    double gradient_norm = 0;  ///< before clipping
    double lr = 0;
    bool skipped = false;
    sq_step_metrics metrics{};
  };
  /// One optimizer step. Throws NUM_NONFINITE after max_skipped skipped steps in a row.
  StepResult step();

  /// Mean loss of the validation set on fixed times and noise.
  double validate();
  bool has_validation() const { return validation_.has_value(); }

  std::int64_t steps_done() const { return step_; }
  std::int64_t skipped() const { return skipped_; }
  const std::vector<double>& losses() const { return losses_; }
  const Cache& data() const { return data_; }
  AdapterSet& adapters() { return adapters_; }

  Checkpoint snapshot() const;
  /// Throws CK_MISMATCH listing every difference; changes nothing then.
  void restore(const Checkpoint& checkpoint, const std::string& file);

 private:
  /// One micro-batch as it lies in host memory: what was drawn and the rows that were read for it.
  struct HostBatch {
    Draws draws;
    torch::Tensor latents;  ///< F32
    TextBatch text;         ///< in the model's dtype
  };
  HostBatch read_batch(const Cache& cache, Draws draws) const;
  /// The micro-batch, and the next one begun on another thread: drawing and reading a large one takes as long as hundredths of a step.
  HostBatch take_batch(std::uint64_t index);
  double micro_batch(std::uint64_t index, sq_step_metrics& metrics);
  torch::Tensor prediction_loss(const HostBatch& batch, const torch::Tensor& ids);
  RunIdentity identity() const;

  const RunConfig& config_;
  Transformer& model_;
  Cache data_;
  std::optional<Cache> validation_;
  torch::Tensor data_ids_, validation_ids_;
  std::unique_ptr<DrawSource> draws_;
  AdapterSet adapters_;
  std::optional<AdamW> optimizer_;
  std::int64_t step_ = 0, skipped_ = 0, skipped_in_a_row_ = 0;
  std::vector<double> losses_;
  std::uint64_t next_index_ = 0;
  std::future<HostBatch> next_;  ///< the last member: its thread uses the others until it is destroyed
};

}  // namespace squareq::training
