#include <fmt/format.h>

#include "squareq/error.hpp"
#include "squareq/text.hpp"
#include "squareq/training/model.hpp"
#include "squareq/training/tensor_bridge.hpp"

namespace squareq::training {

namespace {

void require_master(const torch::Tensor& t, const std::string& layer, std::string_view which) {
  if (t.dim() != 2)
    throw Error(Code::LR_SHAPE, fmt::format("{} of layer '{}' has shape {}, expected two dimensions", which, layer, shape_of(t)), {},
                layer);
  if (t.scalar_type() != torch::kFloat32)
    throw Error(Code::LR_SHAPE,
                fmt::format("{} of layer '{}' is {}, adapters are F32 masters", which, layer, c10::toString(t.scalar_type())), {}, layer);
}

}  // namespace

void AdapterSet::add(Adapter adapter) {
  const std::string layer = printable(adapter.layer);
  if (!adapter.a_t.defined() || !adapter.b_t.defined())
    throw Error(Code::LR_PAIR,
                fmt::format("adapter of layer '{}' lacks its {} matrix", layer, adapter.a_t.defined() ? "up (B)" : "down (A)"), {}, layer);
  require_master(adapter.a_t, layer, "A^T");
  require_master(adapter.b_t, layer, "B^T");
  if (adapter.a_t.size(0) != adapter.b_t.size(1) || adapter.a_t.size(0) == 0)
    throw Error(Code::LR_SHAPE,
                fmt::format("layer '{}': A^T {} and B^T {} do not share a rank", layer, shape_of(adapter.a_t), shape_of(adapter.b_t)), {},
                layer);
  const auto [at, added] = adapters_.try_emplace(adapter.layer, adapter);
  if (!added) throw Error(Code::LR_KEY, fmt::format("layer '{}' has an adapter already", layer), {}, layer);
}

const Adapter* AdapterSet::find(std::string_view layer) const {
  const auto at = adapters_.find(layer);
  return at == adapters_.end() ? nullptr : &at->second;
}

std::vector<torch::Tensor> AdapterSet::parameters() const {
  std::vector<torch::Tensor> list;
  list.reserve(2 * adapters_.size());
  for (const auto& [layer, adapter] : adapters_) {
    list.push_back(adapter.a_t);
    list.push_back(adapter.b_t);
  }
  return list;
}

void AdapterSet::require_grad(bool on) {
  for (auto& [layer, adapter] : adapters_) {
    adapter.a_t.requires_grad_(on);
    adapter.b_t.requires_grad_(on);
  }
}

PassScope::~PassScope() {
  if (model_) model_->end_pass(true);
}

void PassScope::finish() {
  Transformer* const model = model_;
  model_ = nullptr;
  model->end_pass(false);
}

torch::Dtype parse_dtype(std::string_view name) {
  if (name == "f32") return torch::kFloat32;
  if (name == "bf16") return torch::kBFloat16;
  if (name == "f16") return torch::kFloat16;
  if (name == "f64") return torch::kFloat64;
  throw Error(Code::CFG_VALUE, fmt::format("dtype '{}' is none of f32, bf16, f16, f64", printable(name)));
}

}  // namespace squareq::training
