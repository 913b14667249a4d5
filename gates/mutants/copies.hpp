// Copies of arguments that a mutation may change without the caller's tensors noticing.
#pragma once

#include <cmath>
#include <cstring>
#include <string_view>
#include <vector>

#include "gates/mutants/tables.hpp"

namespace squareq::mutants {

inline float* f32_row(const sq_tensor& t, std::int64_t row) { return static_cast<float*>(t.data) + row * t.strides[0]; }

/// A dense F32 copy of a rank-2 or rank-1 F32 tensor.
struct FloatCopy {
  explicit FloatCopy(const sq_tensor& t) : tensor(t) {
    const std::int64_t rows = t.rank == 2 ? t.shape[0] : 1, columns = t.rank == 2 ? t.shape[1] : t.shape[0];
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < columns; ++c) values.push_back(static_cast<const float*>(t.data)[(t.rank == 2 ? r * t.strides[0] : 0) + c]);
    tensor.data = values.data();
    if (t.rank == 2) tensor.strides[0] = columns;
  }
  sq_tensor tensor;
  std::vector<float> values;
};

/// A direct weight whose list of parts may be edited.
struct WeightCopy {
  explicit WeightCopy(const sq_weight_ref& r) : ref(r), weight(*r.weight), parts(weight.parts, weight.parts + weight.part_count) { link(); }
  void link() {
    weight.parts = parts.data();
    weight.part_count = static_cast<std::uint32_t>(parts.size());
    ref.weight = &weight;
  }
  sq_part* part(std::string_view name) {
    for (sq_part& p : parts)
      if (name == p.name) return &p;
    return nullptr;
  }
  sq_weight_ref ref;
  sq_weight weight;
  std::vector<sq_part> parts;
};

inline float through_bf16(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, 4);
  bits = (bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace squareq::mutants
