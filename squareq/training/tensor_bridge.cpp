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

void bind_tensors(BoundWeight& bound, const char* name, std::int64_t out_features, std::int64_t in_features,
                  c10::ArrayRef<std::pair<const char*, torch::Tensor>> parts) {
  std::uint32_t count = 0;
  for (const auto& [part, tensor] : parts)
    if (tensor.defined()) bound.parts.at(count++) = {part, view_of(tensor)};
  bound.weight = sized<sq_weight>();
  bound.weight.format = "bp8_v2";
  bound.weight.name = name;
  bound.weight.out_features = out_features;
  bound.weight.in_features = in_features;
  bound.weight.part_count = count;
  bound.weight.parts = bound.parts.data();
  bound.ref = sized<sq_weight_ref>();
  bound.ref.weight = &bound.weight;
}

LoraView::LoraView(float scaling, const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& own_x)
    : a_t(view_of(a)), b_t(view_of(b)) {
  if (own_x.defined()) x = view_of(own_x);
  lora.scaling = scaling;
  lora.a_t = &a_t;
  lora.b_t = &b_t;
  lora.x = own_x.defined() ? &x : nullptr;
}

std::string shape_of(const torch::Tensor& tensor) {
  return shape_text(std::span<const std::int64_t>(tensor.sizes().data(), tensor.sizes().size()));
}

}  // namespace squareq::training
