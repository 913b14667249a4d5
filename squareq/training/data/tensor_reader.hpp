// Tensors of a safetensors file as floats.
#pragma once

#include <cstdint>
#include <vector>

#include "squareq/slab/safetensors.hpp"

namespace squareq::training {

/// F64, F32, BF16 or F16.
bool is_float_tensor(FileDtype dtype);

/// Elements [first, first + count) as float (F64 rounds to nearest). Throws DS_SHAPE for a dtype that is no float (a caller that wants
/// another code asks is_float_tensor first) and the codes of SafetensorsFile::read.
void read_floats(const SafetensorsFile& file, const TensorRecord& tensor, std::uint64_t first, std::uint64_t count, float* out);
std::vector<float> read_floats(const SafetensorsFile& file, const TensorRecord& tensor);

/// A tensor of one element, of any float dtype or I64, I32, as a number.
double read_number(const SafetensorsFile& file, const TensorRecord& tensor);

}  // namespace squareq::training
