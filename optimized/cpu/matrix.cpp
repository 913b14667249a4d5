#include "optimized/cpu/matrix.hpp"

#include <algorithm>
#include <climits>
#include <cstdlib>

#include "squareq/error.hpp"
#include "squareq/text.hpp"

namespace squareq::cpu {
namespace {

std::string dimension(std::int64_t d) { return d < 0 ? "any" : std::to_string(d); }

void check_storage(const sq_tensor& t, const char* name, const std::string& layer, std::initializer_list<std::int32_t> dtypes) {
  if (std::find(dtypes.begin(), dtypes.end(), t.dtype) == dtypes.end()) {
    std::string allowed;
    for (const std::int32_t d : dtypes) allowed += (allowed.empty() ? "" : ", ") + std::string(dtype_name(d));
    refuse(SQ_CALL_DTYPE, layer, name, "dtype is " + std::string(dtype_name(t.dtype)) + ", expected " + allowed);
  }
  if (t.device.kind != SQ_CPU) refuse(SQ_CALL_DEVICE, layer, name, "device kind is " + std::to_string(t.device.kind) + ", expected 0 (cpu)");
}

void check_data(const sq_tensor& t, const char* name, const std::string& layer, std::int64_t count) {
  if (count == 0) return;
  if (t.data == nullptr) refuse(SQ_CALL_NULL, layer, name, "data is null, shape is " + shape_text(t));
  const std::uint64_t size = dtype_bytes(t.dtype);
  if (reinterpret_cast<std::uintptr_t>(t.data) % size != 0)
    refuse(SQ_CALL_ALIGN, layer, name,
           "data is at offset " + std::to_string(reinterpret_cast<std::uintptr_t>(t.data) % size) + " of its " + std::to_string(size) + "-byte element");
}

}  // namespace

void refuse(sq_status code, const std::string& layer, const std::string& tensor, const std::string& what) {
  const std::string where = (layer.empty() ? "" : "layer " + printable(layer) + ": ") + (tensor.empty() ? "" : tensor + ": ");
  throw Error(static_cast<Code>(code), where + what, {}, printable(layer), tensor);
}

bool Matrix::direct() const { return dtype == SQ_F32 && (rows <= 1 || (stride >= cols && stride <= INT_MAX)); }

Matrix check_matrix(const sq_tensor* t, const char* name, const std::string& layer, const Expect& expect) {
  if (t == nullptr) return {};
  check_storage(*t, name, layer, expect.dtypes);
  if (t->rank != 2) refuse(SQ_CALL_SHAPE, layer, name, "rank is " + std::to_string(t->rank) + ", expected 2");
  const std::int64_t rows = t->shape[0];
  const std::int64_t cols = t->shape[1];
  const bool wrong = rows < 0 || cols < 0 || (expect.rows >= 0 && rows != expect.rows) || (expect.cols >= 0 && cols != expect.cols);
  if (wrong)
    refuse(SQ_CALL_SHAPE, layer, name, "shape is " + shape_text(*t) + ", expected [" + dimension(expect.rows) + ", " + dimension(expect.cols) + "]");
  if (cols > INT_MAX) refuse(SQ_CALL_SHAPE, layer, name, "has " + std::to_string(cols) + " columns, at most " + std::to_string(INT_MAX) + " are served");
  if (cols > 1 && t->strides[1] != 1)
    refuse(SQ_CALL_SHAPE, layer, name, "column stride is " + std::to_string(t->strides[1]) + ", expected 1");
  if (expect.use == Use::output && rows > 1 && std::llabs(t->strides[0]) < cols)
    refuse(SQ_CALL_SHAPE, layer, name,
           "row stride is " + std::to_string(t->strides[0]) + " but rows of an output must not overlap: at least " + std::to_string(cols));
  check_data(*t, name, layer, rows * std::min<std::int64_t>(cols, 1));
  return {static_cast<std::byte*>(t->data), t->dtype, rows, cols, t->strides[0], true};
}

Matrix require_matrix(const sq_tensor* t, const char* name, const std::string& layer, const Expect& expect) {
  if (t == nullptr) refuse(SQ_CALL_NULL, layer, name, "is required and null");
  return check_matrix(t, name, layer, expect);
}

void check_any(const sq_tensor* t, const char* name, std::initializer_list<std::int32_t> dtypes) {
  if (t == nullptr) refuse(SQ_CALL_NULL, "", name, "is required and null");
  check_storage(*t, name, "", dtypes);
  if (t->rank < 0 || t->rank > SQ_MAX_RANK) refuse(SQ_CALL_SHAPE, "", name, "rank is " + std::to_string(t->rank) + ", expected 0 to 8");
  std::int64_t count = 1;
  for (std::int32_t d = 0; d < t->rank; ++d)
    if (t->shape[d] < 0 || __builtin_mul_overflow(count, t->shape[d], &count))
      refuse(SQ_CALL_SHAPE, "", name, "shape is " + shape_text(*t) + ", not a size that fits 64 bits");
  check_data(*t, name, "", count);
}

Matrix require_vector(const sq_tensor* t, const char* name, const std::string& layer, std::initializer_list<std::int32_t> dtypes, std::int64_t length) {
  if (t == nullptr) refuse(SQ_CALL_NULL, layer, name, "is required and null");
  check_storage(*t, name, layer, dtypes);
  if (t->rank != 1 || t->shape[0] < 0 || (length >= 0 && t->shape[0] != length))
    refuse(SQ_CALL_SHAPE, layer, name,
           "shape is " + (t->rank >= 0 && t->rank <= SQ_MAX_RANK ? shape_text(*t) : "of rank " + std::to_string(t->rank)) + ", expected [" +
               dimension(length) + "]");
  length = t->shape[0];
  if (length > 1 && t->strides[0] != 1) refuse(SQ_CALL_SHAPE, layer, name, "stride is " + std::to_string(t->strides[0]) + ", expected 1");
  check_data(*t, name, layer, length);
  return {static_cast<std::byte*>(t->data), t->dtype, 1, length, length, true};
}

}  // namespace squareq::cpu
