#include "reference/arguments.hpp"

#include <cstdint>
#include <set>

#include "squareq/text.hpp"

namespace squareq::reference {

std::string device_text(sq_device device) {
  const std::string kind = device.kind == SQ_CPU ? "cpu" : device.kind == SQ_CUDA ? "cuda" : "device kind " + std::to_string(device.kind);
  return kind + ":" + std::to_string(device.index);
}

void refuse(Code code, const Subject& subject, const std::string& message) {
  std::string text = subject.layer.empty() ? "" : "layer '" + printable(subject.layer) + "': ";
  if (!subject.tensor.empty()) text += subject.tensor + ": ";
  throw Error(code, text + message, {}, printable(subject.layer), subject.tensor);
}

namespace {

void check_layout(const sq_tensor& t, const Subject& subject, Access access) {
  const std::int32_t last = t.rank - 1;
  if (t.shape[last] > 1 && t.strides[last] != 1)
    refuse(Code::CALL_SHAPE, subject, "stride of the last dimension is " + std::to_string(t.strides[last]) + ", must be 1");
  if (access == Access::write && t.rank == 2 && t.shape[0] > 1 && t.strides[0] < t.shape[1])
    refuse(Code::CALL_SHAPE, subject, "row stride is " + std::to_string(t.strides[0]) + ", output rows need at least " + std::to_string(t.shape[1]));
  bool empty = false;
  for (std::int32_t i = 0; i < t.rank; ++i) empty = empty || t.shape[i] == 0;
  if (!t.data && !empty) refuse(Code::CALL_NULL, subject, "data is null, but the shape is " + shape_text(t));
  if (reinterpret_cast<std::uintptr_t>(t.data) % dtype_bytes(t.dtype) != 0)
    refuse(Code::CALL_ALIGN, subject, "address is not a multiple of " + std::to_string(dtype_bytes(t.dtype)) + " bytes, the size of " + std::string(dtype_name(t.dtype)));
}

void check_dtype(const sq_tensor& t, const Subject& subject, std::initializer_list<std::int32_t> dtypes) {
  std::string wanted;
  for (const std::int32_t dtype : dtypes) {
    if (t.dtype == dtype) return;
    wanted += (wanted.empty() ? "" : " or ") + std::string(dtype_name(dtype));
  }
  refuse(Code::CALL_DTYPE, subject, "dtype is " + std::string(dtype_name(t.dtype)) + ", must be " + wanted);
}

const sq_tensor& check_common(const sq_tensor* t, const Subject& subject, std::initializer_list<std::int32_t> dtypes, std::int32_t rank) {
  if (!t) refuse(Code::CALL_NULL, subject, "tensor is missing");
  if (t->device.kind != SQ_CPU) refuse(Code::CALL_DEVICE, subject, "tensor is on " + device_text(t->device) + ", must be on the cpu");
  check_dtype(*t, subject, dtypes);
  if (t->rank != rank) refuse(Code::CALL_SHAPE, subject, "rank is " + std::to_string(t->rank) + ", must be " + std::to_string(rank));
  for (std::int32_t i = 0; i < rank; ++i)
    if (t->shape[i] < 0) refuse(Code::CALL_SHAPE, subject, "shape is " + shape_text(*t) + ", no dimension may be negative");
  return *t;
}

}  // namespace

const sq_tensor& check_tensor(const sq_tensor* tensor, const Subject& subject, std::initializer_list<std::int32_t> dtypes,
                              std::initializer_list<std::int64_t> shape, Access access) {
  const sq_tensor& t = check_common(tensor, subject, dtypes, static_cast<std::int32_t>(shape.size()));
  if (!std::equal(shape.begin(), shape.end(), t.shape))
    refuse(Code::CALL_SHAPE, subject, "shape is " + shape_text(t) + ", must be " + shape_text(std::span(shape.begin(), shape.size())));
  check_layout(t, subject, access);
  return t;
}

const sq_tensor& check_rows(const sq_tensor* tensor, const Subject& subject, std::initializer_list<std::int32_t> dtypes, std::int64_t columns, Access access) {
  const sq_tensor& t = check_common(tensor, subject, dtypes, 2);
  if (t.shape[1] != columns) refuse(Code::CALL_SHAPE, subject, "shape is " + shape_text(t) + ", must have " + std::to_string(columns) + " columns");
  check_layout(t, subject, access);
  return t;
}

void check_part_names(const sq_part* parts, std::uint32_t count, const std::string& layer, const std::string& format,
                      std::initializer_list<std::string_view> required, std::initializer_list<std::string_view> optional) {
  if (!parts && count) refuse(Code::CALL_NULL, {layer, ""}, "parts is null, but part_count is " + std::to_string(count));
  std::set<std::string_view> seen;
  for (std::uint32_t i = 0; i < count; ++i) {
    if (!parts[i].name) refuse(Code::CALL_NULL, {layer, ""}, "name of part " + std::to_string(i) + " is null");
    const std::string_view name = parts[i].name;
    const auto lists = [&](const auto& names) { return std::find(names.begin(), names.end(), name) != names.end(); };
    if (!lists(required) && !lists(optional)) refuse(Code::CALL_VALUE, {layer, printable(name)}, "format " + format + " has no such part");
    if (!seen.insert(name).second) refuse(Code::CALL_VALUE, {layer, printable(name)}, "part is given twice");
  }
  for (const std::string_view name : required)
    if (!seen.contains(name)) refuse(Code::CALL_PART, {layer, std::string(name)}, "part is missing; format " + format + " requires it");
}

}  // namespace squareq::reference
