// The few places where Debian's libtorch 1.13 and libtorch 2.x differ.
#pragma once

#include <torch/torch.h>
#include <torch/version.h>

#include <cmath>
#include <vector>

#define SQUAREQ_TORCH_AT_LEAST(major, minor) \
  (TORCH_VERSION_MAJOR > (major) || (TORCH_VERSION_MAJOR == (major) && TORCH_VERSION_MINOR >= (minor)))

namespace squareq::training {

/// RMSNorm of x over its last dimension d, times `weight` [d] of x's dtype: FP32 inside (FP64 for FP64), rounded once. One kernel each way
/// on a GPU with libtorch 2.9 or newer; a row's sum has a fixed order there and x's gradient needs no atomics, so both repeat themselves.
inline torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double epsilon) {
#if SQUAREQ_TORCH_AT_LEAST(2, 9)
  if (x.is_cuda()) return at::rms_norm(x, {x.size(-1)}, weight, epsilon);
#endif
  const torch::Tensor f = x.scalar_type() == torch::kFloat64 ? x : x.to(torch::kFloat32);
  return (f * torch::rsqrt(f.square().mean(-1, true) + epsilon)).mul(weight).to(x.scalar_type());
}

/// softmax(q k^T / sqrt(d)) v for q, k, v [B, H, L, d]; no mask. Returns [B, H, L, d].
inline torch::Tensor plain_attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) {
#if TORCH_VERSION_MAJOR >= 2
  return at::scaled_dot_product_attention(q, k, v);
#else
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(-1)));
  return torch::matmul(torch::softmax(torch::matmul(q * scale, k.transpose(-1, -2)), -1), v);
#endif
}

/// The L2 norm of every tensor, squares taken and summed in FP64: [n] F64 on their device, in one kernel for many tensors on a GPU with
/// libtorch 2.4 or newer. Sums have a fixed order. On a CPU the bits are those of one linalg_vector_norm each. All tensors on one device;
/// at least one.
inline torch::Tensor norms_of(const std::vector<torch::Tensor>& tensors) {
#if SQUAREQ_TORCH_AT_LEAST(2, 4)
  return torch::stack(at::_foreach_norm(tensors, 2, torch::kFloat64));
#else
  std::vector<torch::Tensor> norms;
  for (const torch::Tensor& t : tensors) norms.push_back(at::linalg_vector_norm(t, 2, c10::nullopt, false, torch::kFloat64));
  return torch::stack(norms);
#endif
}

/// The stream that libtorch queues work on for this device, as the contract takes it: NULL on the CPU.
inline void* stream_of(const torch::Device& device) {
  if (device.is_cpu()) return nullptr;
#if TORCH_VERSION_MAJOR >= 2
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
#else
  TORCH_CHECK(false, "this libtorch (", TORCH_VERSION_MAJOR, ".", TORCH_VERSION_MINOR, ") offers no stream handle for ", device.str());
#endif
}

}  // namespace squareq::training
