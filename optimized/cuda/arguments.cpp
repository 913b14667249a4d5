#include "optimized/cuda/arguments.hpp"

#include "optimized/cuda/context.hpp"
#include "squareq/text.hpp"

namespace squareq::cuda {
namespace {

bool matches(const sq_tensor& t, std::initializer_list<std::int64_t> shape) {
  if (t.rank != static_cast<std::int32_t>(shape.size())) return false;
  const std::int64_t* given = t.shape;
  for (const std::int64_t wanted : shape)
    if (*given < 0 || (wanted >= 0 && *given != wanted)) return false;
    else ++given;
  return true;
}

std::string wanted_text(std::initializer_list<std::int64_t> shape) {
  std::string text = "[";
  for (const std::int64_t dimension : shape) text += (text.size() > 1 ? ", " : "") + (dimension < 0 ? "any" : std::to_string(dimension));
  return text + "]";
}

}  // namespace

std::string device_text(sq_device device) {
  return (device.kind == SQ_CUDA ? "cuda:" : device.kind == SQ_CPU ? "cpu:" : "device kind " + std::to_string(device.kind) + ":") + std::to_string(device.index);
}

void refuse(Code code, const Subject& subject, const std::string& message) {
  std::string where;
  if (!subject.layer.empty()) where = "layer '" + printable(subject.layer) + "'";
  if (!subject.tensor.empty()) where += (where.empty() ? "'" : ", '") + printable(subject.tensor) + "'";
  throw Error(code, where.empty() ? message : where + ": " + message, {}, printable(subject.layer), printable(subject.tensor));
}

const sq_tensor& check_tensor(const sq_context& context, const sq_tensor* tensor, const Subject& subject, std::initializer_list<std::int32_t> dtypes,
                              std::initializer_list<std::int64_t> shape, Access access) {
  if (!tensor) refuse(Code::CALL_NULL, subject, "tensor is missing");
  const sq_tensor& t = *tensor;
  if (std::find(dtypes.begin(), dtypes.end(), t.dtype) == dtypes.end()) {
    std::string names;
    for (const std::int32_t dtype : dtypes) names += (names.empty() ? "" : " or ") + std::string(dtype_name(dtype));
    refuse(Code::CALL_DTYPE, subject, "dtype is " + std::string(dtype_name(t.dtype)) + ", must be " + names);
  }
  if (t.rank < 0 || t.rank > SQ_MAX_RANK) refuse(Code::CALL_SHAPE, subject, "rank is " + std::to_string(t.rank) + ", must be " + std::to_string(shape.size()));
  if (!matches(t, shape)) refuse(Code::CALL_SHAPE, subject, "shape is " + shape_text(t) + ", must be " + wanted_text(shape));
  if (t.device.kind != SQ_CUDA || t.device.index != context.host.device.index)
    refuse(Code::CALL_DEVICE, subject, "tensor is on " + device_text(t.device) + ", must be on " + device_text(context.host.device));
  std::int64_t count = 1;
  for (std::int32_t i = 0; i < t.rank; ++i) count *= t.shape[i];
  if (count == 0) return t;
  if (!t.data) refuse(Code::CALL_NULL, subject, "data is null, but the shape is " + shape_text(t));
  if (reinterpret_cast<std::uintptr_t>(t.data) % dtype_bytes(t.dtype))
    refuse(Code::CALL_ALIGN, subject, "data is not aligned to its elements of " + std::to_string(dtype_bytes(t.dtype)) + " bytes");
  const std::int64_t columns = t.shape[t.rank - 1];
  if (columns > 1 && t.strides[t.rank - 1] != 1)
    refuse(Code::CALL_SHAPE, subject, "column stride is " + std::to_string(t.strides[t.rank - 1]) + ", must be 1");
  if (access == Access::write && t.rank == 2 && t.shape[0] > 1 && t.strides[0] < columns)
    refuse(Code::CALL_SHAPE, subject, "row stride is " + std::to_string(t.strides[0]) + ", must be at least the row length " + std::to_string(columns));
  return t;
}

void check_part_names(const sq_part* parts, std::uint32_t count, const std::string& layer, std::initializer_list<std::string_view> required,
                      std::initializer_list<std::string_view> optional, std::string_view format) {
  if (count && !parts) refuse(Code::CALL_NULL, {layer, ""}, "parts is null, but there are " + std::to_string(count));
  for (std::uint32_t i = 0; i < count; ++i) {
    if (!parts[i].name) refuse(Code::CALL_NULL, {layer, ""}, "part " + std::to_string(i) + " has no name");
    const std::string_view name = parts[i].name;
    const auto known = [name](std::initializer_list<std::string_view> names) { return std::find(names.begin(), names.end(), name) != names.end(); };
    if (!known(required) && !known(optional)) refuse(Code::CALL_VALUE, {layer, std::string(name)}, "'" + std::string(format) + "' has no such part");
    if (find_part(parts, i, name)) refuse(Code::CALL_VALUE, {layer, std::string(name)}, "part is given twice");
  }
  for (const std::string_view name : required)
    if (!find_part(parts, count, name)) refuse(Code::CALL_PART, {layer, std::string(name)}, "'" + std::string(format) + "' requires this part");
}

void check_format(const char* format, const std::string& layer) {
  if (!format) refuse(Code::CALL_NULL, {layer, ""}, "format is null, cuda knows 'bp8_v2'");
  if (std::string_view(format) != "bp8_v2") refuse(Code::CALL_UNSUPPORTED, {layer, ""}, "format is '" + printable(format) + "', cuda knows 'bp8_v2'");
}

}  // namespace squareq::cuda
