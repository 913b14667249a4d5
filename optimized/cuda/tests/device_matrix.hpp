// Matrices of any dtype in device memory, rows apart by a stride, every byte around and between the rows a sentinel.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>

#include "optimized/cuda/tests/device_memory.hpp"

namespace squareq::cuda_tests {

/// `v` rounded to `dtype`, ties to even.
inline double rounded(std::int32_t dtype, double v) {
  if (dtype == SQ_F64 || v == 0 || !std::isfinite(v)) return v;
  if (dtype == SQ_F32) return static_cast<float>(v);
  const int digits = dtype == SQ_BF16 ? 8 : 11, lowest = dtype == SQ_BF16 ? -126 : -14;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(v), lowest) - digits + 1);
  const double result = std::nearbyint(v / unit) * unit, largest = dtype == SQ_BF16 ? 0x1.FEp127 : 65504.0;
  return std::fabs(result) > largest ? std::copysign(HUGE_VAL, v) : result;
}

class DeviceMatrix {
 public:
  DeviceMatrix() = default;
  /// `shift` elements lie between the start of the allocation and the first one: shifts the address off any alignment.
  DeviceMatrix(std::int32_t dtype, std::int64_t rows, std::int64_t columns, std::int64_t stride = 0, std::int64_t shift = 0)
      : dtype_(dtype), rows_(rows), columns_(columns), stride_(stride ? stride : columns), shift_(shift) {
    const std::int64_t elements = shift + (rows ? (rows - 1) * stride_ + columns : 0);
    host_.assign(static_cast<std::size_t>(elements) * dtype_bytes(dtype), 0xCD);
    device_ = std::make_unique<DeviceBytes>(host_.size());
  }

  explicit operator bool() const { return device_ != nullptr; }
  std::int32_t dtype() const { return dtype_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }
  std::int64_t count() const { return rows_ * columns_; }

  void set(std::int64_t r, std::int64_t c, double v) {
    unsigned char* p = host_.data() + offset(r, c);
    const auto put = [p](auto x) { std::memcpy(p, &x, sizeof x); };
    switch (dtype_) {
      case SQ_F32: put(static_cast<float>(v)); break;
      case SQ_F64: put(v); break;
      case SQ_BF16:
        put(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(rounded(SQ_BF16, v))) >> 16 |
                                       (std::isnan(v) ? 0x40u : 0u)));
        break;
      case SQ_F16: put(static_cast<_Float16>(v)); break;
      case SQ_I64: put(static_cast<std::int64_t>(v)); break;
      default: put(static_cast<std::int8_t>(v));
    }
  }
  double get(std::int64_t r, std::int64_t c) const {
    const unsigned char* p = host_.data() + offset(r, c);
    const auto take = [p](auto x) { std::memcpy(&x, p, sizeof x); return x; };
    switch (dtype_) {
      case SQ_F32: return static_cast<double>(take(float{}));
      case SQ_F64: return take(double{});
      case SQ_BF16: return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(take(std::uint16_t{})) << 16));
      case SQ_F16: return static_cast<double>(take(_Float16{}));
      case SQ_I64: return static_cast<double>(take(std::int64_t{}));
      default: return static_cast<double>(take(std::int8_t{}));
    }
  }
  template <class Fill>
  void fill(const Fill& f) {
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::int64_t c = 0; c < columns_; ++c) set(r, c, f(r, c));
    upload();
  }
  void upload() {
    if (!host_.empty()) device_->write(host_.data());
  }
  void download() { host_ = device_->read<unsigned char>(); }
  const std::vector<unsigned char>& bytes() const { return host_; }

  /// After a download: nothing outside the elements was written.
  bool intact() const {
    std::vector<bool> used(host_.size(), false);
    for (std::int64_t r = 0; r < rows_ && columns_; ++r)
      std::fill_n(used.begin() + static_cast<std::ptrdiff_t>(offset(r, 0)), static_cast<std::size_t>(columns_) * dtype_bytes(dtype_), true);
    for (std::size_t i = 0; i < host_.size(); ++i)
      if (!used[i] && host_[i] != 0xCD) return false;
    return device_->guards_intact();
  }

  /// As a matrix, or as a vector of `columns` elements.
  sq_tensor* tensor(bool vector = false) {
    void* data = host_.empty() ? nullptr : static_cast<unsigned char*>(device_->data()) + static_cast<std::size_t>(shift_) * dtype_bytes(dtype_);
    view_ = vector ? make_tensor(data, dtype_, {columns_}, {SQ_CUDA, 0}) : make_tensor(data, dtype_, {rows_, columns_}, {SQ_CUDA, 0});
    if (!vector) view_.strides[0] = stride_;
    return &view_;
  }

 private:
  std::size_t offset(std::int64_t r, std::int64_t c) const { return static_cast<std::size_t>(shift_ + r * stride_ + c) * dtype_bytes(dtype_); }
  std::int32_t dtype_ = SQ_F32;
  std::int64_t rows_ = 0, columns_ = 0, stride_ = 0, shift_ = 0;
  std::vector<unsigned char> host_;
  std::unique_ptr<DeviceBytes> device_;
  sq_tensor view_{};
};

/// A weight of format bp8_v2 on the device: codes with garbage in the padding, scales, zero points, perhaps a bias.
struct DeviceWeight {
  DeviceMatrix q, scale, zero_point, bias;
  std::vector<sq_part> parts;
  sq_weight weight = sized<sq_weight>();
  sq_weight_ref ref = sized<sq_weight_ref>();

  void bind(std::int64_t in) {
    parts = {{"qweight", *q.tensor()}, {"scale", *scale.tensor(true)}};
    if (zero_point) parts.push_back({"zero_point", *zero_point.tensor(true)});
    if (bias) parts.push_back({"bias", *bias.tensor(true)});
    weight.format = "bp8_v2";
    weight.name = "blocks.0.proj";
    weight.out_features = q.rows();
    weight.in_features = in;
    weight.parts = parts.data();
    weight.part_count = static_cast<std::uint32_t>(parts.size());
    ref.weight = &weight;
  }
};

/// Kernels that the tests go through: a context each, the faster ones forbidden.
inline constexpr const char* kKernels[] = {"mma_few_rows", "wgmma_tma", "mma_sync", "plain_fp32"};

/// The kernel that `op` would run, from explain().
inline std::string kernel_of(const Context& context, std::int32_t op, const void* args) {
  std::string text;
  sq_error e = make_error();
  check(context.linear().explain(context.get(), op, args, append_text, &text, &e), e);
  return nlohmann::json::parse(text).at("kernel");
}

}  // namespace squareq::cuda_tests
