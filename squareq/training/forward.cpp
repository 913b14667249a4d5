#include "squareq/training/forward.hpp"

#include <fmt/format.h>
#include <torch/torch.h>

#include <map>

#include "squareq/error.hpp"
#include "squareq/slab/file.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/slab/writer.hpp"
#include "squareq/text.hpp"
#include "squareq/training/forward_lora.hpp"
#include "squareq/training/model.hpp"
#include "squareq/training/modules/shadow_check.hpp"
#include "squareq/training/models/source.hpp"
#include "squareq/training/tensor_bridge.hpp"

namespace squareq::training {

namespace {

using torch::Tensor;

/// The model's arguments in the class's order, and where each goes.
struct Argument {
  const char* name;
  Tensor ForwardInputs::*member;
};
constexpr Argument kArguments[] = {
    {"hidden_states", &ForwardInputs::hidden_states},
    {"encoder_hidden_states", &ForwardInputs::encoder_hidden_states},
    {"pooled_projections", &ForwardInputs::pooled_projections},
    {"timestep", &ForwardInputs::timestep},
    {"guidance", &ForwardInputs::guidance},
    {"img_ids", &ForwardInputs::img_ids},
    {"txt_ids", &ForwardInputs::txt_ids},
};
constexpr const char* kCotangent = "cotangent";

/// A tensor of the input file in F32 (F64 for an F64 run). Integers are taken and have no gradient.
Tensor read_input(const SafetensorsFile& file, const TensorRecord& record, torch::Dtype dtype) {
  const std::string path = file.path().string(), name = printable(record.name);
  const auto sq = to_sq_dtype(record.dtype);
  if (!sq || *sq == SQ_I8 || *sq == SQ_U8)
    throw Error(Code::DS_SHAPE,
                fmt::format("input '{}' is {}, expected F32, F16, BF16, F64, I32 or I64", name, squareq::dtype_name(record.dtype)), path,
                {}, name);
  Tensor tensor = torch::empty(std::vector<std::int64_t>(record.shape.begin(), record.shape.end()), to_torch_dtype(*sq));
  if (tensor.numel()) file.read(record, 0, tensor.data_ptr(), record.bytes());
  const bool integer = !tensor.is_floating_point();
  if (!integer) {
    const auto bad = tensor.isfinite().logical_not().sum().item<std::int64_t>();
    if (bad)
      throw Error(Code::NUM_NONFINITE, fmt::format("input '{}' holds {} values that are NaN or infinite", name, bad), path, {}, name);
  }
  return tensor.to(dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32);
}

struct Inputs {
  ForwardInputs model;
  Tensor cotangent;
  std::vector<std::pair<std::string, Tensor>> leaves;  ///< floating inputs, by name
  std::vector<std::string> ignored;
};

Inputs read_inputs(const ForwardRequest& request, torch::Dtype dtype) {
  const SafetensorsFile file = SafetensorsFile::open(request.inputs);
  Inputs inputs;
  for (const TensorRecord& record : file.header().tensors) {
    const auto* argument =
        std::find_if(std::begin(kArguments), std::end(kArguments), [&](const Argument& a) { return record.name == a.name; });
    if (record.name == kCotangent) {
      if (request.grad) inputs.cotangent = read_input(file, record, dtype);
    } else if (argument == std::end(kArguments)) {
      inputs.ignored.push_back(printable(record.name));
    } else {
      inputs.model.*argument->member = read_input(file, record, dtype);
      const auto sq = to_sq_dtype(record.dtype);
      if (*sq != SQ_I32 && *sq != SQ_I64) inputs.leaves.emplace_back(record.name, inputs.model.*argument->member);
    }
  }
  if (request.grad && !inputs.cotangent.defined())
    throw Error(Code::DS_TENSOR, "input 'cotangent' is missing: gradients need it", request.inputs.string(), {}, kCotangent);
  for (auto& [name, leaf] : inputs.leaves) leaf.requires_grad_(request.grad);
  // Diffusers also takes ids with a (deprecated) batch dimension: the first entry counts.
  for (Tensor* ids : {&inputs.model.img_ids, &inputs.model.txt_ids})
    if (ids->defined() && ids->dim() == 3 && ids->size(0) > 0) *ids = ids->select(0, 0);
  return inputs;
}

/// Complaints of the model about its inputs are complaints about the input file here.
Tensor forward_of(Transformer& model, const ForwardInputs& inputs, const std::string& file) {
  try {
    return model.forward(inputs);
  } catch (const Error& e) {
    Problem p = e.problem();
    if (p.tensor.empty() || !p.file.empty()) throw;
    if (p.code == Code::MD_TENSOR) p.code = Code::DS_TENSOR;
    if (p.code == Code::CALL_SHAPE) p.code = Code::DS_SHAPE;
    p.file = file;
    throw Error(p);
  }
}

using Outputs = std::map<std::string, Tensor>;

Outputs compute(Transformer& model, const ForwardRequest& request, const Inputs& inputs, const LoraInFile& lora) {
  PassScope pass(model, request.grad ? Pass::train : Pass::forward);
  const Tensor sample = forward_of(model, inputs.model, request.inputs.string());
  Outputs outputs{{"sample", sample.detach()}};
  if (request.grad) {
    if (inputs.cotangent.sizes() != sample.sizes())
      throw Error(Code::DS_SHAPE,
                  fmt::format("input 'cotangent' has shape {}, sample has {}", shape_of(inputs.cotangent), shape_of(sample)),
                  request.inputs.string(), {}, kCotangent);
    std::vector<std::string> names;
    std::vector<Tensor> leaves;
    const auto want = [&](const std::string& name, const Tensor& leaf) {
      names.push_back("grad." + name);
      leaves.push_back(leaf);
    };
    for (const auto& [name, leaf] : inputs.leaves) want(name, leaf);
    for (const auto& [key, leaf] : lora.tensors) want(key, leaf);
    const auto grads =
        torch::autograd::grad({sample}, leaves, {inputs.cotangent.to(sample.device(), sample.scalar_type())}, false, false, true);
    // An input that the output does not depend on (ids of a model without blocks) has gradient zero.
    for (std::size_t i = 0; i < leaves.size(); ++i) outputs[names[i]] = grads[i].defined() ? grads[i] : torch::zeros_like(leaves[i]);
  }
  pass.finish();
  return outputs;
}

void write(const std::filesystem::path& path, Outputs& outputs) {
  std::vector<TensorSpec> specs;
  for (auto& [name, tensor] : outputs) {
    tensor = tensor.detach().to(torch::kCPU).contiguous();
    specs.push_back({name, from_sq_dtype(static_cast<sq_dtype>(to_sq_dtype(tensor.scalar_type()))),
                     std::vector<std::uint64_t>(tensor.sizes().begin(), tensor.sizes().end())});
  }
  SafetensorsWriter writer(path, std::move(specs));
  for (const auto& [name, tensor] : outputs)
    if (tensor.numel()) writer.write(name, 0, tensor.data_ptr(), static_cast<std::uint64_t>(tensor.nbytes()));
  writer.commit();
}

}  // namespace

ForwardReport run_forward(const ForwardRequest& request) {
  const torch::Dtype dtype = parse_dtype(request.dtype);
  Inputs inputs = read_inputs(request, dtype);
  OpenOptions options;
  options.source = request.model;
  options.base = request.base;
  options.config = request.config;
  options.backend = request.backend;
  options.budget = request.budget;
  options.resident_blocks = request.resident_blocks;
  options.dtype = dtype;
  options.threads = request.threads;
  options.progress = request.progress;
  if (request.shadow) {
    if (!is_slab(request.model))
      throw Error(Code::CFG_VALUE, "--shadow compares backends on a slab; '" + printable(request.model.string()) + "' is a float checkpoint");
    options.shadow = std::make_shared<Shadow>(*request.shadow, request.threads);
  }
  const std::unique_ptr<Transformer> model = Transformer::open(options);

  LoraInFile lora;
  if (request.lora) {
    lora = read_lora_as_filed(*request.lora, *model);
    lora.adapters.require_grad(request.grad);
    model->set_adapters(&lora.adapters);
  }
  const torch::Device device = model->device();
  for (const Argument& argument : kArguments)
    if (Tensor& tensor = inputs.model.*argument.member; tensor.defined()) tensor = tensor.to(device);

  if (options.shadow) options.shadow->enter(request.grad ? "the pass (forward and backward)" : "the pass (forward)");
  Outputs outputs = compute(*model, request, inputs, lora);
  write(request.output, outputs);

  const sq_stream_stats stats = model->stream_stats();
  ForwardReport report{model->config().architecture, model->backend_name(),   request.dtype,     {},
                       std::move(inputs.ignored),    stats.peak_device_bytes, stats.loaded_bytes, {}};
  if (options.shadow) report.shadow = options.shadow->summary();
  for (const auto& [name, tensor] : outputs) report.outputs.push_back({name, tensor.sizes().vec()});
  return report;
}

}  // namespace squareq::training
