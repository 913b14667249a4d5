// A linear layer as the suite sees it: data, calls through the contract, and a float64 oracle written from the formulas alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gates/harness/compare.hpp"
#include "gates/harness/trial.hpp"

namespace squareq::gates {

/// A quantized layer, format bp8_v2. qweight [n, padded k] I8, scale [n] F32, zero_point [n] F32, bias [n] F32 where has_bias.
struct Layer {
  std::string name;
  std::int64_t n = 0, k = 0, padded = 0;
  bool has_bias = false;
  Guarded qweight, scale, zero_point, bias;

  Layer(std::string layer_name, std::int64_t out_features, std::int64_t in_features, std::int64_t pack_k, bool with_bias);
  /// q * s as stored, float64.
  double weight(std::int64_t row, std::int64_t column) const { return qweight.at(row, column) * scale.at(row); }
};

/// The contract's view of a layer. Points into the layer: neither may move.
class DirectWeight {
 public:
  explicit DirectWeight(const Layer& layer);
  DirectWeight(const DirectWeight&) = delete;
  DirectWeight& operator=(const DirectWeight&) = delete;
  const sq_weight_ref* ref() const { return &ref_; }
  sq_weight& weight() { return weight_; }
  std::vector<sq_part>& parts() { return parts_; }

 private:
  std::vector<sq_part> parts_;
  sq_weight weight_;
  sq_weight_ref ref_;
};

/// a_t [rank, k], b_t [n, rank], both F32; x_own: the branch's own input (dropout).
struct Adapter {
  std::int64_t rank = 0;
  float scaling = 1;
  Guarded a_t, b_t;
  std::optional<Guarded> x_own;

  Adapter(std::int64_t r, std::int64_t n, std::int64_t k, float s);
};

/// One call's data. Everything an operation reads; outputs are made by the call.
struct Problem {
  std::int64_t m = 0;
  Layer layer;
  Guarded x;
  std::optional<Adapter> adapter;
  sq_activation activation = SQ_ACT_NONE;
  std::int32_t y_dtype = SQ_F32;
  std::int64_t y_stride = 0;

  Problem(std::int64_t rows, Layer l, std::int32_t x_dtype, std::int64_t x_stride = 0, std::int64_t x_shift = 0);
};

/// q uniform in [-127, 127] with at least one +-127 per row, scales around 1e-3 (or powers of two), bias normal, x normal.
struct DataSpec {
  bool dyadic_scales = false;      ///< scale = 2^e, e in [-9, -5]
  std::int64_t integer_x = 0;      ///< > 0: x integers of at most this size, bias a multiple of its row's scale
  std::int64_t rank = 0;
  float scaling = 0.5f;
  bool b_zero = false;
};
void fill(Problem& problem, Random& random, const DataSpec& spec);

struct ForwardOutputs {
  Guarded y;
  std::optional<Guarded> preactivation, h;
};
struct BackwardOutputs {
  std::optional<Guarded> dx, dx_lora, da_t, db_t;
};

struct ForwardWish {
  bool preactivation = false, h = false;
};
struct BackwardWish {
  bool dx = true, adapters = true, accumulate = false, use_h = true;
};

/// Both call the implementation with every tensor guarded. `weight` is a direct weight or a lease; null: the problem's own layer.
ForwardOutputs forward(Instance& instance, Problem& problem, ForwardWish wish = {}, const sq_weight_ref* weight = nullptr);
/// `into`: accumulators to add to (wish.accumulate), else fresh outputs. `preactivation`, `h`: from forward, or null.
BackwardOutputs backward(Instance& instance, Problem& problem, Guarded& dy, Guarded* preactivation, Guarded* h, BackwardWish wish = {},
                         const sq_weight_ref* weight = nullptr, BackwardOutputs* into = nullptr);

/// The dequantize operation, guarded: all rows as `dtype`.
Guarded dequantize(Instance& instance, const sq_weight_ref& weight, std::int64_t n, std::int64_t k, std::int32_t dtype);
/// What it must give: one fp32 product, then one rounding to `dtype`.
Guarded dequantized(const Layer& layer, std::int32_t dtype);

/// float64 oracle with the bounds of spec/35-numerics.md.
struct ForwardOracle {
  Expected y, preactivation, h;
};
ForwardOracle oracle_forward(const Problem& problem);
struct BackwardOracle {
  Expected dx, dx_lora, da_t, db_t;
};
/// `preactivation` as it was handed to the call; `dy` likewise.
BackwardOracle oracle_backward(const Problem& problem, const Guarded& dy, const Guarded* preactivation);

double activate(sq_activation activation, double z);
double activate_derivative(sq_activation activation, double z);

}  // namespace squareq::gates
