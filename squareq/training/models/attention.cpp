#include "squareq/training/models/attention.hpp"

#include <torch/torch.h>

#include <algorithm>

#include "squareq/training/device.hpp"
#include "squareq/training/torch_compat.hpp"

#if SQUAREQ_TORCH_AT_LEAST(2, 11)
#include <ATen/SDPBackend.h>
#endif

namespace squareq::training {

namespace {

constexpr std::int64_t kTileKeys = 128;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Tiles that a call over `heads` heads computes one after another, with what its blocks' own copies of dq cost: each is cleared, written and added up,
/// which takes as long as 0.003 tiles (measured at 4608 x 4608, d 128).
double turns(std::int64_t batch, std::int64_t heads, std::int64_t keys, std::int64_t multiprocessors) {
  if (heads == 0) return 0;
  const std::int64_t per_head = ceil_div(multiprocessors, batch * heads), blocks = per_head * batch * heads;
  return static_cast<double>(ceil_div(blocks, multiprocessors) * ceil_div(ceil_div(keys, kTileKeys), per_head)) + 0.003 * static_cast<double>(blocks);
}

}  // namespace

std::vector<std::int64_t> head_groups(std::int64_t batch, std::int64_t heads, std::int64_t keys, std::int64_t multiprocessors) {
  if (batch * heads * multiprocessors == 0) return {heads};
  std::int64_t best = heads;
  double least = 0.95 * turns(batch, heads, keys, multiprocessors);
  for (std::int64_t group = heads - 1; group > 0; --group) {
    const double taken = static_cast<double>(heads / group) * turns(batch, group, keys, multiprocessors) + turns(batch, heads % group, keys, multiprocessors);
    if (taken < least) least = taken, best = group;
  }
  std::vector<std::int64_t> groups;
  for (std::int64_t first = 0; first < heads; first += best) groups.push_back(std::min(best, heads - first));
  return groups;
}

#if SQUAREQ_TORCH_AT_LEAST(2, 11)

namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// libtorch's FlashAttention forward over all heads, its backward by groups of heads.
struct GroupedFlashAttention : torch::autograd::Function<GroupedFlashAttention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, std::vector<std::int64_t> groups) {
    const auto [out, logsumexp, cum_q, cum_k, max_q, max_k, seed, offset, mask] = at::_scaled_dot_product_flash_attention(q, k, v, 0.0, false);
    ctx->save_for_backward({q, k, v, out, logsumexp, seed, offset});
    ctx->saved_data["groups"] = std::move(groups);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3];
    std::vector<Tensor> parts[3];  // of the gradients of q, k, v: [B, L, heads of a group, d]
    std::int64_t first = 0;
    for (const std::int64_t heads : ctx->saved_data["groups"].toIntVector()) {
      const auto of_group = [&](const Tensor& t) { return t.narrow(1, first, heads); };
      const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_backward(
          of_group(grads[0]), of_group(q), of_group(k), of_group(v), of_group(out), of_group(saved[4]).contiguous(), {}, {}, q.size(2), k.size(2), 0.0, false,
          saved[5], saved[6]);
      parts[0].push_back(dq.transpose(1, 2)), parts[1].push_back(dk.transpose(1, 2)), parts[2].push_back(dv.transpose(1, 2));
      first += heads;
    }
    return {torch::cat(parts[0], 2).transpose(1, 2), torch::cat(parts[1], 2).transpose(1, 2), torch::cat(parts[2], 2).transpose(1, 2), {}};
  }
};

}  // namespace

torch::Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v) {
  const bool differentiated = torch::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad());
  // libtorch pads heads whose size is no multiple of 8 before it calls these kernels.
  if (q.is_cuda() && differentiated && at::globalContext().deterministicAlgorithms() && q.size(3) % 8 == 0 &&
      at::_fused_sdp_choice(q, k, v) == static_cast<std::int64_t>(at::SDPBackend::flash_attention)) {
    std::vector<std::int64_t> groups = head_groups(q.size(0), q.size(1), k.size(2), multiprocessors());
    if (groups.size() > 1) return GroupedFlashAttention::apply(q, k, v, std::move(groups));
  }
  return plain_attention(q, k, v);
}

#else

torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) { return plain_attention(q, k, v); }

#endif

}  // namespace squareq::training
