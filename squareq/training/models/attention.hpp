// Attention, and what keeps its deterministic backward from leaving most of a GPU idle.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace squareq::training {

/// softmax(q k^T / sqrt(d)) v for q, k, v [B, H, L, d] of one dtype; no mask. Returns [B, H, L, d]. libtorch's choice of kernels
/// (prepare_device); where that is FlashAttention, made deterministic, its backward takes the heads in head_groups().
torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v);

/// How many heads each call of FlashAttention's deterministic backward should take; they add up to `heads`. A block of that kernel has a
/// multiprocessor to itself, and a call has ceil(multiprocessors / (batch heads)) blocks per head, which share the head's tiles of 128 keys. 24 heads on
/// 132 multiprocessors are 6 blocks each, 144: a second turn for 12 of them, which doubles the time. 22 heads and then 2 need 7/12 of it.
/// (FlashAttention-2, Dao 2023, as libtorch 2.11 launches it.) Chosen by the number of tiles that are computed one after another; more calls only where
/// that gains at least a twentieth.
std::vector<std::int64_t> head_groups(std::int64_t batch, std::int64_t heads, std::int64_t keys, std::int64_t multiprocessors);

}  // namespace squareq::training
