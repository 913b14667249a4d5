// What forward and backward share: the checked call and its tile sizes.
#pragma once

#include <cstdint>
#include <vector>

#include "optimized/cpu/linear/tiles.hpp"

namespace squareq::cpu {

inline constexpr auto kFloatTypes = {std::int32_t{SQ_F32}, std::int32_t{SQ_BF16}, std::int32_t{SQ_F16}};

/// The low-rank branch: A^T [r, K], B^T [N, r], its own input X [M, K] or none.
struct Lora {
  Matrix a;
  Matrix b;
  Matrix x;
  float scaling = 0;
  std::int64_t rank = 0;

  explicit operator bool() const { return a.given; }
};

/// Checks `lora` against a weight, the layer's X (which may be absent) and M rows; empty where `lora` is null.
Lora check_lora(const sq_lora* lora, const Weight& w, const Matrix& x, std::int64_t rows);

void check_activation(std::int32_t activation, const Weight& w);

/// A block of an adapter matrix as F32, rounded to the activation's dtype where that has 16 bits (SQ-NUM).
Block32 adapter_block(Context& context, const Matrix& m, Span rows, Span cols, std::int32_t activation_dtype, float* buffer);
/// Elements of the buffer that adapter_block needs: 0 where it reads in place.
bool adapter_needs_buffer(const Matrix& m, std::int32_t activation_dtype);

/// Pieces in which a call walks M (rows), K (depth) and N (columns).
struct Tiles {
  std::int64_t m = 1;
  std::int64_t k = 1;
  std::int64_t n = 1;
};

struct ForwardJob {
  Weight w;
  Matrix x, y, preactivation, h;
  Lora lora;
  std::int32_t activation = SQ_ACT_NONE;
  bool int8 = false;             // W8A8: codes are in xq, or made from x
  const std::int8_t* xq = nullptr;
  std::int64_t xq_stride = 0;
  const float* xq_scale = nullptr;
  std::int64_t rows = 0;
  std::int32_t activation_dtype = SQ_F32;
  Tiles tiles;
};

struct BackwardJob {
  Weight w;
  Matrix dy, preactivation, x, h, dx, dx_lora, da, db;
  Lora lora;
  std::int32_t activation = SQ_ACT_NONE;
  bool int8 = false;
  bool accumulate = false;
  bool own_input = false;  // the branch has an input of its own (dropout): its share of dX goes to dx_lora
  std::int64_t rows = 0;
  std::int32_t activation_dtype = SQ_F32;
  Tiles tiles;

  bool dy_direct() const { return activation == SQ_ACT_NONE && dy.direct(); }
};

/// H = X A for every row, in blocks of its own so that forward and backward get the same bits (SQ-LOR-004); rounded where the
/// activations have 16 bits.
class BranchInput {
 public:
  BranchInput(const Lora& lora, std::int64_t rows, std::int64_t depth, std::int32_t activation_dtype);
  void reserve(Scratch& scratch);
  /// Fills and returns h [rows, r].
  float* compute(Context& context);
  float* h() const { return h_; }

 private:
  const Lora& lora_;
  std::int64_t rows_, depth_;
  std::int32_t activation_dtype_;
  Tiles tiles_;
  float* h_ = nullptr;
  float* x_ = nullptr;
  float* a_ = nullptr;
};

ForwardJob prepare_forward(Context& context, const sq_linear_forward_args& args);
BackwardJob prepare_backward(Context& context, const sq_linear_backward_args& args);

using ActivationLoop = void (*)(const float*, std::int64_t, float*);
using GradientLoop = void (*)(const float*, const float*, std::int64_t, float*);
ActivationLoop activation_loop(const Kernels& kernels, std::int32_t activation);
GradientLoop gradient_loop(const Kernels& kernels, std::int32_t activation);

}  // namespace squareq::cpu
