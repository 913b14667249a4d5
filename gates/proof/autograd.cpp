// The one file of the suite that includes torch.
#include "gates/proof/autograd.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "gates/harness/bounds.hpp"

namespace squareq::gates::proof {
namespace {

using at::Tensor;

constexpr double u = 0x1p-24;
/// Largest curvature of GELU (2 phi(0) = 0.798, both forms) and SiLU (0.5).
constexpr double activation_curvature = 0.81;

Tensor tensor_of(const Numbers& values, std::int64_t rows, std::int64_t columns) {
  return at::from_blob(const_cast<double*>(values.data()), {rows, columns}, at::kDouble).clone();
}

Numbers numbers_of(const Tensor& t) {
  const Tensor dense = t.detach().contiguous();
  return {dense.data_ptr<double>(), dense.data_ptr<double>() + dense.numel()};
}

Tensor act(std::int32_t activation, const Tensor& v) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: return at::gelu(v, "tanh");
    case SQ_ACT_GELU_ERF: return at::gelu(v, "none");
    case SQ_ACT_SILU: return at::silu(v);
    default: return v.clone();
  }
}

/// The inputs as tensors. Without a branch of its own input, lora_x is x itself.
struct Inputs {
  Tensor w, bias, x, lora_x, a, b, dy;
  explicit Inputs(const Step& s)
      : w(tensor_of(s.w, s.n, s.k)), bias(s.bias.empty() ? Tensor() : tensor_of(s.bias, 1, s.n)), x(tensor_of(s.x, s.m, s.k)),
        lora_x(s.lora_x.empty() ? x : tensor_of(s.lora_x, s.m, s.k)), a(tensor_of(s.a_t, s.rank, s.k)), b(tensor_of(s.b_t, s.n, s.rank)), dy(tensor_of(s.dy, s.m, s.n)) {}
};

Tensor preactivation(const Step& s, const Inputs& in) {
  Tensor v = at::matmul(in.x, in.w.t());
  if (s.rank) v = v + s.scaling * at::matmul(at::matmul(in.lora_x, in.a.t()), in.b.t());
  return in.bias.defined() ? v + in.bias : v;
}

Tensor output_bound(const Tensor& value, const Tensor& error, std::int32_t dtype) {
  return error + unit_roundoff(dtype) * (value.abs() + error) + smallest_subnormal(dtype);
}

Quantity quantity(const Tensor& value, const Tensor& error, std::int32_t dtype) {
  return {numbers_of(value), numbers_of(output_bound(value, error, dtype).expand_as(value))};
}

/// H = X A, D = G B^T and their errors.
struct WithError {
  Tensor value, error;
};

WithError low_rank(const Step& s, const Inputs& in) {
  const double g = gamma(static_cast<double>(s.k)), w = operand_roundoff(s.x_dtype);
  return {at::matmul(in.lora_x, in.a.t()), (g + w * (1 + g)) * at::matmul(in.lora_x.abs(), in.a.abs().t())};
}

}  // namespace

double loss(const Step& s) {
  const at::NoGradGuard off;
  const Inputs in(s);
  return (in.dy * act(s.activation, preactivation(s, in))).sum().item<double>();
}

StepResult autograd_step(const Step& s) {
  StepResult out;
  Inputs in(s);
  const bool own = !s.lora_x.empty();
  for (Tensor* leaf : {&in.x, &in.a, &in.b}) leaf->requires_grad_();
  if (own) in.lora_x.requires_grad_();
  else in.lora_x = in.x;
  Tensor v = preactivation(s, in);
  // With a saved preactivation the derivative is taken there: the value flows through act(saved + (v - v.detach())).
  const Tensor seen = s.saved ? tensor_of(*s.saved, s.m, s.n) + (v - v.detach()) : v;
  seen.retain_grad();
  act(s.activation, seen).backward(in.dy);

  const at::NoGradGuard off;
  const Tensor g = seen.grad(), y = act(s.activation, v);
  const double c = std::abs(s.scaling), w = operand_roundoff(s.x_dtype), n = static_cast<double>(s.n), rank = static_cast<double>(s.rank), m = static_cast<double>(s.m);

  const Tensor base = at::matmul(in.x, in.w.t());
  Tensor magnitudes = base.abs(), e_branch = at::zeros_like(base);
  WithError h;
  if (s.rank) {
    h = low_rank(s, in);
    magnitudes = magnitudes + c * at::matmul(h.value, in.b.t()).abs();
    e_branch = c * (at::matmul(h.error, in.b.abs().t()) + gamma(rank + 2) * at::matmul(h.value.abs() + h.error, in.b.abs().t()));
    out.h = quantity(h.value, h.error, SQ_F32);
  }
  if (in.bias.defined()) magnitudes = magnitudes + in.bias.abs();
  const Tensor e_v = gamma(static_cast<double>(s.k) + 2) * at::matmul(in.x.abs(), in.w.abs().t()) + e_branch + 3 * u * magnitudes;
  const bool activated = s.activation != SQ_ACT_NONE;
  out.preactivation = quantity(v, e_v, SQ_F32);
  out.y = quantity(y, activated ? activation_slope * e_v + 8 * u * v.abs() : e_v, s.y_dtype);

  Tensor e_g = at::zeros_like(g);
  if (activated) e_g = 64 * u * in.dy.abs() + (u + w) * g.abs();
  if (activated && !s.saved) e_g = e_g + activation_curvature * in.dy.abs() * output_bound(v, e_v, SQ_F32);
  const Tensor g_size = g.abs() + e_g;
  Tensor e_dx = at::matmul(e_g, in.w.abs()) + (gamma(n + 2) + w) * at::matmul(g_size, in.w.abs());
  if (s.rank) {
    const Tensor d = at::matmul(g, in.b), e_d = at::matmul(e_g, in.b.abs()) + (gamma(n) + w) * at::matmul(g_size, in.b.abs()), d_size = d.abs() + e_d;
    const Tensor share = s.scaling * at::matmul(d, in.a), e_share = c * (at::matmul(e_d, in.a.abs()) + gamma(rank + 2) * at::matmul(d_size, in.a.abs()));
    if (own) out.dx_lora = quantity(in.lora_x.grad(), e_share, s.dy_dtype);
    else e_dx = e_dx + e_share + 2 * u * (at::matmul(g, in.w).abs() + share.abs());
    const Tensor x_size = in.lora_x.abs();
    const Tensor e_a = c * (at::matmul(e_d.t(), x_size) + gamma(m + 2) * at::matmul(d_size.t(), x_size));
    const Tensor e_b = c * (at::matmul(g_size.t(), h.error) + at::matmul(e_g.t(), h.value.abs()) + gamma(m + 2) * at::matmul(g_size.t(), h.value.abs() + h.error));
    const auto added = [](const Tensor& gradient, const Numbers& initial) { return initial.empty() ? gradient : gradient + tensor_of(initial, gradient.size(0), gradient.size(1)); };
    out.da_t = quantity(added(in.a.grad(), s.initial_a), e_a, SQ_F32);
    out.db_t = quantity(added(in.b.grad(), s.initial_b), e_b, SQ_F32);
  }
  out.dx = quantity(in.x.grad(), e_dx, s.dy_dtype);
  return out;
}

}  // namespace squareq::gates::proof
