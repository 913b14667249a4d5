// What every test of the reference needs: the loaded library, an allocator that counts and can fail, owned tensors, expected errors.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "squareq/contract.hpp"

namespace squareq::tests {

/// An allocator that counts bytes per kind and fails when told to.
class CountingAllocator {
 public:
  CountingAllocator() : table_{sizeof(sq_allocator), 0, this, allocate, release} {}
  const sq_allocator* table() const { return &table_; }
  std::int64_t live(std::int32_t kind) const { return live_[kind]; }
  std::int64_t live() const { return live_[0] + live_[1] + live_[2] + live_[3]; }
  std::int64_t calls() const { return calls_; }
  void fail_at(std::int64_t call) { fail_at_ = call; }  // the call with this number (from 0) and all later ones fail; -1: none

 private:
  static void* allocate(void* user, std::int32_t kind, std::uint64_t bytes, std::uint64_t alignment, sq_stream_handle, const char*) {
    auto* self = static_cast<CountingAllocator*>(user);
    const std::int64_t call = self->calls_++;
    if (self->fail_at_ >= 0 && call >= self->fail_at_) return nullptr;
    void* pointer = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    std::memset(pointer, 0xCD, bytes);
    self->live_[kind] += static_cast<std::int64_t>(bytes);
    return pointer;
  }
  static void release(void* user, void* pointer, std::int32_t kind, std::uint64_t bytes, sq_stream_handle) {
    static_cast<CountingAllocator*>(user)->live_[kind] -= static_cast<std::int64_t>(bytes);
    std::free(pointer);
  }

  sq_allocator table_;
  std::atomic<std::int64_t> live_[4] = {};
  std::atomic<std::int64_t> calls_{0}, fail_at_{-1};
};

inline Context make_context(const sq_allocator* allocator = nullptr, std::uint32_t threads = 2) {
  sq_host host{};
  host.threads = threads;
  host.deterministic = 1;
  host.allocator = allocator;
  return Context(Implementation::load(find_backend("reference")), host);
}

/// Owned bytes with a view; rows may lie further apart than they are long, the gaps then hold a sentinel.
struct Tensor {
  static constexpr std::byte sentinel{0x5A};
  std::vector<std::byte> bytes;
  sq_tensor view{};

  Tensor() = default;
  Tensor(std::int32_t dtype, std::vector<std::int64_t> shape, std::int64_t row_stride = 0) {
    view = make_tensor(nullptr, dtype, shape);
    std::int64_t count = 1;
    for (const std::int64_t d : shape) count *= d;
    if (row_stride) {
      view.strides[0] = row_stride;
      count = shape[0] * row_stride;
    }
    bytes.assign(static_cast<std::size_t>(count) * dtype_bytes(dtype), sentinel);
  }
  const sq_tensor* operator&() {
    view.data = bytes.data();
    return &view;
  }
  sq_tensor get() { return *&*this; }
  std::int64_t rows() const { return view.rank == 2 ? view.shape[0] : 1; }
  std::int64_t columns() const { return view.rank == 0 ? 1 : view.shape[view.rank - 1]; }
  std::size_t offset(std::int64_t row, std::int64_t column) const {
    return static_cast<std::size_t>((view.rank == 2 ? row * view.strides[0] : 0) + column) * dtype_bytes(view.dtype);
  }
  template <class T>
  T& at(std::int64_t row, std::int64_t column) { return *reinterpret_cast<T*>(bytes.data() + offset(row, column)); }
  double value(std::int64_t row, std::int64_t column) const {
    const std::byte* p = bytes.data() + offset(row, column);
    const auto read = [&]<class T>(T v) { std::memcpy(&v, p, sizeof v); return v; };
    switch (view.dtype) {
      case SQ_F64: return read(double{});
      case SQ_F32: return static_cast<double>(read(float{}));
      case SQ_BF16: return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(read(std::uint16_t{})) << 16));
      case SQ_F16: {
        const std::uint16_t h = read(std::uint16_t{});
        const int exponent = (h >> 10) & 31;
        const double mantissa = h & 1023;
        const double magnitude = exponent == 31 ? (mantissa ? std::nan("") : HUGE_VAL)
                                 : exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
        return h & 0x8000 ? -magnitude : magnitude;
      }
      case SQ_I64: return static_cast<double>(read(std::int64_t{}));
      default: return static_cast<double>(read(std::int8_t{}));
    }
  }
  /// Whether every gap between the rows still holds the sentinel.
  bool gaps_intact() const {
    if (view.rank != 2) return true;
    for (std::int64_t r = 0; r < view.shape[0]; ++r)
      for (std::size_t i = offset(r, view.shape[1]); i < offset(r + 1, 0); ++i)
        if (bytes[i] != sentinel) return false;
    return true;
  }
};

template <class T>
Tensor tensor_of(std::int32_t dtype, std::vector<std::int64_t> shape, const std::vector<T>& values) {
  Tensor t(dtype, std::move(shape));
  if (!values.empty()) std::memcpy(t.bytes.data(), values.data(), t.bytes.size());
  return t;
}

/// Runs `action`, which must throw an Error with this code; returns it for further checks.
inline Problem expect_error(Code code, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    EXPECT_EQ(code_name(e.code()), code_name(code)) << e.what();
    return e.problem();
  }
  ADD_FAILURE() << "expected " << code_name(code) << ", nothing was thrown";
  return {};
}

inline bool mentions(const std::string& text, std::initializer_list<std::string> words) {
  for (const std::string& word : words)
    if (text.find(word) == std::string::npos) return false;
  return true;
}

}  // namespace squareq::tests
