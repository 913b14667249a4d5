// The low-rank branch around the product with the weight (spec/50-lora.md): A, B, H and D in the activations' dtype, and their products.
#pragma once

#include "optimized/cuda/kernels/product.hpp"
#include "optimized/cuda/kernels/thin_product.hpp"
#include "optimized/cuda/linear/linear_job.hpp"
#include "optimized/cuda/workspace.hpp"

namespace squareq::cuda {

/// Owns no memory: reserves what a call asks for in its workspace. Matrices are [.., rank()] or [rank(), ..] in the activations' dtype, zero beyond
/// the true rank.
class LowRank {
 public:
  LowRank(const Lora& lora, const Weight& weight, std::int32_t dtype, std::int64_t rows);

  /// The rank as the kernels see it: a multiple of 16 where the activations have 16 bits.
  std::int64_t rank() const { return rank_; }

  /// H = X A, or the caller's H rounded as the branch rounded it.
  void need_h(Workspace& workspace, bool given);
  /// D = G B^T.
  void need_d(Workspace& workspace);
  /// What the product with the weight adds: B for the forward, A for dX.
  void need_b_columns(Workspace& workspace);
  void need_a_columns(Workspace& workspace);
  /// Must come last: partial sums, shared by all products of the call.
  void need_sums(Workspace& workspace, bool h, bool d, bool da, bool db, bool pair);

  /// All that was reserved of A and B, and the caller's H where given, rounded. Comes first.
  void round(const Matrix& h, Chain& chain);
  void make_h(const Matrix& h_out, Chain& chain);
  void make_d(const Matrix& g, Chain& chain);
  /// Whether D and dB can be made in one pass over G.
  bool pairs(std::int32_t gradient_dtype) const { return dtype_ != SQ_F32 && gradient_dtype == dtype_ && rank_ <= kLargestPairRank; }
  /// D and dB, of a G that pairs(); behind make_h().
  void make_d_and_db(const Matrix& g, const Matrix& db_t, bool accumulate, Chain& chain);
  /// Adds the branch to a forward or to dX.
  void finish_forward(Finish& finish) const;
  void finish_dx(Finish& finish) const;
  /// dx_lora = scaling * D A^T.
  void write_dx(const Matrix& dx, Chain& chain);
  void write_da(const Matrix& da_t, bool accumulate, Chain& chain);
  void write_db(const Matrix& db_t, const Matrix& g, bool accumulate, Chain& chain);

 private:
  bool thin(const Matrix& wide) const { return dtype_ != SQ_F32 && wide.dtype == dtype_; }
  void product(const Matrix& wide, const void* adapter_rows, std::int64_t adapter_stride, void* out, const Matrix& wide_out, Chain& chain);
  void gradient(const Matrix& wide, const void* thin_matrix, float* out, std::int64_t outer_stride, std::int64_t inner_stride, bool accumulate, Chain& chain);
  std::int64_t row_pitch(std::int64_t columns) const { return (columns + 7) / 8 * 8; }

  const Lora& lora_;
  std::int32_t dtype_;
  std::int64_t rank_, rows_, in_, out_;
  float* partial_ = nullptr;
  void *h_ = nullptr, *d_ = nullptr;
  void *a_rows_ = nullptr, *b_rows_ = nullptr;        // [rank, in], [rank, out]
  void *a_columns_ = nullptr, *b_columns_ = nullptr;  // [in, rank], [out, rank]
};

}  // namespace squareq::cuda
