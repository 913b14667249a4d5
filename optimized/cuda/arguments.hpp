// Checks on what a caller hands in. Every message names the layer, the tensor and both values: what was given and what is needed.
#pragma once

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <string>
#include <string_view>

#include "squareq/contract.h"
#include "squareq/error.hpp"
#include "squareq/tensor.hpp"

struct sq_context;

namespace squareq::cuda {

/// A full-size copy of a caller's struct: fields that the caller's version did not have read as zero. Throws CALL_NULL, CALL_VALUE.
template <class T>
T read_struct(const T* given, const char* name) {
  if (!given) throw Error(Code::CALL_NULL, std::string(name) + " is null");
  if (given->size < sizeof(std::uint64_t))
    throw Error(Code::CALL_VALUE, std::string(name) + ".size is " + std::to_string(given->size) + ", must be sizeof(" + name + ")");
  T value{};
  std::memcpy(&value, given, std::min<std::size_t>(given->size, sizeof(T)));
  return value;
}

std::string device_text(sq_device device);

/// The layer and the tensor that an error names.
struct Subject {
  std::string layer;
  std::string tensor;
};
[[noreturn]] void refuse(Code code, const Subject& subject, const std::string& message);

enum class Access { read, write };

/// A required tensor of `shape`, one of `dtypes`, on the context's device, aligned to its elements, with column stride 1. Rows may have any
/// stride when read; when written they may not overlap. A negative entry of `shape` admits any size. Throws CALL_NULL, CALL_DTYPE,
/// CALL_SHAPE, CALL_DEVICE, CALL_ALIGN.
const sq_tensor& check_tensor(const sq_context& context, const sq_tensor* tensor, const Subject& subject, std::initializer_list<std::int32_t> dtypes,
                              std::initializer_list<std::int64_t> shape, Access access = Access::read);

/// Names must be known to `format` and given once (CALL_VALUE), the required ones present (CALL_PART).
void check_part_names(const sq_part* parts, std::uint32_t count, const std::string& layer, std::initializer_list<std::string_view> required,
                      std::initializer_list<std::string_view> optional, std::string_view format = "bp8_v2");

/// Throws CALL_NULL where `format` is null, CALL_UNSUPPORTED, naming both, where it is not "bp8_v2".
void check_format(const char* format, const std::string& layer);

}  // namespace squareq::cuda
