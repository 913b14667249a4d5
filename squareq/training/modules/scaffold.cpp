#include "squareq/training/modules/scaffold.hpp"

#include <fmt/format.h>
#include <torch/torch.h>

#include <map>
#include <set>

#include "squareq/error.hpp"
#include "squareq/slab/digest.hpp"
#include "squareq/text.hpp"
#include "squareq/training/tensor_bridge.hpp"

namespace squareq::training {

namespace {

using torch::nn::Module;

[[noreturn]] void refuse(const std::string& layer, const std::string& what) {
  const std::string name = printable(layer);
  throw Error(Code::MD_LAYER, fmt::format("layer '{}' {}", name, what), {}, name);
}

std::string spec_text(const LinearSpec& s) { return fmt::format("[{}, {}] {} bias", s.out, s.in, s.bias ? "with" : "without"); }

/// Modules by path.
std::map<std::string, std::shared_ptr<Module>> paths_of(Module& root) {
  std::map<std::string, std::shared_ptr<Module>> paths;
  for (const auto& item : root.named_modules("", false)) paths.emplace(item.key(), item.value());
  return paths;
}

std::map<std::string, QuantLinear*> quantized_of(Module& root) {
  std::map<std::string, QuantLinear*> found;
  for (const auto& [path, module] : paths_of(root))
    if (auto* q = dynamic_cast<QuantLinear*>(module.get())) found.emplace(path, q);
  return found;
}

/// The Linear that a module is, QuantLinear excluded.
std::optional<LinearSpec> linear_of(const std::string& path, const Module& module) {
  if (const auto* shape = dynamic_cast<const LinearShape*>(&module))
    return LinearSpec{path, shape->spec.in, shape->spec.out, shape->spec.bias};
  if (const auto* linear = dynamic_cast<const torch::nn::LinearImpl*>(&module))
    return LinearSpec{path, linear->weight.size(1), linear->weight.size(0), linear->bias.defined()};
  return std::nullopt;
}

void require_same(const LinearSpec& wanted, const LinearSpec& found, const char* whose) {
  if (wanted.in != found.in || wanted.out != found.out || wanted.bias != found.bias)
    refuse(wanted.name, fmt::format("is {}, the module is {}{}", spec_text(wanted), spec_text(found), whose));
}

struct Parts {
  torch::Tensor qweight, scale, zero_point, bias;
};

torch::Tensor read_part(const Slab& slab, const std::string& layer, const TensorRecord* record) {
  if (!record) return {};
  torch::Tensor tensor =
      torch::empty(std::vector<std::int64_t>(record->shape.begin(), record->shape.end()), to_torch_dtype(*to_sq_dtype(record->dtype)));
  slab.file().read(*record, 0, tensor.data_ptr(), record->bytes());
  const auto expected = slab.expected_digest(record->name);
  if (const std::uint64_t found = xxh3(tensor.data_ptr(), record->bytes()); expected && found != *expected)
    throw Error(Code::DT_CHECKSUM,
                fmt::format("tensor '{}' has checksum {}, the companion says {}", record->name, digest_hex(found), digest_hex(*expected)),
                slab.paths().slab.string(), layer, record->name);
  return tensor;
}

}  // namespace

std::vector<std::string> scaffold(Module& root, const std::vector<LinearSpec>& layers, const std::optional<LoraSpec>& lora) {
  const auto paths = paths_of(root);
  std::set<std::string> seen;
  std::vector<const LinearSpec*> replaced;
  for (const LinearSpec& layer : layers) {
    if (!seen.insert(layer.name).second) refuse(layer.name, "is listed twice");
    const auto at = paths.find(layer.name);
    if (at == paths.end()) refuse(layer.name, "matches no module of the model");
    if (const auto* quantized = dynamic_cast<const QuantLinear*>(at->second.get())) {
      require_same(layer, quantized->spec(), " (quantized already)");
      continue;
    }
    const auto linear = linear_of(layer.name, *at->second);
    if (!linear) refuse(layer.name, fmt::format("is a Linear in the slab, the module is a {}", at->second->name()));
    require_same(layer, *linear, "");
    replaced.push_back(&layer);
  }
  std::vector<std::string> names;
  for (const LinearSpec* layer : replaced) {
    const std::size_t dot = layer->name.rfind('.');
    Module& parent = dot == std::string::npos ? root : *paths.at(layer->name.substr(0, dot));
    parent.replace_module(layer->name.substr(dot + 1), std::make_shared<QuantLinear>(*layer, lora));
    names.push_back(layer->name);
  }
  freeze(root);
  return names;
}

std::vector<LinearSpec> layers_of(const Slab& slab) {
  std::vector<LinearSpec> layers;
  for (const ManifestLayer& m : slab.manifest().layers)
    layers.push_back(
        {m.canonical_name, static_cast<std::int64_t>(m.orig_shape[1]), static_cast<std::int64_t>(m.orig_shape[0]), m.bias_key.has_value()});
  return layers;
}

std::size_t load_slab(Module& root, const Slab& slab) {
  const auto modules = quantized_of(root);
  const std::vector<LinearSpec> layers = layers_of(slab);
  std::vector<std::pair<QuantLinear*, Parts>> staged;
  for (std::size_t i = 0; i < slab.layer_count(); ++i) {
    const std::string& name = slab.layer(i).canonical_name;
    const auto at = modules.find(name);
    if (at == modules.end()) refuse(name, "of the slab matches no quantized module of the model");
    require_same(layers[i], at->second->spec(), "");
    const LayerTensors& t = slab.tensors(i);
    staged.emplace_back(at->second, Parts{read_part(slab, name, t.qweight), read_part(slab, name, t.scale),
                                          read_part(slab, name, t.zero_point), read_part(slab, name, t.bias)});
  }
  for (const auto& [name, module] : modules)
    if (!slab.find_layer(name)) refuse(name, "of the model is not in the slab");
  for (const auto& [module, parts] : staged) module->set_quant_state(parts.qweight, parts.scale, parts.zero_point, parts.bias);
  return staged.size();
}

void freeze(Module& root) {
  for (torch::Tensor& parameter : root.parameters()) parameter.requires_grad_(false);
  for (const torch::Tensor& parameter : trainable_parameters(root)) parameter.requires_grad_(true);
}

std::vector<torch::Tensor> trainable_parameters(Module& root) {
  std::vector<torch::Tensor> list;
  for (const auto& [path, module] : quantized_of(root))
    if (module->lora()) list.insert(list.end(), {module->lora_a(), module->lora_b()});
  return list;
}

}  // namespace squareq::training
