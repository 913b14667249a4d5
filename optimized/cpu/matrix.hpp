// Tensors of a call after their checks: plain matrices. Every check throws a CALL_* error that names the layer, the tensor and
// both values, before anything is written.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "squareq/contract.h"
#include "squareq/tensor.hpp"

namespace squareq::cpu {

/// A checked row-major matrix, column stride 1; `data` null means "not given".
struct Matrix {
  std::byte* data = nullptr;
  std::int32_t dtype = SQ_F32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;  // elements between rows; any value for inputs, rows never overlap in outputs
  bool given = false;

  explicit operator bool() const { return given; }
  bool is_16() const { return dtype == SQ_BF16 || dtype == SQ_F16; }

  template <class T>
  T* row(std::int64_t r) const {
    return reinterpret_cast<T*>(data) + r * stride;
  }
  /// Usable by BLAS as it lies: F32 with a leading dimension that BLAS can express.
  bool direct() const;
};

enum class Use { input, output };

/// What a tensor must be. A dimension of -1 is free.
struct Expect {
  std::initializer_list<std::int32_t> dtypes;
  std::int64_t rows;
  std::int64_t cols;
  Use use;
};

/// Checks an optional [rows, cols] tensor; not given when `t` is null.
Matrix check_matrix(const sq_tensor* t, const char* name, const std::string& layer, const Expect& expect);

/// As check_matrix, CALL_NULL where `t` is null.
Matrix require_matrix(const sq_tensor* t, const char* name, const std::string& layer, const Expect& expect);

/// A contiguous vector [length], as a matrix of one row. A length of -1 is free.
Matrix require_vector(const sq_tensor* t, const char* name, const std::string& layer, std::initializer_list<std::int32_t> dtypes, std::int64_t length);

/// Checks a tensor of any rank and strides.
void check_any(const sq_tensor* t, const char* name, std::initializer_list<std::int32_t> dtypes);

[[noreturn]] void refuse(sq_status code, const std::string& layer, const std::string& tensor, const std::string& what);

}  // namespace squareq::cpu
