#include "squareq/training/tensor_bridge.hpp"

#include <fmt/format.h>

#include "squareq/error.hpp"
#include "squareq/tensor.hpp"

namespace squareq::training {

std::int32_t to_sq_dtype(torch::Dtype dtype) {
  switch (dtype) {
    case torch::kFloat32: return SQ_F32;
    case torch::kFloat16: return SQ_F16;
    case torch::kBFloat16: return SQ_BF16;
    case torch::kFloat64: return SQ_F64;
    case torch::kInt8: return SQ_I8;
    case torch::kUInt8: return SQ_U8;
    case torch::kInt32: return SQ_I32;
    case torch::kInt64: return SQ_I64;
    default: throw Error(Code::CALL_DTYPE, fmt::format("libtorch dtype {} has no counterpart in the contract", c10::toString(dtype)));
  }
}

torch::Dtype to_torch_dtype(std::int32_t sq_dtype) {
  switch (sq_dtype) {
    case SQ_F32: return torch::kFloat32;
    case SQ_F16: return torch::kFloat16;
    case SQ_BF16: return torch::kBFloat16;
    case SQ_F64: return torch::kFloat64;
    case SQ_I8: return torch::kInt8;
    case SQ_U8: return torch::kUInt8;
    case SQ_I32: return torch::kInt32;
    case SQ_I64: return torch::kInt64;
    default: throw Error(Code::CALL_DTYPE, fmt::format("dtype number {} is not one of the contract's", sq_dtype));
  }
}

sq_device device_of(const torch::Device& device) { return {device.is_cuda() ? SQ_CUDA : SQ_CPU, device.has_index() ? device.index() : 0}; }

sq_tensor view_of(const torch::Tensor& tensor) {
  sq_tensor view{};
  view.data = tensor.data_ptr();
  view.dtype = to_sq_dtype(tensor.scalar_type());
  view.rank = static_cast<std::int32_t>(tensor.dim());
  view.device = device_of(tensor.device());
  for (std::int32_t i = 0; i < view.rank; ++i) {
    view.shape[i] = tensor.size(i);
    view.strides[i] = tensor.stride(i);
  }
  return view;
}

std::string shape_of(const torch::Tensor& tensor) {
  return shape_text(std::span<const std::int64_t>(tensor.sizes().data(), tensor.sizes().size()));
}

}  // namespace squareq::training
