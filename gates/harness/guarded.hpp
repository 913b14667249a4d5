// A tensor between sentinels. What a call must not touch is compared byte for byte afterwards; what it must write is poisoned before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "squareq/contract.h"

namespace squareq::gates {

enum class Role {
  in,     ///< every byte must be unchanged after the call
  out,    ///< poisoned before; every element must be written, nothing outside may be
  inout,  ///< every element may change, nothing outside may
};

/// A host tensor of rank 1 or 2, row-major, with an optional row stride. Row gaps and both ends hold sentinel bytes whose float value is
/// NaN, so that reading past a row poisons the result. For an implementation on a device the whole buffer, sentinels included, stands in
/// device memory while a call runs (placement.hpp). Movable, not copyable, not thread-safe.
class Guarded {
 public:
  Guarded() = default;
  /// `shape` [n] or [rows, columns]; `row_stride` in elements, 0 = dense; `shift` moves the first element that many elements off the
  /// 64-byte boundary on which it otherwise lies.
  Guarded(std::string name, Role role, std::int32_t dtype, std::vector<std::int64_t> shape, std::int64_t row_stride = 0, std::int64_t shift = 0);

  const sq_tensor* tensor() const { return &tensor_; }
  const std::string& name() const { return name_; }
  std::int64_t rows() const { return tensor_.rank == 2 ? tensor_.shape[0] : 1; }
  std::int64_t columns() const { return tensor_.rank == 2 ? tensor_.shape[1] : tensor_.shape[0]; }
  std::int64_t count() const { return rows() * columns(); }
  std::int32_t dtype() const { return tensor_.dtype; }

  /// Element [row, column] as a double (exact for every dtype but I64 above 2^53).
  double at(std::int64_t row, std::int64_t column) const;
  double at(std::int64_t index) const { return at(index / columns(), index % columns()); }
  /// Rounds `value` to the dtype (nearest even) and stores it.
  void set(std::int64_t row, std::int64_t column, double value);
  void set(std::int64_t index, double value) { set(index / columns(), index % columns(), value); }
  /// Sets every element in row-major order.
  void fill(const std::function<double()>& next);
  void fill(double value) {
    fill([value] { return value; });
  }
  /// Every element, row-major.
  std::vector<double> values() const;
  /// The elements' own bytes, row-major without gaps.
  std::vector<std::byte> bytes() const;
  void set_bytes(std::span<const std::byte> dense);

  /// Before a call: poisons an `out` tensor and remembers every byte.
  void arm();
  /// After a call that returned SQ_OK: what is wrong with this tensor's bytes; empty if nothing.
  std::string damage_after_success() const;
  /// After a refused call: nothing at all may have changed.
  std::string damage_after_refusal() const;

 private:
  std::size_t offset(std::int64_t row, std::int64_t column) const;
  void write_poison();
  bool is_poison(const std::byte* element) const;
  std::string changed_outside_elements() const;

  struct Free {
    void operator()(std::byte* p) const;
  };
  std::string name_;
  Role role_ = Role::in;
  sq_tensor tensor_{};
  std::unique_ptr<std::byte[], Free> memory_;
  std::size_t bytes_ = 0;         // of memory_
  std::size_t first_ = 0;         // offset of the first element
  std::size_t element_ = 1;       // bytes per element
  std::vector<std::byte> before_; // all of memory_ when armed
};

}  // namespace squareq::gates
