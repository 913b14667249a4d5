// Checks on what a caller hands in. Every message names the tensor and both values: what was given and what is needed.
#pragma once

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "squareq/contract.h"
#include "squareq/error.hpp"
#include "squareq/tensor.hpp"

namespace squareq::reference {

/// A full-size copy of a caller's struct: fields that the caller's version did not have read as zero. Throws CALL_NULL, CALL_VALUE.
template <class T>
T read_struct(const T* given, const char* name) {
  if (!given) throw Error(Code::CALL_NULL, std::string(name) + " is null");
  if (given->size < 8) throw Error(Code::CALL_VALUE, std::string(name) + ".size is " + std::to_string(given->size) + ", must be sizeof(" + name + ")");
  T value{};
  std::memcpy(&value, given, std::min<std::size_t>(given->size, sizeof(T)));
  return value;
}

/// Writes `value` into the caller's struct, no further than the caller's version of it reaches.
template <class T>
void write_struct(T* target, T value, const char* name) {
  if (!target) throw Error(Code::CALL_NULL, std::string(name) + " is null");
  if (target->size < 8) throw Error(Code::CALL_VALUE, std::string(name) + ".size is " + std::to_string(target->size) + ", must be sizeof(" + name + ")");
  value.size = target->size;
  std::memcpy(target, &value, std::min<std::size_t>(target->size, sizeof(T)));
}

std::string device_text(sq_device device);

/// Who is asking: the layer and the tensor that an error names.
struct Subject {
  std::string layer;
  std::string tensor;
};
[[noreturn]] void refuse(Code code, const Subject& subject, const std::string& message);

enum class Access { read, write };

/// A required tensor of exactly `shape`, one of `dtypes`, on the CPU, aligned to its element, column stride 1. Rows may have any
/// stride when read; when written they may not overlap. Throws CALL_NULL, CALL_DTYPE, CALL_SHAPE, CALL_DEVICE, CALL_ALIGN.
const sq_tensor& check_tensor(const sq_tensor* tensor, const Subject& subject, std::initializer_list<std::int32_t> dtypes,
                              std::initializer_list<std::int64_t> shape, Access access);

/// As check_tensor, but the number of rows is the tensor's own.
const sq_tensor& check_rows(const sq_tensor* tensor, const Subject& subject, std::initializer_list<std::int32_t> dtypes, std::int64_t columns, Access access);

/// The part of that name, or CALL_PART. Part names may not repeat and must be among `known` (CALL_VALUE).
void check_part_names(const sq_part* parts, std::uint32_t count, const std::string& layer, const std::string& format,
                      std::initializer_list<std::string_view> required, std::initializer_list<std::string_view> optional);

}  // namespace squareq::reference
