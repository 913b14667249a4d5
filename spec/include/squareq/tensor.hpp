// Small helpers around sq_tensor and sq_dtype that every C++ user of the contract needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "squareq/contract.h"

namespace squareq {

constexpr std::size_t dtype_bytes(std::int32_t dtype) {
  switch (dtype) {
    case SQ_F64: case SQ_I64: return 8;
    case SQ_F32: case SQ_I32: return 4;
    case SQ_F16: case SQ_BF16: return 2;
    default: return 1;
  }
}

constexpr std::string_view dtype_name(std::int32_t dtype) {
  switch (dtype) {
    case SQ_F32: return "f32";
    case SQ_F16: return "f16";
    case SQ_BF16: return "bf16";
    case SQ_F64: return "f64";
    case SQ_I8: return "i8";
    case SQ_U8: return "u8";
    case SQ_I32: return "i32";
    case SQ_I64: return "i64";
    default: return "unknown dtype";
  }
}

/// A contiguous row-major view.
inline sq_tensor make_tensor(const void* data, std::int32_t dtype, std::span<const std::int64_t> shape, sq_device device = {SQ_CPU, 0}) {
  sq_tensor t{};
  t.data = const_cast<void*>(data);
  t.dtype = dtype;
  t.rank = static_cast<std::int32_t>(shape.size());
  t.device = device;
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    t.shape[i] = shape[i];
    t.strides[i] = stride;
    stride *= shape[i];
  }
  return t;
}

inline sq_tensor make_tensor(const void* data, std::int32_t dtype, std::initializer_list<std::int64_t> shape, sq_device device = {SQ_CPU, 0}) {
  return make_tensor(data, dtype, std::span<const std::int64_t>(shape.begin(), shape.size()), device);
}

/// "[4, 64]"
inline std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

inline std::string shape_text(const sq_tensor& t) {
  return shape_text(std::span<const std::int64_t>(t.shape, static_cast<std::size_t>(t.rank)));
}

inline const sq_part* find_part(const sq_part* parts, std::uint32_t count, std::string_view name) {
  for (std::uint32_t i = 0; i < count; ++i)
    if (name == parts[i].name) return &parts[i];
  return nullptr;
}

}  // namespace squareq
