#include "squareq/training/models/linears.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include "squareq/error.hpp"
#include "squareq/text.hpp"
#include "squareq/training/tensor_bridge.hpp"
#include "squareq/training/torch_compat.hpp"

namespace squareq::training {

namespace {

/// Which layers an adapter serves, and with which rows of its B.
struct Match {
  std::size_t layer;
  std::vector<Rows> b_rows;
};

std::vector<Match> match(const Adapter& adapter, const std::vector<LinearInfo>& list,
                         const std::map<std::string, std::size_t, std::less<>>& index, const std::map<std::string, Placement>& native,
                         std::int64_t& rows) {
  if (const auto at = index.find(adapter.layer); at != index.end()) {
    rows = list[at->second].out;
    return {{at->second, {{0, rows}}}};
  }
  std::vector<Match> found;
  for (const auto& [name, place] : native) {
    if (place.layer != adapter.layer) continue;
    found.push_back({index.at(name), place.rows});
    rows = place.total_rows;
  }
  if (found.empty())
    throw Error(Code::LR_KEY, fmt::format("adapter layer '{}' is not a linear layer of this model", printable(adapter.layer)), {},
                printable(adapter.layer));
  return found;
}

void require_shapes(const Adapter& adapter, std::int64_t in, std::int64_t out) {
  const std::string layer = printable(adapter.layer);
  if (adapter.a_t.size(1) != in)
    throw Error(Code::LR_SHAPE,
                fmt::format("A^T of layer '{}' has shape {}, the layer needs [{}, {}]", layer, shape_of(adapter.a_t), adapter.rank(), in),
                {}, layer);
  if (adapter.b_t.size(0) != out)
    throw Error(Code::LR_SHAPE,
                fmt::format("B^T of layer '{}' has shape {}, the layer needs [{}, {}]", layer, shape_of(adapter.b_t), out, adapter.rank()),
                {}, layer);
}

}  // namespace

Linears::Linears(std::vector<LinearInfo> list) : list_(std::move(list)), branches_(list_.size()) {
  for (std::size_t i = 0; i < list_.size(); ++i) index_.emplace(list_[i].name, i);
}

std::size_t Linears::index(std::string_view name) const {
  const auto at = index_.find(name);
  if (at == index_.end())
    throw Error(Code::MD_LAYER, fmt::format("the model has no linear layer '{}'", printable(name)), {}, printable(name));
  return at->second;
}

void Linears::bind(const AdapterSet* set, const std::map<std::string, Placement>& native) {
  std::vector<std::unique_ptr<Branch>> branches(list_.size());
  std::vector<std::string> owner(list_.size());
  std::map<std::int64_t, BlockAdapters> by_block;
  if (set) {
    for (const auto& [name, adapter] : set->all()) {
      std::int64_t rows = 0;
      const std::vector<Match> matches = match(adapter, list_, index_, native, rows);
      require_shapes(adapter, list_[matches.front().layer].in, rows);
      BlockAdapters& block = by_block[list_[matches.front().layer].block];
      for (const Match& m : matches) {
        if (branches[m.layer])
          throw Error(Code::LR_KEY,
                      fmt::format("layer '{}' is covered by two adapters, '{}' and '{}'", list_[m.layer].name, printable(owner[m.layer]),
                                  printable(name)),
                      {}, list_[m.layer].name);
        branches[m.layer] = std::make_unique<Branch>(Branch{block.size(), static_cast<float>(adapter.scaling()), m.b_rows});
        owner[m.layer] = name;
      }
      block.push_back(&adapter);
    }
  }
  branches_ = std::move(branches);
  by_block_ = std::move(by_block);
  set_ = set;
}

const BlockAdapters& Linears::adapters_of(std::int64_t block) const {
  static const BlockAdapters none;
  const auto at = by_block_.find(block);
  return at == by_block_.end() ? none : at->second;
}

torch::Tensor Linears::dropped(const torch::Tensor& x, std::size_t layer) const {
  if (!set_ || set_->dropout <= 0 || !branches_[layer]) return x;
  const Adapter& adapter = *adapters_of(list_[layer].block)[branches_[layer]->adapter];
  at::Generator generator =
      at::detail::createCPUGenerator(XXH3_64bits_withSeed(adapter.layer.data(), adapter.layer.size(), set_->dropout_seed));
  const double keep = 1.0 - set_->dropout;
  const torch::Tensor mask = torch::rand(x.sizes(), generator, torch::kFloat32).lt(keep).to(x.device(), x.scalar_type());
  return x * mask.mul_(1.0 / keep);
}

torch::Tensor Linears::heads(const std::vector<HeadStream>& streams, const torch::Tensor& rope, double epsilon) const {
  std::vector<torch::Tensor> normed;
  for (const HeadStream& s : streams) normed.push_back(rms_norm(s.x.unflatten(-1, {-1, s.weight.size(0)}), s.weight, epsilon));
  const torch::Tensor joined = normed.size() == 1 ? normed[0] : torch::cat(normed, 1);
  const torch::Tensor pairs = torch::view_as_complex(joined.to(torch::kFloat32).unflatten(-1, {-1, 2}));
  return torch::view_as_real(pairs * rope.unsqueeze(1)).flatten(-2).to(joined.scalar_type());
}

torch::Tensor Linears::apply_float(const FloatWeight& weight, std::size_t layer, const torch::Tensor& x, std::int32_t activation,
                                   AdapterTensors adapters) const {
  torch::Tensor y = at::linear(x, weight.w, weight.bias);
  if (const Branch* branch = branch_of(layer)) {
    const torch::Tensor a = adapters[2 * branch->adapter].to(x.scalar_type());
    const torch::Tensor b_t = adapters[2 * branch->adapter + 1].to(x.scalar_type());
    std::vector<torch::Tensor> rows;
    for (const Rows& r : branch->b_rows) rows.push_back(b_t.narrow(0, r.first, r.rows));
    const torch::Tensor b = rows.size() == 1 ? rows[0] : torch::cat(rows);
    y = y + at::linear(at::linear(dropped(x, layer), a), b) * branch->scaling;
  }
  switch (activation) {
    case SQ_ACT_NONE: return y;
    case SQ_ACT_GELU_TANH: return torch::gelu(y, "tanh");
    case SQ_ACT_GELU_ERF: return torch::gelu(y);
    case SQ_ACT_SILU: return torch::silu(y);
    default: throw Error(Code::CALL_VALUE, fmt::format("activation {} is unknown", activation));
  }
}

}  // namespace squareq::training
