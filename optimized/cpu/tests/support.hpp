// What the tests of this backend share: loading it, tensors with sentinels around every row, an allocator that counts and fails.
// Nothing here includes the backend: it is reached through the contract only.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "squareq/contract.hpp"

namespace squareq::test {

inline Implementation backend() { return Implementation::load(find_backend("cpu")); }

inline Context make_context(const sq_allocator* allocator = nullptr, std::uint32_t threads = 0) {
  auto host = sized<sq_host>();
  host.allocator = allocator;
  host.threads = threads;
  host.deterministic = 1;
  return Context(backend(), host);
}

// Scalar conversions, written from the definitions of the types.
inline float from_bits(std::uint32_t b) { float f; std::memcpy(&f, &b, 4); return f; }
inline std::uint32_t to_bits(float f) { std::uint32_t b; std::memcpy(&b, &f, 4); return b; }

/// Rounds a finite double to the nearest value of `dtype`, ties to even.
inline double round_to(std::int32_t dtype, double v) {
  if (dtype == SQ_F64) return v;
  if (dtype == SQ_F32) return static_cast<float>(v);
  const int digits = dtype == SQ_BF16 ? 8 : 11;
  const int lowest = dtype == SQ_BF16 ? -126 : -14;
  if (v == 0 || !std::isfinite(v)) return v;
  const int exponent = std::max(std::ilogb(v), lowest);
  const double unit = std::ldexp(1.0, exponent - digits + 1);
  return std::nearbyint(v / unit) * unit;
}

inline double read_element(const std::byte* p, std::int32_t dtype) {
  std::uint16_t h = 0;
  float f = 0;
  double d = 0;
  std::int64_t l = 0;
  switch (dtype) {
    case SQ_F32: std::memcpy(&f, p, 4); return f;
    case SQ_F64: std::memcpy(&d, p, 8); return d;
    case SQ_I64: std::memcpy(&l, p, 8); return static_cast<double>(l);
    case SQ_I8: return static_cast<double>(static_cast<std::int8_t>(*p));
    case SQ_BF16: std::memcpy(&h, p, 2); return from_bits(static_cast<std::uint32_t>(h) << 16);
    default: {
      std::memcpy(&h, p, 2);
      const int exponent = (h >> 10) & 31, fraction = h & 1023;
      double v = exponent == 0 ? std::ldexp(fraction, -24) : exponent == 31 ? (fraction ? NAN : INFINITY) : std::ldexp(1024 + fraction, exponent - 25);
      return h & 0x8000 ? -v : v;
    }
  }
}

inline void write_element(std::byte* p, std::int32_t dtype, double v) {
  const double r = round_to(dtype, v);
  const auto f = static_cast<float>(r);
  if (dtype == SQ_F32) std::memcpy(p, &f, 4);
  if (dtype == SQ_F64) std::memcpy(p, &r, 8);
  if (dtype == SQ_I8) *p = static_cast<std::byte>(static_cast<std::int8_t>(v));
  if (dtype == SQ_I64) { const auto l = static_cast<std::int64_t>(v); std::memcpy(p, &l, 8); }
  if (dtype == SQ_BF16) { const auto h = static_cast<std::uint16_t>(to_bits(f) >> 16); std::memcpy(p, &h, 2); }
  if (dtype == SQ_F16) {
    const double a = std::fabs(r);
    std::uint16_t h = std::signbit(r) ? 0x8000 : 0;
    if (a >= 65536) h |= 0x7C00;
    else if (a < std::ldexp(1.0, -14)) h |= static_cast<std::uint16_t>(std::ldexp(a, 24));
    else h |= static_cast<std::uint16_t>(((std::ilogb(a) + 15) << 10) + static_cast<int>(std::ldexp(a, 10 - std::ilogb(a))) - 1024);
    std::memcpy(p, &h, 2);
  }
}

/// A tensor of rank 1 or 2 with `gap` unused elements after each row and a guard before and after, all 0xA7 bytes.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::int32_t dtype, std::vector<std::int64_t> shape, std::int64_t gap = 0) : dtype_(dtype), shape_(std::move(shape)) {
    cols_ = shape_.back();
    rows_ = 1;
    for (std::size_t d = 0; d + 1 < shape_.size(); ++d) rows_ *= shape_[d];
    stride_ = cols_ + gap;
    bytes_.assign(static_cast<std::size_t>(rows_ * stride_) * dtype_bytes(dtype) + 2 * kGuard, std::byte{0xA7});
    for (std::int64_t i = 0; i < rows_ * cols_; ++i) set(i, 0);
  }

  std::int64_t size() const { return rows_ * cols_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int32_t dtype() const { return dtype_; }
  std::byte* at(std::int64_t i) { return bytes_.data() + kGuard + static_cast<std::size_t>((cols_ ? i / cols_ * stride_ + i % cols_ : 0)) * dtype_bytes(dtype_); }
  double get(std::int64_t i) const { return read_element(const_cast<Buffer*>(this)->at(i), dtype_); }
  double get(std::int64_t r, std::int64_t c) const { return get(r * cols_ + c); }
  void set(std::int64_t i, double v) { write_element(at(i), dtype_, v); }

  const sq_tensor* tensor() {
    view_ = make_tensor(bytes_.data() + kGuard, dtype_, shape_);
    if (shape_.size() == 2) view_.strides[0] = stride_;
    return &view_;
  }
  /// The bytes between and around the rows are still those of the constructor.
  bool intact() const {
    std::vector<bool> used(bytes_.size(), false);
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::size_t b = 0; b < static_cast<std::size_t>(cols_) * dtype_bytes(dtype_); ++b)
        used[kGuard + static_cast<std::size_t>(r * stride_) * dtype_bytes(dtype_) + b] = true;
    for (std::size_t b = 0; b < bytes_.size(); ++b)
      if (!used[b] && bytes_[b] != std::byte{0xA7}) return false;
    return true;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kGuard = 64;
  std::int32_t dtype_ = SQ_F32;
  std::vector<std::int64_t> shape_{0};
  std::int64_t rows_ = 0, cols_ = 0, stride_ = 0;
  std::vector<std::byte> bytes_;
  sq_tensor view_{};
};

