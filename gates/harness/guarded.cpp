#include "gates/harness/guarded.hpp"

#include <cmath>
#include <cstring>
#include <new>

#include "gates/harness/half.hpp"
#include "gates/harness/placement.hpp"
#include "squareq/tensor.hpp"

namespace squareq::gates {
namespace {

// One page on either side. The sentinel byte makes every float dtype a NaN and every int8 the code -1, which is not the poison.
constexpr std::size_t fence = 4096;
constexpr std::byte sentinel{0xFF};

// A quiet NaN with a payload that no arithmetic produces; integers: a value that the operations under test never produce.
template <class T>
void poison_bits(std::byte* p, T bits) {
  std::memcpy(p, &bits, sizeof bits);
}

void poison(std::int32_t dtype, std::byte* p) {
  switch (dtype) {
    case SQ_F64: return poison_bits(p, std::uint64_t{0x7FFBADBADBADBADBull});
    case SQ_I64: return poison_bits(p, std::uint64_t{0x8BADBADBADBADBADull});
    case SQ_F32: return poison_bits(p, std::uint32_t{0x7FEBADBAu});
    case SQ_I32: return poison_bits(p, std::uint32_t{0x8BADBADBu});
    case SQ_F16: return poison_bits(p, std::uint16_t{0x7EAD});
    case SQ_BF16: return poison_bits(p, std::uint16_t{0x7FEB});
    default: return poison_bits(p, std::uint8_t{0x80});  // int8 -128: never a legal code
  }
}

}  // namespace

Guarded::Guarded(std::string name, Role role, std::int32_t dtype, std::vector<std::int64_t> shape, std::int64_t row_stride, std::int64_t shift)
    : name_(std::move(name)), role_(role), element_(dtype_bytes(dtype)) {
  tensor_ = make_tensor(nullptr, dtype, shape);
  if (row_stride && tensor_.rank == 2) tensor_.strides[0] = row_stride;
  const std::int64_t span = count() == 0 ? 0 : tensor_.rank == 2 ? (rows() - 1) * tensor_.strides[0] + columns() : columns();
  first_ = fence + static_cast<std::size_t>(shift) * element_;
  bytes_ = first_ + static_cast<std::size_t>(span) * element_ + fence;
  memory_.reset(new (std::align_val_t{64}) std::byte[bytes_]);
  std::memset(memory_.get(), static_cast<int>(sentinel), bytes_);
  place(memory_.get(), bytes_);
  tensor_.data = memory_.get() + first_;
  if (role_ != Role::out)
    fill(0.0);
}

void Guarded::Free::operator()(std::byte* p) const {
  unplace(p);
  ::operator delete[](p, std::align_val_t{64});
}

std::size_t Guarded::offset(std::int64_t row, std::int64_t column) const {
  const std::int64_t stride = tensor_.rank == 2 ? tensor_.strides[0] : 0;
  return first_ + static_cast<std::size_t>(row * stride + column) * element_;
}

double Guarded::at(std::int64_t row, std::int64_t column) const {
  const std::byte* p = memory_.get() + offset(row, column);
  const auto load = [p]<class T>(T value) {
    std::memcpy(&value, p, sizeof value);
    return value;
  };
  switch (tensor_.dtype) {
    case SQ_F64: return load(double{});
    case SQ_F32: return load(float{});
    case SQ_F16: return from_f16(load(std::uint16_t{}));
    case SQ_BF16: return from_bf16(load(std::uint16_t{}));
    case SQ_I64: return static_cast<double>(load(std::int64_t{}));
    case SQ_I32: return load(std::int32_t{});
    case SQ_U8: return load(std::uint8_t{});
    default: return load(std::int8_t{});
  }
}

void Guarded::set(std::int64_t row, std::int64_t column, double value) {
  std::byte* p = memory_.get() + offset(row, column);
  const auto store = [p](auto bits) { std::memcpy(p, &bits, sizeof bits); };
  switch (tensor_.dtype) {
    case SQ_F64: return store(value);
    case SQ_F32: return store(static_cast<float>(value));
    case SQ_F16: return store(to_f16(value));
    case SQ_BF16: return store(to_bf16(static_cast<float>(value)));
    case SQ_I64: return store(static_cast<std::int64_t>(value));
    case SQ_I32: return store(static_cast<std::int32_t>(value));
    case SQ_U8: return store(static_cast<std::uint8_t>(value));
    default: return store(static_cast<std::int8_t>(value));
  }
}

void Guarded::fill(const std::function<double()>& next) {
  for (std::int64_t r = 0; r < rows(); ++r)
    for (std::int64_t c = 0; c < columns(); ++c) set(r, c, next());
}

std::vector<double> Guarded::values() const {
  std::vector<double> out;
  out.reserve(static_cast<std::size_t>(count()));
  for (std::int64_t r = 0; r < rows(); ++r)
    for (std::int64_t c = 0; c < columns(); ++c) out.push_back(at(r, c));
  return out;
}

std::vector<std::byte> Guarded::bytes() const {
  std::vector<std::byte> out;
  const std::size_t row_bytes = static_cast<std::size_t>(columns()) * element_;
  for (std::int64_t r = 0; r < rows(); ++r) {
    const std::byte* row = memory_.get() + offset(r, 0);
    out.insert(out.end(), row, row + row_bytes);
  }
  return out;
}

void Guarded::set_bytes(std::span<const std::byte> dense) {
  const std::size_t row_bytes = static_cast<std::size_t>(columns()) * element_;
  for (std::int64_t r = 0; r < rows() && row_bytes; ++r)
    std::memcpy(memory_.get() + offset(r, 0), dense.data() + static_cast<std::size_t>(r) * row_bytes, row_bytes);
}

void Guarded::write_poison() {
  for (std::int64_t r = 0; r < rows(); ++r)
    for (std::int64_t c = 0; c < columns(); ++c) poison(tensor_.dtype, memory_.get() + offset(r, c));
}

bool Guarded::is_poison(const std::byte* element) const {
  std::byte expected[8];
  poison(tensor_.dtype, expected);
  return std::memcmp(element, expected, element_) == 0;
}

void Guarded::arm() {
  if (role_ == Role::out) write_poison();
  before_.assign(memory_.get(), memory_.get() + bytes_);
}

std::string Guarded::changed_outside_elements() const {
  // Bytes between `from` and `to`, which hold no element.
  const auto first_change = [&](std::size_t from, std::size_t to) {
    for (std::size_t i = from; i < to; ++i)
      if (memory_[i] != before_[i]) return i;
    return to;
  };
  const auto report = [&](std::size_t at) {
    const auto distance = static_cast<std::int64_t>(at) - static_cast<std::int64_t>(first_);
    return name_ + " " + shape_text(tensor_) + ": wrote outside the tensor, at byte " + std::to_string(distance) + " from its first element";
  };
  std::size_t from = 0;
  for (std::int64_t r = 0; r < rows() && columns() > 0; ++r) {
    const std::size_t at = first_change(from, offset(r, 0));
    if (at != offset(r, 0)) return report(at);
    from = offset(r, columns());
  }
  const std::size_t at = first_change(from, bytes_);
  return at == bytes_ ? std::string() : report(at);
}

std::string Guarded::damage_after_success() const {
  if (role_ == Role::in) {
    for (std::size_t i = 0; i < bytes_; ++i)
      if (memory_[i] != before_[i])
        return name_ + " " + shape_text(tensor_) + ": input changed at byte " +
               std::to_string(static_cast<std::int64_t>(i) - static_cast<std::int64_t>(first_));
    return {};
  }
  if (std::string damage = changed_outside_elements(); !damage.empty()) return damage;
  if (role_ == Role::out)
    for (std::int64_t r = 0; r < rows(); ++r)
      for (std::int64_t c = 0; c < columns(); ++c)
        if (is_poison(memory_.get() + offset(r, c)))
          return name_ + " " + shape_text(tensor_) + ": element [" + std::to_string(r) + ", " + std::to_string(c) + "] was not written";
  return {};
}

std::string Guarded::damage_after_refusal() const {
  for (std::size_t i = 0; i < bytes_; ++i)
    if (memory_[i] != before_[i])
      return name_ + " " + shape_text(tensor_) + ": changed by a refused call, at byte " +
             std::to_string(static_cast<std::int64_t>(i) - static_cast<std::int64_t>(first_));
  return {};
}

}  // namespace squareq::gates
