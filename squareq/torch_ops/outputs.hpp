// What an operation's outputs look like: allocated beside its inputs by libtorch, on the CPU, a GPU or the meta device (whose shapes may be
// symbolic), contiguous and not filled. Only shapes that the outputs follow from are checked here.
#pragma once

#include <ATen/ATen.h>

#include "squareq/contract.h"

namespace squareq::torch_ops {

/// [..., columns] of `dtype`, where `rows` is [..., any].
at::Tensor empty_rows(const at::Tensor& rows, const c10::SymInt& columns, at::ScalarType dtype);
/// The same dimensions as `t`.
at::Tensor empty_as(const at::Tensor& t, at::ScalarType dtype);
/// One element per row: [...], where `rows` is [..., any].
at::Tensor empty_per_row(const at::Tensor& rows, at::ScalarType dtype);

/// CALL_SHAPE, naming `op`, `name` and the shape, where `t` has not two dimensions.
void require_matrix(const char* op, const char* name, const at::Tensor& t);
/// CALL_SHAPE, naming both, where the last dimension of `t` [..., C] is not dimension `dimension` of qweight [N, K].
void require_columns(const char* op, const char* name, const at::Tensor& t, const at::Tensor& qweight, std::int64_t dimension);

/// "exact_w" as the contract's number, and the activations likewise; CALL_VALUE naming the text and those allowed.
sq_compute compute_of(const char* op, c10::string_view name);
sq_activation activation_of(const char* op, c10::string_view name);
/// The activation of an operation that gives or takes a preactivation; CALL_VALUE for "none".
sq_activation saved_activation_of(const char* op, c10::string_view name);

}  // namespace squareq::torch_ops
