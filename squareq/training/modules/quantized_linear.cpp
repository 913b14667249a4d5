#include "squareq/training/modules/quantized_linear.hpp"

#include <optional>

#include "squareq/error.hpp"
#include "squareq/training/modules/shadow_check.hpp"
#include "squareq/training/tensor_bridge.hpp"
#include "squareq/training/torch_compat.hpp"

namespace squareq::training {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct ForwardResult {
  torch::Tensor y, preactivation, h;  // the last two only where backward will want them
};

ForwardResult run_forward(const LinearCall& call, const torch::Tensor& x, const LowRank& branch, const TokenCodes& codes, bool keep) {
  ForwardResult result;
  result.y = torch::empty({x.size(0), call.out_features}, x.options());
  if (x.size(0) == 0) return result;
  BoundWeight bound;
  call.weight->bind(bound);
  auto args = sized<sq_linear_forward_args>();
  args.activation = call.activation;
  args.compute = call.compute;
  args.stream = stream_of(x.device());
  args.weight = &bound.ref;
  const sq_tensor x_view = view_of(x), y_view = view_of(result.y);
  std::optional<TokenCodesView> quantized;
  if (codes.defined()) args.xq = &quantized.emplace(codes).activation;
  else args.x = &x_view;
  args.y = &y_view;
  sq_tensor preactivation{}, h{};
  if (keep && call.activation != SQ_ACT_NONE) {
    result.preactivation = torch::empty_like(result.y);
    preactivation = view_of(result.preactivation);
    args.preactivation = &preactivation;
  }
  const auto compute = [&] {
    squareq::call(call.backend.linear().linear_forward, call.backend, args);
    if (call.shadow) call.shadow->forward(call, bound.ref, x, branch, {result.y, result.preactivation, result.h});
  };
  if (!branch.a_t.defined()) {
    compute();
    return result;
  }
  const LoraView lora(call.scaling, branch.a_t, branch.b_t, codes.defined() && !branch.x.defined() ? x : branch.x);  // codes are the base's input alone
  args.lora = &lora.lora;
  if (keep) {
    result.h = torch::empty({x.size(0), branch.a_t.size(0)}, x.options().dtype(torch::kFloat32));
    h = view_of(result.h);
    args.h = &h;
  }
  compute();
  return result;
}

/// Keeps a LinearCall alive inside an autograd node.
struct CallHolder : torch::CustomClassHolder {
  std::shared_ptr<const LinearCall> call;
};

// Inputs: {x} or {x, a_t, b_t} or {x, a_t, b_t, branch x}.
struct QuantizedLinearFunction : torch::autograd::Function<QuantizedLinearFunction> {
  static torch::Tensor forward(AutogradContext* ctx, at::TensorList inputs, std::shared_ptr<const LinearCall> call, const TokenCodes& codes) {
    LowRank branch;
    if (inputs.size() > 1) branch = {inputs[1], inputs[2], inputs.size() > 3 ? inputs[3] : torch::Tensor()};
    ForwardResult result = run_forward(*call, inputs[0], branch, codes, true);
    variable_list saved(inputs.begin(), inputs.end());
    if (result.preactivation.defined()) saved.push_back(result.preactivation);
    if (result.h.defined()) saved.push_back(result.h);
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["inputs"] = static_cast<std::int64_t>(inputs.size());
    auto holder = c10::make_intrusive<CallHolder>();
    holder->call = std::move(call);
    ctx->saved_data["call"] = c10::IValue::make_capsule(std::move(holder));
    return result.y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto inputs = static_cast<std::size_t>(ctx->saved_data["inputs"].toInt());
    const auto capsule = ctx->saved_data["call"].toCapsule();
    const LinearCall& call = *static_cast<const CallHolder*>(capsule.get())->call;
    std::size_t next = inputs;
    const torch::Tensor preactivation = call.activation != SQ_ACT_NONE ? saved[next++] : torch::Tensor();
    const torch::Tensor h = inputs > 1 && next < saved.size() ? saved[next] : torch::Tensor();
    const torch::Tensor& x = saved[0];

    variable_list out(inputs + 2);  // two more for the arguments that are no inputs
    for (std::size_t i = 0; i < inputs; ++i)
      if (ctx->needs_input_grad(i)) out[i] = torch::empty(saved[i].sizes(), saved[i].options());
    if (x.size(0) == 0) {
      for (torch::Tensor& grad : out)
        if (grad.defined()) grad.zero_();
      return out;
    }
    const torch::Tensor dy = grads[0].stride(1) == 1 ? grads[0] : grads[0].contiguous();

    BoundWeight bound;
    call.weight->bind(bound);
    auto args = sized<sq_linear_backward_args>();
    args.activation = call.activation;
    args.compute = call.compute;
    args.stream = stream_of(x.device());
    args.weight = &bound.ref;
    std::array<sq_tensor, 8> views;
    std::size_t used = 0;
    const auto view = [&](const torch::Tensor& t) -> const sq_tensor* {
      if (!t.defined()) return nullptr;
      views[used] = view_of(t);
      return &views[used++];
    };
    args.dy = view(dy);
    args.preactivation = view(preactivation);
    args.x = view(x);
    args.dx = view(out[0]);
    if (inputs == 1) {
      squareq::call(call.backend.linear().linear_backward, call.backend, args);
      if (call.shadow) call.shadow->backward(call, bound.ref, x, {}, {dy, preactivation, {}, out[0], {}, {}, {}});
      return out;
    }
    const torch::Tensor own_x = inputs > 3 ? saved[3] : torch::Tensor();
    const LoraView lora(call.scaling, saved[1], saved[2], own_x);
    args.lora = &lora.lora;
    args.h = view(h);
    args.da_t = view(out[1]);
    args.db_t = view(out[2]);
    if (inputs > 3) args.dx_lora = view(out[3]);
    squareq::call(call.backend.linear().linear_backward, call.backend, args);
    if (call.shadow)
      call.shadow->backward(call, bound.ref, x, {saved[1], saved[2], own_x},
                            {dy, preactivation, h, out[0], out[1], out[2], inputs > 3 ? out[3] : torch::Tensor()});
    return out;
  }
};

}  // namespace

torch::Tensor quantized_linear(const torch::Tensor& x, const LowRank& branch, const std::shared_ptr<const LinearCall>& call, const TokenCodes& codes) {
  if (codes.defined() && call->compute != SQ_COMPUTE_W8A8)
    throw Error(Code::CALL_VALUE, "layer '" + call->name + "': codes of x are given, compute is " + std::to_string(call->compute) + "; only W8A8 (2) reads them");
  variable_list inputs{x};
  if (branch.a_t.defined()) inputs.insert(inputs.end(), {branch.a_t, branch.b_t});
  if (branch.x.defined()) inputs.push_back(branch.x);
  bool differentiated = false;
  if (torch::GradMode::is_enabled())
    for (const torch::Tensor& input : inputs) differentiated = differentiated || input.requires_grad();
  if (!differentiated) return run_forward(*call, x, branch, codes, false).y;
  return QuantizedLinearFunction::apply(at::TensorList(inputs), call, codes);
}

}  // namespace squareq::training
