#include "squareq/training/modules/shadow_check.hpp"

#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <deque>
#include <nlohmann/json.hpp>

#include "squareq/bounds.hpp"
#include "squareq/slab/writer.hpp"
#include "squareq/text.hpp"
#include "squareq/training/modules/quantized_linear.hpp"
#include "squareq/training/tensor_bridge.hpp"
#include "squareq/training/torch_compat.hpp"

namespace squareq::training {

namespace {

using torch::Tensor;
namespace b = bounds;

constexpr double u = 0x1p-24;

/// The part's tensor in host memory: a view where it lies there, else a copy.
Tensor host_of(const sq_tensor& t) {
  const std::vector<std::int64_t> shape(t.shape, t.shape + t.rank), strides(t.strides, t.strides + t.rank);
  torch::TensorOptions options = torch::TensorOptions().dtype(to_torch_dtype(t.dtype));
  if (t.device.kind == SQ_CUDA) options = options.device(torch::kCUDA, static_cast<c10::DeviceIndex>(t.device.index));
  return torch::from_blob(t.data, shape, strides, options).to(torch::kCPU);
}

Tensor host_of(const Tensor& t) { return t.defined() ? t.detach().to(torch::kCPU) : t; }
Tensor f64(const Tensor& t) { return t.to(torch::kFloat64); }
Tensor like(const Tensor& t) { return t.defined() ? torch::empty(t.sizes(), t.options().device(torch::kCPU).requires_grad(false)) : t; }

double gamma_of(std::int64_t n) { return b::gamma(static_cast<double>(n)); }

/// Any output of dtype t: E + u_t (|value| + E) + d_t.
Tensor rounded_bound(const Tensor& value, const Tensor& error, const Tensor& output) {
  const std::int32_t dtype = to_sq_dtype(output.scalar_type());
  return error + (value.abs() + error) * b::unit_roundoff(dtype) + b::smallest_subnormal(dtype);
}

/// act(v) and act'(v) in F64, from the formulas of spec/40-linear.md.
Tensor activate(std::int32_t activation, const Tensor& v) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: return 0.5 * v * (1 + torch::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    case SQ_ACT_GELU_ERF: return 0.5 * v * torch::erfc(-v / std::sqrt(2.0));
    case SQ_ACT_SILU: return v * torch::sigmoid(v);
    default: return v;
  }
}

Tensor activate_derivative(std::int32_t activation, const Tensor& v) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: {
      const double c = std::sqrt(2 / M_PI);
      const Tensor t = torch::tanh(c * (v + 0.044715 * v * v * v));
      return 0.5 * (1 + t) + 0.5 * v * (1 - t * t) * c * (1 + 3 * 0.044715 * v * v);
    }
    case SQ_ACT_GELU_ERF: return 0.5 * torch::erfc(-v / std::sqrt(2.0)) + v * torch::exp(-v * v / 2) / std::sqrt(2 * M_PI);
    default: {
      const Tensor s = torch::sigmoid(v);
      return s * (1 + v * (1 - s));
    }
  }
}

/// H = X A in F64 and E_H.
struct Branch {
  Tensor x, a, b, h, h_error;  // x [M, K], a [r, K], b [N, r], h [M, r]; A and B as the call uses them
  double c = 0;
  std::int64_t rank = 0;

  Branch(const LowRank& low_rank, const Tensor& layer_x, float scaling)
      : x(f64(low_rank.x.defined() ? host_of(low_rank.x) : layer_x)), c(scaling), rank(low_rank.a_t.size(0)) {
    const torch::Dtype dtype = layer_x.scalar_type();
    a = f64(host_of(low_rank.a_t).to(dtype));
    b = f64(host_of(low_rank.b_t).to(dtype));
    h = x.matmul(a.t());
    const double g = gamma_of(x.size(1)), w = bounds::operand_roundoff(to_sq_dtype(dtype));
    h_error = (g + w * (1 + g)) * x.abs().matmul(a.abs().t());
  }
};

/// Host tensors of one call as the contract takes them. Where they point stays put for as long as this lives.
class Views {
 public:
  /// Null for an undefined tensor.
  const sq_tensor* operator()(const Tensor& t) { return t.defined() ? &tensors_.emplace_back(view_of(t)) : nullptr; }

  /// The branch, or null without one.
  const sq_lora* lora(float scaling, const Tensor& a_t, const Tensor& b_t, const Tensor& own_x) {
    if (!a_t.defined()) return nullptr;
    lora_.scaling = scaling;
    lora_.a_t = (*this)(a_t);
    lora_.b_t = (*this)(b_t);
    lora_.x = (*this)(own_x);
    return &lora_;
  }

