// How tensors travel: one safetensors file with the inputs of a call, one with its outputs (spec/95-adapter-protocol.md).
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "squareq/contract.h"

namespace squareq::gates::adapter {

/// A tensor of the caller under its name in the protocol. `blank`: its bytes are not looked at, zeros travel instead.
struct NamedTensor {
  std::string name;
  const sq_tensor* tensor = nullptr;
  bool blank = false;
};

/// "F32", "BF16", ...; "#17" for a number that is no sq_dtype.
std::string protocol_dtype(std::int32_t dtype);

/// Writes the elements, row-major without gaps whatever the strides, as one file. Throws Error(IO_*).
void write_inputs(const std::filesystem::path& path, const std::vector<NamedTensor>& inputs);

/// Reads the file that the adapter wrote, demands exactly the named tensors with exactly their dtypes and shapes, and only then copies them
/// into the caller's memory, elements only. Throws Fault(protocol) that names the file, the tensor and both values.
void read_outputs(const std::filesystem::path& path, const std::vector<NamedTensor>& outputs);

}  // namespace squareq::gates::adapter
