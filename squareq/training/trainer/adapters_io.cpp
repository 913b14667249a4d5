// Adapters between files, memory and the model.
#include <torch/torch.h>

#include "squareq/error.hpp"
#include "squareq/training/trainer/trainer.hpp"

namespace squareq::training {

namespace {

torch::Tensor to_tensor(const std::vector<float>& values, std::int64_t rows, std::int64_t columns, torch::Device device) {
  const torch::Tensor host = torch::from_blob(const_cast<float*>(values.data()), {rows, columns}, torch::kFloat32);
  return host.clone().to(device);
}

std::vector<float> to_vector(const torch::Tensor& tensor) {
  const torch::Tensor host = tensor.detach().to(torch::kCPU, torch::kFloat32).contiguous();
  return {host.data_ptr<float>(), host.data_ptr<float>() + host.numel()};
}

}  // namespace

AdapterSet to_adapters(const std::vector<LoraLayer>& layers, torch::Device device) {
  AdapterSet set;
  for (const LoraLayer& l : layers)
    set.add({l.layer, l.alpha, to_tensor(l.down, l.rank, l.in, device), to_tensor(l.up, l.out, l.rank, device)});
  return set;
}

std::vector<LoraLayer> to_layers(const AdapterSet& adapters) {
  std::vector<LoraLayer> layers;
  for (const auto& [name, a] : adapters.all())
    layers.push_back({name, a.alpha, a.rank(), a.a_t.size(1), a.b_t.size(0), to_vector(a.a_t), to_vector(a.b_t)});
  return layers;
}

LoraNames lora_names(const Transformer& model) { return LoraNames(model.architecture()); }

}  // namespace squareq::training
