#include "squareq/training/models/slab_linears.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "squareq/error.hpp"
#include "squareq/tensor.hpp"
#include "squareq/training/torch_compat.hpp"

namespace squareq::training {

namespace {

/// A layer of a leased block, all of it or rows of it.
class LeasedSource final : public WeightSource {
 public:
  LeasedSource(Context backend, std::shared_ptr<LeasedBlock> block, std::uint32_t layer, std::optional<Rows> rows)
      : backend_(std::move(backend)), block_(std::move(block)), layer_(layer), rows_(rows) {}

  void bind(BoundWeight& bound) const override {
    if (!block_->lease) throw Error(Code::CALL_STATE, fmt::format("weights of block '{}' used without a lease", block_->name));
    bound.ref = block_->lease->layer(layer_);
    if (!rows_) return;
    bound.weight = sized<sq_weight>();
    sq_error e = make_error();
    check(backend_.stream().lease_weight(backend_.get(), bound.ref.session, bound.ref.lease, layer_, &bound.weight, &e), e);
    if (bound.weight.part_count > bound.parts.size())
      throw Error(Code::INTERNAL, fmt::format("layer '{}' has {} parts, at most {} are expected", bound.weight.name,
                                              bound.weight.part_count, bound.parts.size()));
    for (std::uint32_t i = 0; i < bound.weight.part_count; ++i) {  // every part of bp8_v2 has one entry or row per output
      bound.parts[i] = bound.weight.parts[i];
      sq_tensor& t = bound.parts[i].tensor;
      t.data = static_cast<std::byte*>(t.data) + static_cast<std::uint64_t>(rows_->first * t.strides[0]) * dtype_bytes(t.dtype);
      t.shape[0] = rows_->rows;
    }
    bound.weight.parts = bound.parts.data();
    bound.weight.out_features = rows_->rows;
    bound.ref = sized<sq_weight_ref>();
    bound.ref.weight = &bound.weight;
  }

 private:
  Context backend_;
  std::shared_ptr<LeasedBlock> block_;
  std::uint32_t layer_;
  std::optional<Rows> rows_;
};

/// Cuts two descriptions of the same output rows at every boundary of either: {weight first, B first, rows}.
struct Cut {
  std::int64_t weight_first, b_first, rows;
};
std::vector<Cut> cut(const std::vector<Rows>& weight, const std::vector<Rows>& b) {
  std::vector<Cut> cuts;
  std::size_t i = 0, j = 0;
  std::int64_t into_weight = 0, into_b = 0;
  while (i < weight.size() && j < b.size()) {
    const std::int64_t rows = std::min(weight[i].rows - into_weight, b[j].rows - into_b);
    cuts.push_back({weight[i].first + into_weight, b[j].first + into_b, rows});
    into_weight += rows;
    into_b += rows;
    if (into_weight == weight[i].rows) ++i, into_weight = 0;
    if (into_b == b[j].rows) ++j, into_b = 0;
  }
  return cuts;
}

}  // namespace

SlabLinears::SlabLinears(std::vector<LinearInfo> list, Context backend, std::vector<std::optional<SlabPlace>> places,
                         std::vector<FloatWeight> floats, std::int32_t compute, std::shared_ptr<Shadow> shadow)
    : Linears(std::move(list)), backend_(std::move(backend)), compute_(compute), shadow_(std::move(shadow)), places_(std::move(places)), floats_(std::move(floats)) {
  for (std::size_t i = 0; i < places_.size(); ++i) pieces_.push_back(pieces_of(i));
}

std::vector<SlabLinears::Piece> SlabLinears::pieces_of(std::size_t layer) const {
  if (!places_[layer]) return {};
  const SlabPlace& place = *places_[layer];
  const Branch* branch = branch_of(layer);
  std::vector<Piece> pieces;
  for (const Cut& c : cut(place.rows, branch ? branch->b_rows : std::vector<Rows>{{0, list()[layer].out}})) {
    const bool whole = place.whole && c.rows == list()[layer].out;
    Piece piece;
    piece.out = c.rows;
    piece.b_first = c.b_first;
    piece.weight = std::make_shared<LeasedSource>(backend_, place.block, place.layer,
                                                  whole ? std::nullopt : std::optional<Rows>({c.weight_first, c.rows}));
    std::string name = list()[layer].name;
    if (c.rows != list()[layer].out) name += fmt::format(" rows {} to {}", c.b_first, c.b_first + c.rows - 1);
    for (std::int32_t activation = SQ_ACT_NONE; activation <= SQ_ACT_SILU; ++activation)
      piece.calls[activation] = std::make_shared<LinearCall>(
          LinearCall{backend_, piece.weight, c.rows, activation, branch ? branch->scaling : 0.0f, name, shadow_, compute_});
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

void SlabLinears::bind(const AdapterSet* set, const std::map<std::string, Placement>& native) {
  Linears::bind(set, native);
  for (std::size_t i = 0; i < pieces_.size(); ++i) pieces_[i] = pieces_of(i);
}

LinearInput SlabLinears::shared(const torch::Tensor& x) const {
  LinearInput input(x);
  if (compute_ == SQ_COMPUTE_W8A8 && offered(backend_.linear(), &sq_linear_group::quantize_activation)) input.codes = token_codes(backend_, x.reshape({-1, x.size(-1)}));
  return input;
}

torch::Tensor SlabLinears::apply(std::size_t layer, const LinearInput& input, std::int32_t activation, AdapterTensors adapters) const {
  const torch::Tensor& x = input.x;
  if (!places_[layer]) return apply_float(floats_[layer], layer, x, activation, adapters);
  const torch::Tensor rows = x.reshape({-1, x.size(-1)});
  const Branch* branch = branch_of(layer);
  LowRank low_rank;
  torch::Tensor b_t;
  if (branch) {
    low_rank.a_t = adapters[2 * branch->adapter];
    b_t = adapters[2 * branch->adapter + 1];
    if (const torch::Tensor own = dropped(rows, layer); !own.is_same(rows)) low_rank.x = own;
  }
  std::vector<torch::Tensor> outputs;
  for (const Piece& piece : pieces_[layer]) {
    if (branch) low_rank.b_t = piece.out == b_t.size(0) ? b_t : b_t.narrow(0, piece.b_first, piece.out);
    outputs.push_back(quantized_linear(rows, low_rank, piece.calls[activation], input.codes));
  }
  const torch::Tensor y = outputs.size() == 1 ? outputs[0] : torch::cat(outputs, 1);
  std::vector<std::int64_t> shape = x.sizes().vec();
  shape.back() = y.size(1);
  return y.view(shape);
}

torch::Tensor SlabLinears::heads(const std::vector<HeadStream>& streams, const torch::Tensor& rope, double epsilon) const {
  // To the contract the table is a constant; a gradient of the positions needs libtorch's own operations.
  if (!rope.requires_grad() && offers_normed_heads(backend_, streams[0].x.scalar_type())) return normed_heads(backend_, streams, rope, epsilon);
  return Linears::heads(streams, rope, epsilon);
}

}  // namespace squareq::training
