#include "squareq/torch_ops/outputs.hpp"

#include <fmt/format.h>

#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "squareq/error.hpp"
#include "squareq/text.hpp"

namespace squareq::torch_ops {

namespace {

at::Tensor empty(std::vector<c10::SymInt> shape, const at::Tensor& beside, at::ScalarType dtype) {
  return at::empty_symint(shape, beside.options().dtype(dtype));
}

std::vector<c10::SymInt> shape_of(const at::Tensor& t) {
  const auto sizes = t.sym_sizes();
  return {sizes.begin(), sizes.end()};
}

std::string text(const at::Tensor& t) { return c10::str(t.sym_sizes()); }

template <class Value, std::size_t count>
Value named(const char* op, const char* what, c10::string_view name, const std::array<std::pair<const char*, Value>, count>& values) {
  const std::string_view given(name.data(), name.size());
  std::string known;
  for (const auto& [text, value] : values) {
    if (given == text) return value;
    known += (known.empty() ? "" : ", ") + std::string(text);
  }
  throw Error(Code::CALL_VALUE, fmt::format("{}: {} '{}' is not one of {}", op, what, printable(std::string(given)), known));
}

}  // namespace

at::Tensor empty_rows(const at::Tensor& rows, const c10::SymInt& columns, at::ScalarType dtype) {
  auto shape = shape_of(rows);
  shape.back() = columns;
  return empty(std::move(shape), rows, dtype);
}

at::Tensor empty_as(const at::Tensor& t, at::ScalarType dtype) { return empty(shape_of(t), t, dtype); }

at::Tensor empty_per_row(const at::Tensor& rows, at::ScalarType dtype) {
  auto shape = shape_of(rows);
  shape.pop_back();
  return empty(std::move(shape), rows, dtype);
}

void require_matrix(const char* op, const char* name, const at::Tensor& t) {
  if (t.dim() != 2)
    throw Error(Code::CALL_SHAPE, fmt::format("{}: {} has shape {}, must have 2 dimensions, not {}", op, name, text(t), t.dim()));
}

void require_columns(const char* op, const char* name, const at::Tensor& t, const at::Tensor& qweight, std::int64_t dimension) {
  require_matrix(op, "qweight", qweight);
  if (t.dim() < 1 || t.sym_size(-1) != qweight.sym_size(dimension))
    throw Error(Code::CALL_SHAPE, fmt::format("{}: {} has shape {}, its last dimension must be {} for qweight {}", op, name, text(t),
                                              c10::str(qweight.sym_size(dimension)), text(qweight)));
}

sq_compute compute_of(const char* op, c10::string_view name) {
  return named(
      op, "compute", name,
      std::array{std::pair{"default", SQ_COMPUTE_DEFAULT}, std::pair{"exact_w", SQ_COMPUTE_EXACT_W}, std::pair{"w8a8", SQ_COMPUTE_W8A8}});
}

sq_activation activation_of(const char* op, c10::string_view name) {
  return named(op, "activation", name,
               std::array{std::pair{"none", SQ_ACT_NONE}, std::pair{"gelu_tanh", SQ_ACT_GELU_TANH}, std::pair{"gelu_erf", SQ_ACT_GELU_ERF},
                          std::pair{"silu", SQ_ACT_SILU}});
}

sq_activation saved_activation_of(const char* op, c10::string_view name) {
  const sq_activation activation = activation_of(op, name);
  if (activation == SQ_ACT_NONE)
    throw Error(Code::CALL_VALUE, fmt::format("{}: activation 'none' has no preactivation to give: use linear", op));
  return activation;
}

}  // namespace squareq::torch_ops