/// A bp8_v2 weight over buffers.
struct TestWeight {
  Buffer q, scale, zero_point, bias;
  std::vector<sq_part> parts;
  sq_weight weight = sized<sq_weight>();
  sq_weight_ref ref = sized<sq_weight_ref>();

  void bind(std::int64_t out, std::int64_t in, bool with_bias) {
    parts = {{"qweight", *q.tensor()}, {"scale", *scale.tensor()}, {"zero_point", *zero_point.tensor()}};
    if (with_bias) parts.push_back({"bias", *bias.tensor()});
    weight.format = "bp8_v2";
    weight.name = "blocks.0.proj";
    weight.out_features = out;
    weight.in_features = in;
    weight.parts = parts.data();
    weight.part_count = static_cast<std::uint32_t>(parts.size());
    ref.weight = &weight;
  }
};

/// Counts bytes by kind; fails call number `fail_at` (from 0) when set. Thread-safe.
class CountingAllocator {
 public:
  CountingAllocator() {
    table_.size = sizeof table_;
    table_.user = this;
    table_.allocate = [](void* user, std::int32_t kind, std::uint64_t bytes, std::uint64_t alignment, sq_stream_handle, const char*) {
      return static_cast<CountingAllocator*>(user)->allocate(kind, bytes, alignment);
    };
    table_.release = [](void* user, void* pointer, std::int32_t kind, std::uint64_t bytes, sq_stream_handle) {
      static_cast<CountingAllocator*>(user)->release(pointer, kind, bytes);
    };
  }
  const sq_allocator* table() const { return &table_; }
  std::uint64_t now(std::int32_t kind) { const std::lock_guard lock(mutex_); return now_[kind]; }
  std::uint64_t peak(std::int32_t kind) { const std::lock_guard lock(mutex_); return peak_[kind]; }
  std::int64_t calls() const { return calls_; }
  std::uint64_t live() { const std::lock_guard lock(mutex_); return live_.size(); }
  void fail_at(std::int64_t call) { calls_ = 0; fail_at_ = call; }

 private:
  void* allocate(std::int32_t kind, std::uint64_t bytes, std::uint64_t alignment) {
    if (calls_++ == fail_at_) return nullptr;
    void* p = ::operator new(bytes, std::align_val_t(alignment));
    std::memset(p, 0x5C, bytes);
    const std::lock_guard lock(mutex_);
    live_[p] = {kind, bytes, alignment};
    now_[kind] += bytes;
    peak_[kind] = std::max(peak_[kind], now_[kind]);
    return p;
  }
  void release(void* p, std::int32_t kind, std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = live_.find(p);
    ASSERT_NE(found, live_.end()) << "released twice or never allocated";
    EXPECT_EQ(found->second.kind, kind);
    EXPECT_EQ(found->second.bytes, bytes);
    now_[kind] -= bytes;
    ::operator delete(p, std::align_val_t(found->second.alignment));
    live_.erase(found);
  }
  struct Record { std::int32_t kind; std::uint64_t bytes; std::uint64_t alignment; };
  sq_allocator table_{};
  std::mutex mutex_;
  std::map<void*, Record> live_;
  std::map<std::int32_t, std::uint64_t> now_, peak_;
  std::atomic<std::int64_t> calls_{0};
  std::int64_t fail_at_ = -1;
};

/// The code of the Error that `body` throws; OK where it throws none. The message is left in `*message`.
template <class Body>
Code code_of(const Body& body, std::string* message = nullptr) {
  try {
    body();
    return Code::OK;
  } catch (const Error& e) {
    if (message != nullptr) *message = e.what();
    return e.code();
  }
}

}  // namespace squareq::test
