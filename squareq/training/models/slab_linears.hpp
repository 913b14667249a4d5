// The linears of a slab: each one row range (or two) of a quantized layer that lies in a block of the stream session.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "squareq/contract.hpp"
#include "squareq/training/models/linears.hpp"
#include "squareq/training/modules/quantized_linear.hpp"

namespace squareq::training {

/// A block of the session and the lease on it that is held now, if any.
struct LeasedBlock {
  std::string name;
  const Lease* lease = nullptr;
};

/// Where one linear's rows are: layer `layer` of the block's table.
struct SlabPlace {
  std::shared_ptr<LeasedBlock> block;
  std::uint32_t layer = 0;
  std::vector<Rows> rows;
  bool whole = false;  ///< all rows of the layer, in order
};

class SlabLinears final : public Linears {
 public:
  /// By linear: its place in the slab, or a float weight for one that was not quantized. `compute` (sq_compute) is that of
  /// every quantized one.
  SlabLinears(std::vector<LinearInfo> list, Context backend, std::vector<std::optional<SlabPlace>> places, std::vector<FloatWeight> floats,
              std::int32_t compute = SQ_COMPUTE_DEFAULT, std::shared_ptr<Shadow> shadow = {});

  torch::Tensor apply(std::size_t layer, const LinearInput& input, std::int32_t activation, AdapterTensors adapters) const override;
  /// With W8A8: x and its codes, where the backend offers to make them; else each linear makes its own.
  LinearInput shared(const torch::Tensor& x) const override;
  /// Through the contract where the backend offers the operation, one pass and one rounding, unless the positions want a gradient.
  torch::Tensor heads(const std::vector<HeadStream>& streams, const torch::Tensor& rope, double epsilon) const override;
  void bind(const AdapterSet* set, const std::map<std::string, Placement>& native) override;

 private:
  /// Output rows of one linear that one call computes: a row range of the weight and, with an adapter, the same rows of its B.
  struct Piece {
    std::shared_ptr<const WeightSource> weight;
    std::int64_t out = 0, b_first = 0;
    std::shared_ptr<const LinearCall> calls[4];  ///< by sq_activation
  };
  std::vector<Piece> pieces_of(std::size_t layer) const;

  Context backend_;
  std::int32_t compute_;
  std::shared_ptr<Shadow> shadow_;
  std::vector<std::optional<SlabPlace>> places_;
  std::vector<FloatWeight> floats_;
  std::vector<std::vector<Piece>> pieces_;
};

}  // namespace squareq::training
