#include "optimized/cuda/linear/low_rank.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "optimized/cuda/kernels/rows.hpp"
#include "squareq/tensor.hpp"

namespace squareq::cuda {
namespace {

void check(cudaError_t status) { check_cuda(status, "low-rank branch"); }

/// Whether a factor of 16 bits times the scaling is exact: by a power of two, as far as the exponents of bf16 go.
bool exact_scaling(std::int32_t dtype, float scaling) {
  int exponent = 0;
  return scaling == 1 || (dtype == SQ_BF16 && std::frexp(scaling, &exponent) == 0.5f && std::abs(exponent) <= 16);
}

}  // namespace

LowRank::LowRank(const Lora& lora, const Weight& weight, std::int32_t dtype, std::int64_t rows)
    : lora_(lora), dtype_(dtype), rank_(dtype == SQ_F32 ? lora.rank : (lora.rank + 15) / 16 * 16), rows_(rows), in_(weight.in), out_(weight.out) {}

void LowRank::need_h(Workspace& workspace, bool given) {
  const auto width = static_cast<std::int64_t>(dtype_bytes(dtype_));
  workspace.reserve_bytes(&h_, rows_ * rank_ * width);
  if (!given) workspace.reserve_bytes(&a_rows_, rank_ * row_pitch(in_) * width);
}

void LowRank::need_d(Workspace& workspace) {
  const auto width = static_cast<std::int64_t>(dtype_bytes(dtype_));
  workspace.reserve_bytes(&d_, rows_ * rank_ * width);
  workspace.reserve_bytes(&b_rows_, rank_ * row_pitch(out_) * width);
}

void LowRank::need_a_columns(Workspace& workspace) { workspace.reserve_bytes(&a_columns_, in_ * rank_ * static_cast<std::int64_t>(dtype_bytes(dtype_))); }
void LowRank::need_b_columns(Workspace& workspace) { workspace.reserve_bytes(&b_columns_, out_ * rank_ * static_cast<std::int64_t>(dtype_bytes(dtype_))); }

void LowRank::need_sums(Workspace& workspace, bool h, bool d, bool da, bool db, bool pair) {
  if (dtype_ == SQ_F32) return;
  std::int64_t elements = 0;
  const auto need = [&](bool wanted, std::int64_t pieces, std::int64_t outer) { if (wanted) elements = std::max(elements, pieces * outer * rank_); };
  need(h, thin_pieces(false, rows_, in_), rows_);
  need(d && !pair, thin_pieces(false, rows_, out_), rows_);
  need(da, thin_pieces(true, rows_, in_), in_);
  need(db && !pair, thin_pieces(true, rows_, out_), out_);
  if (pair) elements = std::max(elements, (pair_column_pieces(rank_, rows_, out_) * rows_ + pair_row_pieces(rank_, rows_) * out_) * rank_);
  workspace.reserve(&partial_, elements);
}

/// out [rows, rank] = wide adapter_rows^T, rounded to the activations' dtype; wide_out, where given, receives it as F32.
void LowRank::product(const Matrix& wide, const void* adapter_rows, std::int64_t adapter_stride, void* out, const Matrix& wide_out, Chain& chain) {
  const auto rows = static_cast<std::int32_t>(rows_), columns = static_cast<std::int32_t>(wide.columns), rank = static_cast<std::int32_t>(rank_);
  if (thin(wide)) {
    check(thin_product({wide.data, adapter_rows, dtype_, wide.stride, adapter_stride, false, rows, columns, rank, partial_, !wide.made}, chain.next()));
    check(thin_sum({{{partial_, thin_pieces(false, rows_, wide.columns), rows_, rank, static_cast<std::int32_t>(lora_.rank), out, dtype_,
                      static_cast<float*>(wide_out.data), wide_out.stride, nullptr, 0, 0, 1, false}}, 1},
                    chain.next()));
    return;
  }
  Finish finish;
  finish.y = {out, dtype_, rank_};
  if (rank_ != lora_.rank) check(cudaMemsetAsync(out, 0, static_cast<std::size_t>(rows_ * rank_) * dtype_bytes(dtype_), chain.stream()));
  check(plain_product({wide.data, wide.dtype, wide.stride, 1}, {adapter_rows, dtype_, adapter_stride, 1}, rows,
                      static_cast<std::int32_t>(lora_.rank), columns, finish, chain.stream()));
  if (wide_out) check(copy_matrix({out, dtype_, rows_, lora_.rank, rank_}, {wide_out.data, SQ_F32, rows_, lora_.rank, wide_out.stride}, chain.stream()));
}

void LowRank::round(const Matrix& h, Chain& chain) {
  const auto* a = static_cast<const float*>(lora_.a_t.data);
  const auto* b = static_cast<const float*>(lora_.b_t.data);
  Roundings all;
  all.dtype = dtype_;
  const auto add = [&](const Rounding& rounding) { if (rounding.out) all.jobs[all.count++] = rounding; };
  add({a, lora_.a_t.stride, false, lora_.rank, in_, a_rows_, rank_, row_pitch(in_)});
  add({a, lora_.a_t.stride, true, in_, lora_.rank, a_columns_, in_, rank_});
  add({b, lora_.b_t.stride, true, lora_.rank, out_, b_rows_, rank_, row_pitch(out_)});
  add({b, lora_.b_t.stride, false, out_, lora_.rank, b_columns_, out_, rank_});
  if (h) add({static_cast<const float*>(h.data), h.stride, false, rows_, lora_.rank, h_, rows_, rank_});
  if (all.count == 0) return;  // no kernel, so the next one is the call's first
  check(round_matrices(all, chain.next()));
}

void LowRank::make_h(const Matrix& h_out, Chain& chain) {
  product(lora_.x, a_rows_, row_pitch(in_), h_, h_out, chain);
}

void LowRank::make_d(const Matrix& g, Chain& chain) {
  product(g, b_rows_, row_pitch(out_), d_, {}, chain);
}

void LowRank::make_d_and_db(const Matrix& g, const Matrix& db_t, bool accumulate, Chain& chain) {
  const auto rows = static_cast<std::int32_t>(rows_), columns = static_cast<std::int32_t>(g.columns), rank = static_cast<std::int32_t>(rank_);
  const auto true_rank = static_cast<std::int32_t>(lora_.rank);
  const std::int64_t d_pieces = pair_column_pieces(rank_, rows_, g.columns), b_pieces = pair_row_pieces(rank_, rows_);
  float* const partial_b = partial_ + d_pieces * rows_ * rank_;
  check(thin_pair({g.data, b_rows_, h_, dtype_, g.stride, row_pitch(out_), rows, columns, rank, partial_, partial_b, !g.made}, chain.next()));
  const ThinSum d{partial_, d_pieces, rows_, rank, true_rank, d_, dtype_, nullptr, 0, nullptr, 0, 0, 1, false};
  const ThinSum b{partial_b, b_pieces, g.columns, rank, true_rank, nullptr, dtype_, nullptr, 0, static_cast<float*>(db_t.data), db_t.stride, 1, lora_.scaling, accumulate};
  check(thin_sum({{d, b}, 2}, chain.next()));
}

void LowRank::finish_forward(Finish& finish) const {
  finish.low_rows = h_, finish.low_columns = b_columns_;
  finish.low_dtype = dtype_, finish.rank = static_cast<std::int32_t>(rank_), finish.scaling = lora_.scaling, finish.exact_scaling = exact_scaling(dtype_, lora_.scaling);
}

void LowRank::finish_dx(Finish& finish) const {
  finish.low_rows = d_, finish.low_columns = a_columns_;
  finish.low_dtype = dtype_, finish.rank = static_cast<std::int32_t>(rank_), finish.scaling = lora_.scaling, finish.exact_scaling = exact_scaling(dtype_, lora_.scaling);
}

void LowRank::write_dx(const Matrix& dx, Chain& chain) {
  Finish finish;
  finish.factor = lora_.scaling;
  finish.y = {dx.data, dx.dtype, dx.stride};
  check(plain_product({d_, dtype_, rank_, 1}, {a_columns_, dtype_, rank_, 1}, static_cast<std::int32_t>(rows_),
                      static_cast<std::int32_t>(in_), static_cast<std::int32_t>(rank_), finish, chain.stream()));
}

/// out, at column * outer_stride + r * inner_stride, (+)= scaling * sum_m wide[m, column] thin[m, r].
void LowRank::gradient(const Matrix& wide, const void* thin_matrix, float* out, std::int64_t outer_stride, std::int64_t inner_stride,
                       bool accumulate, Chain& chain) {
  const auto rows = static_cast<std::int32_t>(rows_), columns = static_cast<std::int32_t>(wide.columns), rank = static_cast<std::int32_t>(rank_);
  const auto true_rank = static_cast<std::int32_t>(lora_.rank);
  if (thin(wide)) {
    check(thin_product({wide.data, thin_matrix, dtype_, wide.stride, rank_, true, rows, columns, rank, partial_, !wide.made}, chain.next()));
    check(thin_sum({{{partial_, thin_pieces(true, rows_, wide.columns), wide.columns, rank, true_rank, nullptr, dtype_, nullptr, 0, out,
                      outer_stride, inner_stride, lora_.scaling, accumulate}}, 1},
                    chain.next()));
    return;
  }
  Finish finish;
  finish.factor = lora_.scaling;
  finish.add = accumulate;
  const Operand wide_columns{wide.data, wide.dtype, 1, wide.stride}, thin_columns{thin_matrix, dtype_, 1, rank_};
  if (inner_stride == 1) {
    finish.y = {out, SQ_F32, outer_stride};
    check(plain_product(wide_columns, thin_columns, columns, true_rank, rows, finish, chain.stream()));
  } else {
    finish.y = {out, SQ_F32, inner_stride};
    check(plain_product(thin_columns, wide_columns, true_rank, columns, rows, finish, chain.stream()));
  }
}

void LowRank::write_da(const Matrix& da_t, bool accumulate, Chain& chain) {
  gradient(lora_.x, d_, static_cast<float*>(da_t.data), 1, da_t.stride, accumulate, chain);
}

void LowRank::write_db(const Matrix& db_t, const Matrix& g, bool accumulate, Chain& chain) {
  gradient(g, h_, static_cast<float*>(db_t.data), db_t.stride, 1, accumulate, chain);
}

}  // namespace squareq::cuda