 private:
  std::deque<sq_tensor> tensors_;
  sq_lora lora_ = sized<sq_lora>();
};

std::string file_stem(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_'; }, '-');
  return text;
}

void write_tensors(const std::filesystem::path& path, const std::vector<std::pair<std::string, Tensor>>& tensors) {
  std::vector<TensorSpec> specs;
  std::vector<std::pair<std::string, Tensor>> kept;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.defined()) continue;
    kept.emplace_back(name, tensor.detach().to(torch::kCPU).contiguous());
    specs.push_back({name, from_sq_dtype(static_cast<sq_dtype>(to_sq_dtype(tensor.scalar_type()))),
                     std::vector<std::uint64_t>(tensor.sizes().begin(), tensor.sizes().end())});
  }
  SafetensorsWriter writer(path, std::move(specs));
  for (const auto& [name, tensor] : kept)
    if (tensor.numel()) writer.write(name, 0, tensor.data_ptr(), static_cast<std::uint64_t>(tensor.nbytes()));
  writer.commit();
}

Context open_shadow(const ShadowOptions& options, unsigned threads) {
  Implementation implementation = Implementation::load(find_backend(options.backend));
  const auto description = nlohmann::json::parse(implementation.describe());
  if (!description.value("usable", true))
    throw Error(Code::CFG_BACKEND, fmt::format("shadow backend '{}' cannot be used here: {}", printable(options.backend),
                                               printable(description.value("reason", "it says so itself"))));
  if (description.value("device", "cpu") != "cpu")
    throw Error(Code::CFG_VALUE, fmt::format("shadow backend '{}' computes on {}; a shadow computes on the CPU", printable(options.backend),
                                             printable(description.value("device", ""))));
  auto host = sized<sq_host>();
  host.threads = threads;
  host.deterministic = 1;
  return Context(std::move(implementation), host);
}

}  // namespace

/// The layer of one call in host memory, and every input of the call for a dump.
struct Shadow::Layer {
  std::vector<std::pair<std::string, Tensor>> inputs;  ///< as they are dumped
  std::vector<std::pair<std::string, Tensor>> tensors;
  std::vector<sq_part> parts;
  sq_weight weight = sized<sq_weight>();
  sq_weight_ref ref = sized<sq_weight_ref>();
  Tensor w, bias;  ///< q s [N, K] and the bias [N], F64

