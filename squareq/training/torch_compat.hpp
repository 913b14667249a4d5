// The few places where Debian's libtorch 1.13 and libtorch 2.x differ.
#pragma once

#include <torch/torch.h>
#include <torch/version.h>

#include <cmath>

namespace squareq::training {

/// softmax(q k^T / sqrt(d)) v for q, k, v [B, H, L, d]; no mask. Returns [B, H, L, d].
inline torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) {
#if TORCH_VERSION_MAJOR >= 2
  return at::scaled_dot_product_attention(q, k, v);
#else
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(-1)));
  return torch::matmul(torch::softmax(torch::matmul(q * scale, k.transpose(-1, -2)), -1), v);
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
