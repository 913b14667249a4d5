// One call of the contract's linear operations made of libtorch's tensors: for computing, and for explaining what would compute. Holds
// views of the tensors it was made from, which must outlive it.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstddef>
#include <optional>

#include "squareq/contract.hpp"
#include "squareq/torch_ops/signatures.hpp"
#include "squareq/training/tensor_bridge.hpp"

namespace squareq::torch_ops {

/// t [..., C] as [M, C] with rows that do not overlap and a column stride of 1: a view where the strides allow one, else a copy.
at::Tensor rows_of(const at::Tensor& t);

/// A frozen weight; in_features is the row length of qweight, so that a matrix padded for a slab is passed as qweight[:, :K].
struct WeightArguments {
  const char* op;
  const at::Tensor& qweight;
  const at::Tensor& scale;
  const MaybeTensor& bias;
};

struct LowRankArguments {
  const at::Tensor& a;
  const at::Tensor& b;
  double scaling;
};

/// The contract's views of a call's tensors, as matrices; they live as long as the call.
class Views {
 public:
  /// Null for an undefined tensor.
  const sq_tensor* of(const at::Tensor& t);

 private:
  std::array<sq_tensor, 7> views_{};
  std::size_t used_ = 0;
};

/// Allocates the outputs beside x; `keep` also what backward needs: the preactivation where there is an activation, h where there is a
/// branch.
class ForwardCall {
 public:
  ForwardCall(const WeightArguments& weight, const at::Tensor& x, const LowRankArguments* branch, sq_compute compute,
              sq_activation activation, bool keep);
  const sq_linear_forward_args& args() const { return args_; }
  void run() const;

  at::Tensor y, preactivation, h;

 private:
  c10::Device device_;
  at::Tensor x_rows_;
  training::BoundWeight weight_;
  std::optional<training::LoraView> branch_;
  Views views_;
  sq_linear_forward_args args_ = sized<sq_linear_forward_args>();
};

/// What linear_backward is given beside grad; undefined: not given.
struct Saved {
  at::Tensor preactivation, x, h;
};

/// Allocates the outputs that `mask` asks for: dx, da, db.
class BackwardCall {
 public:
  BackwardCall(const WeightArguments& weight, const at::Tensor& grad, const Saved& saved, const LowRankArguments* branch,
               sq_compute compute, sq_activation activation, std::array<bool, 3> mask);
  const sq_linear_backward_args& args() const { return args_; }
  void run() const;

  at::Tensor dx, da, db;

 private:
  c10::Device device_;
  at::Tensor grad_rows_, preactivation_rows_, x_rows_, h_rows_;
  training::BoundWeight weight_;
  std::optional<training::LoraView> branch_;
  Views views_;
  sq_linear_backward_args args_ = sized<sq_linear_backward_args>();
};

}  // namespace squareq::torch_ops