  Layer(const LinearCall& call, const sq_weight_ref& given) {
    sq_weight lent = sized<sq_weight>();
    if (given.weight) {
      lent = *given.weight;
    } else {
      sq_error e = make_error();
      check(call.backend.stream().lease_weight(call.backend.get(), given.session, given.lease, given.layer, &lent, &e), e);
    }
    weight = lent;
    for (std::uint32_t i = 0; i < lent.part_count; ++i) tensors.emplace_back(lent.parts[i].name, host_of(lent.parts[i].tensor));
    for (std::uint32_t i = 0; i < lent.part_count; ++i) parts.push_back({lent.parts[i].name, view_of(tensors[i].second)});
    weight.parts = parts.data();
    ref.weight = &weight;
    Tensor codes, scale;
    for (const auto& [name, tensor] : tensors) {
      if (name == "qweight") codes = tensor;
      if (name == "scale") scale = tensor;
      if (name == "bias") bias = f64(tensor);
    }
    w = f64(codes.narrow(1, 0, lent.in_features)) * f64(scale).unsqueeze(1);
    inputs = tensors;
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
};

Shadow::Shadow(const ShadowOptions& options, unsigned threads) : options_(options), backend_(open_shadow(options, threads)) {
  std::error_code ignored;
  if (!options_.dump.empty() && !std::filesystem::is_directory(options_.dump, ignored))
    throw Error(Code::IO_MISSING, "shadow dump folder '" + printable_path(options_.dump) + "' does not exist", options_.dump.string());
  summary_.backend = backend_->name;
}

void Shadow::enter(std::string where) {
  const std::lock_guard lock(mutex_);
  where_ = std::move(where);
}

ShadowSummary Shadow::summary() const {
  const std::lock_guard lock(mutex_);
  return summary_;
}

void Shadow::forward(const LinearCall& call, const sq_weight_ref& weight, const Tensor& x, const LowRank& branch,
                     const ForwardTensors& got) {
  const torch::NoGradGuard no_grad;
  const std::lock_guard lock(mutex_);
  Layer layer(call, weight);
  const Tensor host_x = host_of(x), a_t = host_of(branch.a_t), b_t = host_of(branch.b_t), own_x = host_of(branch.x);
  layer.inputs.insert(layer.inputs.end(), {{"x", host_x}, {"a_t", a_t}, {"b_t", b_t}, {"x_lora", own_x}});

  const Tensor y = like(got.y), preactivation = like(got.preactivation), h = like(got.h);
  auto args = sized<sq_linear_forward_args>();
  args.activation = call.activation;
  args.weight = &layer.ref;
  Views view;
  args.x = view(host_x);
  args.y = view(y);
  args.preactivation = view(preactivation);
  args.h = view(h);
  args.lora = view.lora(call.scaling, a_t, b_t, own_x);
  squareq::call(backend_.linear().linear_forward, backend_, args);

  // The rows "base sum of Y" to "activation of v" of the table in spec/35-numerics.md.
  const Tensor exact_x = f64(host_x), base = exact_x.matmul(layer.w.t());
  Tensor value = base;
  Tensor error = gamma_of(exact_x.size(1) + 2) * exact_x.abs().matmul(layer.w.abs().t()) + 3 * u * base.abs();
  std::vector<Output> outputs;
  if (a_t.defined()) {
    const Branch low(branch, host_x, call.scaling);
    const Tensor share = low.c * low.h.matmul(low.b.t());
    const Tensor spread = low.h_error + gamma_of(low.rank + 2) * (low.h.abs() + low.h_error);
    error = error + std::fabs(low.c) * spread.matmul(low.b.abs().t()) + 3 * u * share.abs();
    value = value + share;
    if (h.defined()) outputs.push_back({"h", got.h, h, rounded_bound(low.h, low.h_error, h)});
  }
  if (layer.bias.defined()) {
    value = value + layer.bias;
    error = error + 3 * u * layer.bias.abs();
  }
  if (preactivation.defined())
    outputs.push_back({"preactivation", got.preactivation, preactivation, rounded_bound(value, error, preactivation)});
  if (call.activation == SQ_ACT_NONE)
    outputs.push_back({"y", got.y, y, rounded_bound(value, error, y)});
  else
    outputs.push_back(
        {"y", got.y, y, rounded_bound(activate(call.activation, value), b::activation_slope * error + 8 * u * value.abs(), y)});
  judge("forward", call, layer, outputs);
}

void Shadow::backward(const LinearCall& call, const sq_weight_ref& weight, const Tensor& x, const LowRank& branch,
                      const BackwardTensors& got) {
  const torch::NoGradGuard no_grad;
  const std::lock_guard lock(mutex_);
  Layer layer(call, weight);
  const Tensor dy = host_of(got.dy), preactivation = host_of(got.preactivation), h = host_of(got.h), host_x = host_of(x);
  const Tensor a_t = host_of(branch.a_t), b_t = host_of(branch.b_t), own_x = host_of(branch.x);
  layer.inputs.insert(
      layer.inputs.end(),
      {{"dy", dy}, {"preactivation", preactivation}, {"x", host_x}, {"h", h}, {"a_t", a_t}, {"b_t", b_t}, {"x_lora", own_x}});

  const Tensor dx = like(got.dx), da_t = like(got.da_t), db_t = like(got.db_t), dx_lora = like(got.dx_lora);
  auto args = sized<sq_linear_backward_args>();
  args.activation = call.activation;
  args.weight = &layer.ref;
  Views view;
  args.dy = view(dy);
  args.preactivation = view(preactivation);
  args.x = view(host_x);
  args.dx = view(dx);
  args.lora = view.lora(call.scaling, a_t, b_t, own_x);
  if (args.lora) {
    args.h = view(h);
    args.da_t = view(da_t);
    args.db_t = view(db_t);
    args.dx_lora = view(dx_lora);
  }
  squareq::call(backend_.linear().linear_backward, backend_, args);

  // The rows "G" to "dB" of the table in spec/35-numerics.md.
  const std::int32_t dtype = to_sq_dtype(host_x.scalar_type());
  const double operand = b::operand_roundoff(dtype);
  Tensor g = f64(dy), g_error = torch::zeros_like(g);
  if (call.activation != SQ_ACT_NONE) {
    const Tensor exact_dy = g;
    g = exact_dy * activate_derivative(call.activation, f64(preactivation));
    g_error = 64 * u * exact_dy.abs() + (u + operand) * g.abs();
  }
  const std::int64_t n = g.size(1), m = g.size(0);
  const Tensor g_size = g.abs() + g_error;
  Tensor dx_value, dx_error;
  if (dx.defined()) {
    dx_value = g.matmul(layer.w);
    dx_error = (g_error + (gamma_of(n + 2) + operand) * g_size).matmul(layer.w.abs());
  }
  std::vector<Output> outputs;
  if (a_t.defined()) {
    const Branch low(branch, host_x, call.scaling);
    const double size = std::fabs(low.c);
    const Tensor d = g.matmul(low.b), d_error = (g_error + (gamma_of(n) + operand) * g_size).matmul(low.b.abs());
    const Tensor d_size = d.abs() + d_error;
    const Tensor share = low.c * d.matmul(low.a), share_error = size * (d_error + gamma_of(low.rank + 2) * d_size).matmul(low.a.abs());
    if (dx_lora.defined()) outputs.push_back({"dx_lora", got.dx_lora, dx_lora, rounded_bound(share, share_error, dx_lora)});
    if (dx.defined() && !own_x.defined()) {  // with an input of its own the branch's share stands apart
      dx_error = dx_error + share_error + 2 * u * (dx_value.abs() + share.abs());
      dx_value = dx_value + share;
    }
    if (da_t.defined())
      outputs.push_back(
          {"da_t", got.da_t, da_t,
           rounded_bound(low.c * d.t().matmul(low.x), size * (d_error + gamma_of(m + 2) * d_size).t().matmul(low.x.abs()), da_t)});
    if (db_t.defined()) {
      const Tensor h_size = low.h.abs() + low.h_error;
      const Tensor error = g_size.t().matmul(low.h_error) + g_error.t().matmul(low.h.abs()) + gamma_of(m + 2) * g_size.t().matmul(h_size);
      outputs.push_back({"db_t", got.db_t, db_t, rounded_bound(low.c * g.t().matmul(low.h), size * error, db_t)});
    }
  }
  if (dx.defined()) outputs.push_back({"dx", got.dx, dx, rounded_bound(dx_value, dx_error, dx)});
  judge("backward", call, layer, outputs);
}

void Shadow::judge(const char* pass, const LinearCall& call, const Layer& layer, const std::vector<Output>& outputs) {
  ++summary_.calls;
  for (const Output& o : outputs) {
    if (o.again.numel() == 0) continue;
    const Tensor got = f64(host_of(o.got)), again = f64(o.again), allowed = 2 * o.bound;
    const Tensor agree = (got == again).logical_or(got.isnan().logical_and(again.isnan()));
    // NaN against a number, or infinity against anything else, has an endless margin.
    const Tensor ratio = ((got - again).abs() / allowed).nan_to_num(INFINITY, INFINITY, INFINITY);
    const Tensor margin = torch::where(agree, torch::zeros_like(ratio), ratio).flatten();
    summary_.elements += static_cast<std::uint64_t>(margin.numel());
    const std::int64_t worst = margin.argmax().item<std::int64_t>();
    const double largest = margin[worst].item<double>();
    if (summary_.layer.empty() || largest > summary_.margin) {
      summary_.margin = largest;
      summary_.where = where_;
      summary_.layer = call.name;
      summary_.tensor = fmt::format("{} {}", pass, o.name);
    }
    if (!(largest > 1)) continue;
    const std::int64_t columns = o.again.size(1), row = worst / columns, column = worst % columns;
    std::string message =
        fmt::format("{}: {} of layer '{}': {}[{}, {}] is {:.9g} on {} and {:.9g} on {}; they may differ by {:.3g} (margin {:.3g})", where_,
                    pass, call.name, o.name, row, column, got[row][column].item<double>(), call.backend->name,
                    again[row][column].item<double>(), backend_->name, allowed[row][column].item<double>(), largest);
    if (!options_.dump.empty()) {
      const std::string stem = file_stem(fmt::format("{}.{}.{}", where_, call.name, pass));
      dump(stem, layer, outputs);
      const std::string place = printable_path(options_.dump / stem);
      message += fmt::format("; inputs and outputs: {0}.inputs.safetensors, {0}.backend.safetensors, {0}.shadow.safetensors", place);
    }
    if (!options_.repro.empty()) message += "; repro: " + options_.repro;
    throw Error(Code::NUM_BOUND, message, {}, call.name, o.name);
  }
}

void Shadow::dump(const std::string& stem, const Layer& layer, const std::vector<Output>& outputs) const {
  std::vector<std::pair<std::string, Tensor>> got, again;
  for (const Output& o : outputs) {
    got.emplace_back(o.name, o.got);
    again.emplace_back(o.name, o.again);
  }
  write_tensors(options_.dump / (stem + ".inputs.safetensors"), layer.inputs);
  write_tensors(options_.dump / (stem + ".backend.safetensors"), got);
  write_tensors(options_.dump / (stem + ".shadow.safetensors"), again);
}

}  // namespace squareq::training
