// What linear_forward and linear_backward do before they compute: the checked call, as plain matrices.
#pragma once

#include <cstdint>

#include "optimized/cuda/weight.hpp"

namespace squareq::cuda {

/// A checked row-major matrix on the device, column stride 1, rows `stride` elements apart; `given` false: the caller left it out; `made`: by kernels of
/// this call, not brought by the caller.
struct Matrix {
  void* data = nullptr;
  std::int32_t dtype = SQ_F32;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t stride = 0;
  bool given = false;
  bool made = false;

  explicit operator bool() const { return given; }
};

/// The low-rank branch: A^T [r, in] and B^T [out, r], both F32, and the X [rows, in] it reads (its own, or the layer's).
struct Lora {
  Matrix a_t, b_t, x;
  float scaling = 0;
  std::int64_t rank = 0;
  bool own_x = false;

  explicit operator bool() const { return a_t.given; }
};

struct ForwardJob {
  Weight w;
  Matrix x, y, preactivation, h;
  Matrix xq;                        // codes, where the caller gives them
  const float* xq_scale = nullptr;  // [rows], with xq
  Lora lora;
  std::int32_t activation = SQ_ACT_NONE;
  bool int8 = false;                // class R4: codes are in xq, or made from x
  std::int64_t rows = 0;
  std::int32_t dtype = SQ_F32;      // of the activations: A, B and H are rounded to it
};

struct BackwardJob {
  Weight w;
  Matrix dy, preactivation, h, dx, dx_lora, da_t, db_t;
  Lora lora;
  std::int32_t activation = SQ_ACT_NONE;
  bool int8 = false;
  bool accumulate = false;
  std::int64_t rows = 0;
  std::int32_t dtype = SQ_F32;      // of the activations: A, B, H and D are rounded to it
};

/// Throw what SQ-LIN-040 to 045, SQ-LOR-014 and SQ-LOR-015 ask for; compute nothing.
ForwardJob prepare_forward(const sq_context& context, const sq_linear_forward_args* args);
BackwardJob prepare_backward(const sq_context& context, const sq_linear_backward_args* args);

}  // namespace squareq::cuda
