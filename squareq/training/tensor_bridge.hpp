// Between torch::Tensor and the contract's sq_tensor.
#pragma once

#include <torch/types.h>

#include <string>

#include "squareq/contract.h"

namespace squareq::training {

/// F32, F16, BF16, F64, I8, U8, I32 or I64; CALL_DTYPE for any other libtorch dtype.
std::int32_t to_sq_dtype(torch::Dtype dtype);
torch::Dtype to_torch_dtype(std::int32_t sq_dtype);

/// A view of the tensor's own memory with its strides; the tensor must outlive it. Rank at most SQ_MAX_RANK.
sq_tensor view_of(const torch::Tensor& tensor);
sq_device device_of(const torch::Device& device);

/// "[4, 64]"
std::string shape_of(const torch::Tensor& tensor);

}  // namespace squareq::training
