// Work of real blocks against published step sizes (facts: FLUX.1 67 / 245 TFLOP, FLUX.2 268 / 891 TFLOP, effective tokens per weight).

#include "squareq/streaming/cost.hpp"

#include <gtest/gtest.h>

namespace squareq::streaming {
namespace {

std::vector<CostLayer> flux1_double() {
  const std::string b = "transformer_blocks.0.";
  std::vector<CostLayer> layers{{b + "norm1.linear", 18432, 3072}, {b + "norm1_context.linear", 18432, 3072}};
  for (const char* name : {"to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"})
    layers.push_back({b + "attn." + name, 3072, 3072});
  for (const char* ff : {"ff", "ff_context"}) {
    layers.push_back({b + ff + ".net.0.proj", 12288, 3072});
    layers.push_back({b + ff + ".net.2", 3072, 12288});
  }
  return layers;
}

std::vector<CostLayer> flux1_single() {
  const std::string b = "single_transformer_blocks.0.";
  std::vector<CostLayer> layers{{b + "norm.linear", 9216, 3072}, {b + "proj_mlp", 12288, 3072}, {b + "proj_out", 3072, 15360}};
  for (const char* name : {"to_q", "to_k", "to_v"}) layers.push_back({b + "attn." + name, 3072, 3072});
  return layers;
}

std::vector<CostLayer> flux2_double() {
  const std::string b = "transformer_blocks.0.";
  std::vector<CostLayer> layers;
  for (const char* name : {"to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"})
    layers.push_back({b + "attn." + name, 6144, 6144});
  for (const char* ff : {"ff", "ff_context"}) {
    layers.push_back({b + ff + ".linear_in", 36864, 6144});
    layers.push_back({b + ff + ".linear_out", 6144, 18432});
  }
  return layers;
}

std::vector<CostLayer> flux2_single() {
  return {{"single_transformer_blocks.0.attn.to_qkv_mlp_proj", 55296, 6144}, {"single_transformer_blocks.0.attn.to_out", 6144, 24576}};
}

double step_tflop(const BlockCost& doubles, int n_doubles, const BlockCost& singles, int n_singles) {
  return 1e-12 * (n_doubles * (doubles.forward_flops() + doubles.backward_flops()) + n_singles * (singles.forward_flops() + singles.backward_flops()));
}

TEST(BlockCost, Flux1StepMatchesThePublishedWork) {
  const auto step = [](std::uint64_t image) {
    return step_tflop(block_cost(flux1_double(), "double", 3072, {image, 512}), 19, block_cost(flux1_single(), "single", 3072, {image, 512}), 38);
  };
  EXPECT_NEAR(step(1024), 66.9, 0.05);
  EXPECT_NEAR(step(4096), 245.4, 0.05);
}

TEST(BlockCost, Flux2StepMatchesThePublishedWork) {
  const auto step = [](std::uint64_t image) {
    return step_tflop(block_cost(flux2_double(), "double", 6144, {image, 512}), 8, block_cost(flux2_single(), "single", 6144, {image, 512}), 48);
  };
  EXPECT_NEAR(step(1024), 267.9, 0.05);
  EXPECT_NEAR(step(4096), 891.3, 0.05);
}

TEST(BlockCost, EffectiveTokensPerWeight) {
  const double flops = 19 * block_cost(flux1_double(), "double", 3072, {1024, 512}).linear_flops + 38 * block_cost(flux1_single(), "single", 3072, {1024, 512}).linear_flops;
  EXPECT_NEAR(flops / 2 / 11834228736.0, 838, 0.5);
}

TEST(BlockCost, WhatALayerSees) {
  EXPECT_EQ(sees("transformer_blocks.0.norm1_context.linear", "joint"), Sees::vector);
  EXPECT_EQ(sees("transformer_blocks.0.attn.add_k_proj", "joint"), Sees::text);
  EXPECT_EQ(sees("transformer_blocks.0.attn2.to_k", "joint"), Sees::image);  // SD3.5-medium: a second attention over the image
  EXPECT_EQ(sees("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "transformer"), Sees::text);
  EXPECT_EQ(sees("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q", "transformer"), Sees::image);
  EXPECT_EQ(sees("single_transformer_blocks.3.attn.to_q", "single"), Sees::all);
}

}  // namespace
}  // namespace squareq::streaming
