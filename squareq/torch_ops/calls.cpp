#include "squareq/torch_ops/calls.hpp"

#include "squareq/torch_ops/backends.hpp"
#include "squareq/torch_ops/outputs.hpp"
#include "squareq/training/torch_compat.hpp"

namespace squareq::torch_ops {

namespace {

void bind(training::BoundWeight& bound, const WeightArguments& w) {
  require_matrix(w.op, "qweight", w.qweight);
  const std::array<std::pair<const char*, at::Tensor>, 3> parts{
      {{"qweight", w.qweight}, {"scale", w.scale}, {"bias", w.bias.value_or(at::Tensor())}}};
  training::bind_tensors(bound, w.op, w.qweight.size(0), w.qweight.size(1), parts);
}

void bind(std::optional<training::LoraView>& bound, const char* op, const LowRankArguments* branch) {
  if (!branch) return;
  require_matrix(op, "lora_a", branch->a);
  require_matrix(op, "lora_b", branch->b);
  bound.emplace(static_cast<float>(branch->scaling), branch->a, branch->b, at::Tensor());
}

}  // namespace

at::Tensor rows_of(const at::Tensor& t) {
  const std::int64_t columns = t.size(-1);
  std::int64_t count = 1;
  for (const std::int64_t size : t.sizes().slice(0, static_cast<std::size_t>(t.dim() - 1))) count *= size;
  const at::Tensor rows = t.reshape({count, columns});
  // The contract takes rows that repeat, as those of an expanded gradient do, but a backend may copy them one by one.
  const bool apart = (columns <= 1 || rows.stride(1) == 1) && (count <= 1 || rows.stride(0) >= columns);
  return apart ? rows : rows.contiguous();
}

const sq_tensor* Views::of(const at::Tensor& t) {
  if (!t.defined()) return nullptr;
  return &(views_.at(used_++) = training::view_of(rows_of(t)));
}

ForwardCall::ForwardCall(const WeightArguments& weight, const at::Tensor& x, const LowRankArguments* branch, sq_compute compute,
                         sq_activation activation, bool keep)
    : device_(x.device()) {
  require_columns(weight.op, "x", x, weight.qweight, 1);
  bind(weight_, weight);
  bind(branch_, weight.op, branch);
  x_rows_ = rows_of(x);
  y = empty_rows(x, weight.qweight.size(0), x.scalar_type());
  if (keep && activation != SQ_ACT_NONE) preactivation = empty_as(y, y.scalar_type());
  if (keep && branch) h = empty_rows(x, branch->a.size(0), at::kFloat);
  args_.activation = activation;
  args_.compute = compute;
  args_.stream = training::stream_of(device_);
  args_.weight = &weight_.ref;
  args_.x = views_.of(x_rows_);
  args_.y = views_.of(y);
  args_.preactivation = views_.of(preactivation);
  args_.h = views_.of(h);
  args_.lora = branch_ ? &branch_->lora : nullptr;
}

void ForwardCall::run() const {
  const Context context = context_on(device_);
  call(context.linear().linear_forward, context, args_);
}

BackwardCall::BackwardCall(const WeightArguments& weight, const at::Tensor& grad, const Saved& saved, const LowRankArguments* branch,
                           sq_compute compute, sq_activation activation, std::array<bool, 3> mask)
    : device_(grad.device()) {
  require_columns(weight.op, "grad", grad, weight.qweight, 0);
  bind(weight_, weight);
  bind(branch_, weight.op, branch);
  grad_rows_ = rows_of(grad);
  if (mask[0]) dx = empty_rows(grad, weight.qweight.size(1), grad.scalar_type());
  if (mask[1]) da = empty_as(branch->a, at::kFloat);
  if (mask[2]) db = empty_as(branch->b, at::kFloat);
  if (saved.preactivation.defined()) preactivation_rows_ = rows_of(saved.preactivation);
  if (saved.x.defined()) {
    require_columns(weight.op, "x", saved.x, weight.qweight, 1);
    x_rows_ = rows_of(saved.x);
  }
  if (saved.h.defined()) h_rows_ = rows_of(saved.h);
  args_.activation = activation;
  args_.compute = compute;
  args_.stream = training::stream_of(device_);
  args_.weight = &weight_.ref;
  args_.dy = views_.of(grad_rows_);
  args_.preactivation = views_.of(preactivation_rows_);
  args_.x = views_.of(x_rows_);
  args_.h = views_.of(h_rows_);
  args_.lora = branch_ ? &branch_->lora : nullptr;
  args_.dx = views_.of(dx);
  args_.da_t = views_.of(da);
  args_.db_t = views_.of(db);
}

void BackwardCall::run() const {
  const Context context = context_on(device_);
  call(context.linear().linear_backward, context, args_);
}

}  // namespace squareq::torch_ops
