// The second computation behind `--shadow` (squareq/training/shadow.hpp).
#pragma once

#include <torch/types.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "squareq/contract.hpp"
#include "squareq/training/shadow.hpp"

namespace squareq::training {

struct LinearCall;
struct LowRank;

/// What the chosen backend answered to linear_forward; undefined: not asked for.
struct ForwardTensors {
  torch::Tensor y, preactivation, h;
};

/// What went into linear_backward beside x and the branch, and what came out; undefined: not given, not asked for.
struct BackwardTensors {
  torch::Tensor dy, preactivation, h;
  torch::Tensor dx, da_t, db_t, dx_lora;
};

/// Thread-safe; calls of several threads wait for each other.
class Shadow {
 public:
  /// CFG_BACKEND where the shadow's backend cannot run here, CFG_VALUE for one that does not compute on the CPU, IO_MISSING for a dump
  /// folder that does not exist.
  Shadow(const ShadowOptions& options, unsigned threads);

  /// "step 3", "validation after step 0": where the calls that follow belong to.
  void enter(std::string where);

  /// Compares one call of the chosen backend. `weight` as that call had it. Throws NUM_BOUND for the first element that is farther from
  /// the shadow's than both results' bounds together allow, naming place, layer, element, both values, margin and repro line; with a
  /// dump folder the tensors are written there first.
  void forward(const LinearCall& call, const sq_weight_ref& weight, const torch::Tensor& x, const LowRank& branch,
               const ForwardTensors& got);
  void backward(const LinearCall& call, const sq_weight_ref& weight, const torch::Tensor& x, const LowRank& branch,
                const BackwardTensors& got);

  ShadowSummary summary() const;

 private:
  struct Layer;
  struct Output {
    const char* name;
    torch::Tensor got, again, bound;  ///< bound: of one result against the exact value, F64
  };
  void judge(const char* pass, const LinearCall& call, const Layer& layer, const std::vector<Output>& outputs);
  void dump(const std::string& stem, const Layer& layer, const std::vector<Output>& outputs) const;

  ShadowOptions options_;
  Context backend_;
  mutable std::mutex mutex_;
  std::string where_ = "pass";
  ShadowSummary summary_;
};

}  // namespace squareq::training
