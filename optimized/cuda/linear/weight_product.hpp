// One product with the weight: the kernel that was chosen, and what that kernel needs beside its operands.
#pragma once

#include "optimized/cuda/kernels/product.hpp"
#include "optimized/cuda/linear/kernel_table.hpp"
#include "optimized/cuda/linear/linear_job.hpp"
#include "optimized/cuda/workspace.hpp"

namespace squareq::cuda {

class WeightProductCall {
 public:
  /// `activations` [rows, depth] may get its data later (set_activations); dtype, shape and stride count already. `transposed`: dX.
  WeightProductCall(const sq_context& context, const Weight& weight, const Matrix& activations, bool transposed);

  const KernelChoice& choice() const { return choice_; }
  /// Copies for kernels that need aligned operands. They change where an operand lies, never what is computed.
  void reserve(Workspace& workspace);
  /// What this call makes of its input: the kernels wait for it.
  void set_activations(const void* data) { activations_.data = const_cast<void*>(data), made_ = true; }
  /// Whether the kernel can multiply the codes by the scale of what is summed over: class R2 without a pass over the activations.
  bool scales_depth() const { return wgmma() && transposed_ && activations_.dtype == SQ_BF16; }
  /// The activations, of the shape and dtype that were given, and that scale, [depth].
  void read_scaled(const Matrix& activations, const float* scale) { activations_ = activations, depth_scale_ = scale; }
  /// Before the call's first kernel: aligns operands and clears flags.
  void prepare(cudaStream_t stream);
  void run(const Finish& finish, Chain& chain);

 private:
  bool wgmma() const { return choice_.kernel == Kernel::wgmma; }
  bool copies_16_bytes() const { return wgmma() || choice_.kernel == Kernel::few_rows; }
  Matrix activations_;
  const Weight& weight_;
  bool transposed_, made_ = false;
  KernelChoice choice_;
  std::int64_t columns_;
  void* aligned_activations_ = nullptr;
  std::int8_t* aligned_weight_ = nullptr;
  const float* depth_scale_ = nullptr;
  void* partial_ = nullptr;
  unsigned* arrived_ = nullptr;
};

}  // namespace squareq::cuda
