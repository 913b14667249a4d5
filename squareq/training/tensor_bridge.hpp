// Between torch::Tensor and the contract's sq_tensor.
#pragma once

#include <torch/types.h>

#include <array>
#include <string>
#include <utility>

#include "squareq/contract.hpp"

namespace squareq::training {

/// F32, F16, BF16, F64, I8, U8, I32 or I64; CALL_DTYPE for any other libtorch dtype.
std::int32_t to_sq_dtype(torch::Dtype dtype);
torch::Dtype to_torch_dtype(std::int32_t sq_dtype);

/// A view of the tensor's own memory with its strides; the tensor must outlive it. Rank at most SQ_MAX_RANK.
sq_tensor view_of(const torch::Tensor& tensor);
sq_device device_of(const torch::Device& device);

/// A weight bound for the duration of one call. Not movable: the reference points into it.
struct BoundWeight {
  BoundWeight() = default;
  BoundWeight(const BoundWeight&) = delete;
  BoundWeight& operator=(const BoundWeight&) = delete;

  sq_weight_ref ref{};
  sq_weight weight{};
  std::array<sq_part, 8> parts{};
};

/// Binds a bp8_v2 weight that lies in tensors of its own; they and `name` must outlive the binding. Undefined tensors are left out.
void bind_tensors(BoundWeight& bound, const char* name, std::int64_t out_features, std::int64_t in_features,
                  c10::ArrayRef<std::pair<const char*, torch::Tensor>> parts);

/// sq_lora with the views that it points to. `own_x` undefined: the branch takes the layer's X.
struct LoraView {
  LoraView(float scaling, const torch::Tensor& a_t, const torch::Tensor& b_t, const torch::Tensor& own_x);
  LoraView(const LoraView&) = delete;
  LoraView& operator=(const LoraView&) = delete;

  sq_tensor a_t, b_t, x{};
  sq_lora lora = sized<sq_lora>();
};

/// "[4, 64]"
std::string shape_of(const torch::Tensor& tensor);

}  // namespace squareq::training
