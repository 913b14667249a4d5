// Gradients. What is trained is the adapter: linear and linear_lora are differentiable in x and in it, a frozen weight that asks for a
// gradient is an error, and of the other operations nothing is differentiable. Every step is an operation called through the dispatcher, so
// that whoever records or transforms a program sees them.
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <initializer_list>
#include <string>
#include <tuple>

#include "squareq/torch_ops/errors.hpp"
#include "squareq/torch_ops/signatures.hpp"

namespace squareq::torch_ops {

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void require_frozen(const char* op, const char* name, const MaybeTensor& t) {
  if (t && t->requires_grad())
    throw Error(
        Code::CALL_VALUE,
        fmt::format("{}: {} requires a gradient, but the quantized weight is frozen: detach it, or set requires_grad to False", op, name));
}

bool differentiated(std::initializer_list<const Tensor*> inputs) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Tensor* input : inputs)
    if (input->requires_grad()) return true;
  return false;
}

std::string owned(Text text) { return {text.data(), text.size()}; }

const auto& linear_op() {
  static const auto op = operation<Linear>("squareq::linear");
  return op;
}

const auto& linear_lora_op() {
  static const auto op = operation<LinearLora>("squareq::linear_lora");
  return op;
}

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias,
                        const std::string& compute, const std::string& activation) {
    static const auto saving = operation<LinearForward>("squareq::linear_forward");
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensor y, preactivation;
    if (activation == "none")
      y = linear_op().call(x, qweight, scale, bias, compute, activation);
    else
      std::tie(y, preactivation) = saving.call(x, qweight, scale, bias, compute, activation);
    ctx->save_for_backward({qweight, scale, preactivation});
    ctx->saved_data["compute"] = compute;
    ctx->saved_data["activation"] = activation;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = operation<LinearBackward>("squareq::linear_backward");
    const variable_list saved = ctx->get_saved_variables();
    const MaybeTensor preactivation = saved[2].defined() ? MaybeTensor(saved[2]) : MaybeTensor();
    return {op.call(grads[0], preactivation, saved[0], saved[1], ctx->saved_data["compute"].toStringRef(),
                    ctx->saved_data["activation"].toStringRef()),
            {},
            {},
            {},
            {},
            {}};
  }
};

Tensor linear(const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias, Text compute, Text activation) {
  if (at::GradMode::is_enabled()) {
    require_frozen("squareq::linear", "scale", scale);
    require_frozen("squareq::linear", "bias", bias);
  }
  if (differentiated({&x})) return LinearFunction::apply(x, qweight, scale, bias, owned(compute), owned(activation));
  const at::AutoDispatchBelowADInplaceOrView below;
  return linear_op().call(x, qweight, scale, bias, compute, activation);
}

/// The three differentiable inputs come first: their places are those of needs_input_grad and of the mask.
struct LinearLoraFunction : torch::autograd::Function<LinearLoraFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& lora_a, const Tensor& lora_b, const Tensor& qweight,
                        const Tensor& scale, const MaybeTensor& bias, double scaling, const std::string& compute) {
    static const auto op = operation<LinearLoraForward>("squareq::linear_lora_forward");
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [y, h] = op.call(x, qweight, scale, bias, lora_a, lora_b, scaling, compute);
    ctx->save_for_backward({x, h, qweight, scale, lora_a, lora_b});
    ctx->saved_data["scaling"] = scaling;
    ctx->saved_data["compute"] = compute;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = operation<LinearLoraBackward>("squareq::linear_lora_backward");
    const variable_list saved = ctx->get_saved_variables();
    const std::array<bool, 3> mask{ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2)};
    const auto [dx, da, db] = op.call(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5],
                                      ctx->saved_data["scaling"].toDouble(), ctx->saved_data["compute"].toStringRef(), mask);
    return {dx, da, db, {}, {}, {}, {}, {}};
  }
};

Tensor linear_lora(const Tensor& x, const Tensor& qweight, const Tensor& scale, const MaybeTensor& bias, const Tensor& lora_a,
                   const Tensor& lora_b, double scaling, Text compute) {
  if (at::GradMode::is_enabled()) {
    require_frozen("squareq::linear_lora", "scale", scale);
    require_frozen("squareq::linear_lora", "bias", bias);
  }
  if (differentiated({&x, &lora_a, &lora_b}))
    return LinearLoraFunction::apply(x, lora_a, lora_b, qweight, scale, bias, scaling, owned(compute));
  const at::AutoDispatchBelowADInplaceOrView below;
  return linear_lora_op().call(x, qweight, scale, bias, lora_a, lora_b, scaling, compute);
}

}  // namespace

TORCH_LIBRARY_IMPL(squareq, Autograd, m) {
  m.impl("linear", coded<&linear>);
  m.impl("linear_lora", coded<&linear_lora>);
  for (const char* name : {"quantize", "dequantize", "quantize_activation", "linear_forward", "linear_backward", "linear_lora_forward",
                           "linear_lora_backward"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}

}  // namespace squareq::torch_ops
