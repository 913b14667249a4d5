// The quantize operation, guarded.
#pragma once

#include <initializer_list>

#include "gates/harness/linear.hpp"

namespace squareq::gates {

struct Quantized {
  Guarded qweight, scale, zero_point;
  std::uint64_t floored_rows = 0;
};

/// `w` [n, k] of any float dtype.
Quantized quantize(Instance& instance, Guarded& w, std::int64_t pack_k, const std::string& layer = "layer");
/// The same call must be refused with one of `codes`.
void quantize_refused(Instance& instance, Guarded& w, std::int64_t pack_k, std::initializer_list<Code> codes, const std::string& what);
/// Puts a result into a layer of the same shape.
void load(Layer& layer, const Quantized& q);

}  // namespace squareq::gates
