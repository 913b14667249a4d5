// A safetensors file in memory, read by the suite's own few lines: the reader under test is not used to judge itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gates/harness/guarded.hpp"

namespace squareq::gates {

struct FileTensor {
  std::string dtype;  // "F32", ...
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

/// `file` must outlive the result. For well-formed files of the suite's own only.
std::map<std::string, FileTensor> read_tensors(std::string_view file);

/// "F32" -> SQ_F32; throws Error(INTERNAL) for a dtype that the contract does not have.
std::int32_t contract_dtype(std::string_view safetensors_name);

/// A guarded copy; rank 2 keeps its shape, `row_stride` as in Guarded.
Guarded guarded(const std::string& name, Role role, const FileTensor& tensor, std::int64_t row_stride = 0);

/// The bytes of a safetensors file with these tensors, F32 only, in the order given (a legal, not the canonical order).
std::string write_tensors(const std::vector<std::pair<std::string, const Guarded*>>& tensors);

}  // namespace squareq::gates
