// Every Linear of a transformer by its diffusers name, whatever holds the weights: libtorch tensors of a float checkpoint, or a slab
// through the contract. Model code asks for apply() and heads() and knows no more.
#pragma once

#include <torch/types.h>

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "squareq/training/model.hpp"
#include "squareq/training/modules/normed_heads.hpp"
#include "squareq/training/token_codes.hpp"

namespace squareq::training {

/// Rows [first, first + rows) of something that a layer's output is made of, in output order.
struct Rows {
  std::int64_t first = 0, rows = 0;
};

/// The adapter that one linear uses: rows of B, all of A (a fused adapter serves several linears).
struct Branch {
  std::size_t adapter = 0;  ///< index in the block's adapter list
  float scaling = 0;
  std::vector<Rows> b_rows;
};

/// One block's adapters (block -1: those outside), in the order of the set.
using BlockAdapters = std::vector<const Adapter*>;

/// Inside a block a_t and b_t come as explicit inputs: {a_t, b_t} of adapter 0, of adapter 1, ...
using AdapterTensors = std::span<const torch::Tensor>;

/// Where diffusers' layer `name` lies under another naming scheme: rows of a wider layer, swapped halves as two pieces.
struct Placement {
  std::string layer;
  std::vector<Rows> rows;
  std::int64_t total_rows = 0;
};

/// A frozen float weight [out, in] in the compute dtype; the bias [out] may be undefined.
struct FloatWeight {
  torch::Tensor w, bias;
};

/// What a linear reads: x [..., in] and, where several linears share it and their arithmetic wants that, the codes of its rows, made once.
struct LinearInput {
  torch::Tensor x;
  TokenCodes codes{};

  LinearInput(const torch::Tensor& input) : x(input) {}  // a tensor is an input
};

class Linears {
 public:
  explicit Linears(std::vector<LinearInfo> list);
  Linears(const Linears&) = delete;
  Linears& operator=(const Linears&) = delete;
  virtual ~Linears() = default;

  const std::vector<LinearInfo>& list() const { return list_; }
  /// Index of a diffusers name; MD_LAYER where the model has no such linear.
  std::size_t index(std::string_view name) const;

  /// activation(x W^T + bias + branch), x [..., in] -> [..., out] in x's dtype. `adapters` are the tensors of the layer's own block.
  virtual torch::Tensor apply(std::size_t layer, const LinearInput& input, std::int32_t activation, AdapterTensors adapters) const = 0;
  /// x for several linears. Changes no bit of what they give.
  virtual LinearInput shared(const torch::Tensor& x) const { return x; }

  /// Queries or keys of attention from their projections: RMSNorm of every head, RoPE, the streams joined: [B, sum of S, H, d] (normed_heads()). Here
  /// in plain libtorch operations, which round between norm and rotation.
  virtual torch::Tensor heads(const std::vector<HeadStream>& streams, const torch::Tensor& rope, double epsilon) const;

  /// Resolves every adapter of the set (nullptr: none). `native` gives each linear's place in the fused scheme. Throws LR_KEY or
  /// LR_SHAPE and then changes nothing.
  virtual void bind(const AdapterSet* set, const std::map<std::string, Placement>& native);
  /// Adapters of a block, -1: outside.
  const BlockAdapters& adapters_of(std::int64_t block) const;

 protected:
  const Branch* branch_of(std::size_t layer) const { return branches_[layer] ? branches_[layer].get() : nullptr; }
  /// The branch's input: x with the set's dropout applied, the same elements at every call with the same seed.
  torch::Tensor dropped(const torch::Tensor& x, std::size_t layer) const;
  /// apply() with a float weight, in plain libtorch operations.
  torch::Tensor apply_float(const FloatWeight& weight, std::size_t layer, const torch::Tensor& x, std::int32_t activation,
                            AdapterTensors adapters) const;

 private:
  std::vector<LinearInfo> list_;
  std::map<std::string, std::size_t, std::less<>> index_;
  std::vector<std::unique_ptr<Branch>> branches_;  // by layer; null: no adapter
  std::map<std::int64_t, BlockAdapters> by_block_;
  const AdapterSet* set_ = nullptr;
};

/// All weights float, by layer.
class FloatLinears final : public Linears {
 public:
  FloatLinears(std::vector<LinearInfo> list, std::vector<FloatWeight> weights) : Linears(std::move(list)), weights_(std::move(weights)) {}
  torch::Tensor apply(std::size_t layer, const LinearInput& input, std::int32_t activation, AdapterTensors adapters) const override {
    return apply_float(weights_[layer], layer, input.x, activation, adapters);
  }

 private:
  std::vector<FloatWeight> weights_;
};

}  // namespace squareq::training
