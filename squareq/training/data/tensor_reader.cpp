#include "squareq/training/data/tensor_reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "squareq/error.hpp"
#include "squareq/text.hpp"
#include "squareq/training/data/float_convert.hpp"

namespace squareq::training {

namespace {

template <class T>
T element(const std::byte* bytes, std::uint64_t i) {
  T value;
  std::memcpy(&value, bytes + i * sizeof(T), sizeof(T));
  return value;
}

float convert(FileDtype dtype, const std::byte* bytes, std::uint64_t i) {
  switch (dtype) {
    case FileDtype::F32: return element<float>(bytes, i);
    case FileDtype::BF16: return float_from_bf16(element<std::uint16_t>(bytes, i));
    case FileDtype::F16: return float_from_f16(element<std::uint16_t>(bytes, i));
    default: return static_cast<float>(element<double>(bytes, i));
  }
}

}  // namespace

bool is_float_tensor(FileDtype dtype) {
  return dtype == FileDtype::F64 || dtype == FileDtype::F32 || dtype == FileDtype::BF16 || dtype == FileDtype::F16;
}

void read_floats(const SafetensorsFile& file, const TensorRecord& tensor, std::uint64_t first, std::uint64_t count, float* out) {
  if (!is_float_tensor(tensor.dtype))
    throw Error(Code::DS_SHAPE,
                fmt::format("{}: '{}' is {}, expected F16, BF16, F32 or F64", printable_path(file.path()), printable(tensor.name),
                            dtype_name(tensor.dtype)),
                printable_path(file.path()), {}, printable(tensor.name));
  const std::uint64_t size = dtype_bits(tensor.dtype) / 8;
  if (tensor.dtype == FileDtype::F32) return file.read(tensor, first * size, out, count * size);
  constexpr std::uint64_t piece = 1 << 16;
  std::vector<std::byte> buffer(std::min(piece, count) * size);
  for (std::uint64_t at = 0; at < count; at += piece) {
    const std::uint64_t n = std::min(piece, count - at);
    file.read(tensor, (first + at) * size, buffer.data(), n * size);
    for (std::uint64_t i = 0; i < n; ++i) out[at + i] = convert(tensor.dtype, buffer.data(), i);
  }
}

std::vector<float> read_floats(const SafetensorsFile& file, const TensorRecord& tensor) {
  std::vector<float> values(tensor.elements());
  read_floats(file, tensor, 0, values.size(), values.data());
  return values;
}

double read_number(const SafetensorsFile& file, const TensorRecord& tensor) {
  if (tensor.elements() != 1)
    throw Error(Code::DS_SHAPE, fmt::format("'{}' has {} elements, expected one", printable(tensor.name), tensor.elements()),
                printable_path(file.path()));
  std::byte bytes[8];
  if (tensor.dtype == FileDtype::I64 || tensor.dtype == FileDtype::I32 || tensor.dtype == FileDtype::F64) {
    file.read(tensor, 0, bytes, dtype_bits(tensor.dtype) / 8);
    if (tensor.dtype == FileDtype::I64) return static_cast<double>(element<std::int64_t>(bytes, 0));
    if (tensor.dtype == FileDtype::I32) return element<std::int32_t>(bytes, 0);
    return element<double>(bytes, 0);
  }
  float value = 0;
  read_floats(file, tensor, 0, 1, &value);
  return value;
}

}  // namespace squareq::training
