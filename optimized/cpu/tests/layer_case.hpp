// One random linear layer with everything a call can take, and its float64 oracle with the bounds of spec/35-numerics.md.
#pragma once

#include <cmath>
#include <random>

#include "support.hpp"

namespace squareq::test {

struct LayerShape {
  std::int64_t m = 1, n = 1, k = 1, r = 0;  // r 0: no branch
  std::int32_t dtype = SQ_F32;
  std::int32_t activation = SQ_ACT_NONE;
  std::int32_t compute = SQ_COMPUTE_DEFAULT;
  bool bias = false;
  bool exact = false;     // integers and power-of-two scales
  bool own_input = false; // lora.x
  std::int64_t gap = 0;   // unused elements after each row
  std::uint32_t seed = 1;
};

class LayerCase {
 public:
  explicit LayerCase(const LayerShape& s) : s_(s), random_(s.seed) {
    const std::int64_t padded = (s.k + 15) / 16 * 16;
    w.q = Buffer(SQ_I8, {s.n, padded}, s.gap);
    w.scale = Buffer(SQ_F32, {s.n});
    w.zero_point = Buffer(SQ_F32, {s.n});
    w.bias = Buffer(SQ_F32, {s.n});
    for (std::int64_t i = 0; i < s.n; ++i) {
      for (std::int64_t j = 0; j < padded; ++j) w.q.set(i * padded + j, static_cast<double>(static_cast<int>(random_() % 255) - 127));
      w.scale.set(i, s.exact ? 0.125 : 0.001 + 0.01 * uniform());
      w.bias.set(i, s.exact ? 0.25 * integer(40) : uniform() - 0.5);
    }
    w.bind(s.n, s.k, s.bias);
    const double limit = s.exact ? std::max(1.0, std::min(8.0, std::floor(16777216.0 / (127.0 * static_cast<double>(std::max(s.k, s.n)))) / 4)) : 0;
    x = fill(s.dtype, {s.m, s.k}, limit);
    dy = fill(s.dtype, {s.m, s.n}, limit);
    if (s.r > 0) {
      a = fill(SQ_F32, {s.r, s.k}, s.exact ? 1 : 0);
      b = fill(SQ_F32, {s.n, s.r}, s.exact ? 1 : 0);
      lora_x = fill(s.dtype, {s.m, s.k}, s.exact ? 1 : 0);
    }
    lora.scaling = 0.5f;
  }

  sq_linear_forward_args forward_args() {
    auto args = sized<sq_linear_forward_args>();
    args.activation = s_.activation;
    args.compute = s_.compute;
    args.weight = &w.ref;
    args.x = x.tensor();
    y = Buffer(s_.dtype, {s_.m, s_.n}, s_.gap);
    preactivation = Buffer(SQ_F32, {s_.m, s_.n}, s_.gap);
    args.y = y.tensor();
    args.preactivation = preactivation.tensor();
    if (s_.r > 0) {
      h = Buffer(SQ_F32, {s_.m, s_.r}, s_.gap);
      args.h = h.tensor();
      args.lora = branch();
    }
    return args;
  }
  sq_linear_backward_args backward_args() {
    auto args = sized<sq_linear_backward_args>();
    args.activation = s_.activation;
    args.compute = s_.compute;
    args.weight = &w.ref;
    args.dy = dy.tensor();
    args.x = x.tensor();
    if (s_.activation != SQ_ACT_NONE) args.preactivation = preactivation.tensor();
    dx = Buffer(s_.dtype, {s_.m, s_.k}, s_.gap);
    args.dx = dx.tensor();
    if (s_.r > 0) {
      args.lora = branch();
      da = Buffer(SQ_F32, {s_.r, s_.k}, s_.gap);
      db = Buffer(SQ_F32, {s_.n, s_.r}, s_.gap);
      args.da_t = da.tensor();
      args.db_t = db.tensor();
      if (s_.own_input) {
        dx_lora = Buffer(s_.dtype, {s_.m, s_.k}, s_.gap);
        args.dx_lora = dx_lora.tensor();
      }
    }
    return args;
  }

  TestWeight w;
  Buffer x, dy, a, b, lora_x, y, preactivation, h, dx, dx_lora, da, db;
  sq_lora lora = sized<sq_lora>();
  const LayerShape& shape() const { return s_; }
  const Buffer& branch_input() const { return s_.own_input ? lora_x : x; }

 private:
  double uniform() { return static_cast<double>(random_()) / 4294967296.0; }
  double integer(int limit) { return static_cast<double>(static_cast<int>(random_() % static_cast<unsigned>(2 * limit + 1)) - limit); }
  Buffer fill(std::int32_t dtype, std::vector<std::int64_t> shape, double limit) {
    Buffer buffer(dtype, std::move(shape), s_.gap);
    for (std::int64_t i = 0; i < buffer.size(); ++i) buffer.set(i, limit > 0 ? integer(static_cast<int>(limit)) : 2 * uniform() - 1);
    return buffer;
  }
  const sq_lora* branch() {
    lora.a_t = a.tensor();
    lora.b_t = b.tensor();
    lora.x = s_.own_input ? lora_x.tensor() : nullptr;
    return &lora;
  }

  LayerShape s_;
  std::mt19937 random_;
};

/// A float64 matrix of values and error bounds.
struct Bounded {
  std::int64_t cols = 0;
  std::vector<double> value, bound;
  Bounded(std::int64_t rows, std::int64_t columns) : cols(columns), value(static_cast<std::size_t>(rows * columns)), bound(value) {}
  std::size_t at(std::int64_t r, std::int64_t c) const { return static_cast<std::size_t>(r * cols + c); }
};

inline constexpr double kU = 5.9604644775390625e-8;  // 2^-24
inline double gamma(std::int64_t n) { return static_cast<double>(n) * kU / (1 - static_cast<double>(n) * kU); }
inline double unit(std::int32_t dtype) { return dtype == SQ_BF16 ? 0.00390625 : dtype == SQ_F16 ? 0.00048828125 : kU; }

inline double activation_value(std::int32_t act, double v) {
  switch (act) {
    case SQ_ACT_GELU_TANH: return 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    case SQ_ACT_GELU_ERF: return 0.5 * v * std::erfc(-v / std::sqrt(2.0));
    case SQ_ACT_SILU: return v / (1 + std::exp(-v));
    default: return v;
  }
}
inline double activation_slope(std::int32_t act, double v) {
  const double t = std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)), s = 1 / (1 + std::exp(-v));
  switch (act) {
    case SQ_ACT_GELU_TANH: return 0.5 * (1 + t) + 0.5 * v * (1 - t * t) * 0.7978845608028654 * (1 + 0.134145 * v * v);
    case SQ_ACT_GELU_ERF: return 0.5 * std::erfc(-v / std::sqrt(2.0)) + v * std::exp(-v * v / 2) / std::sqrt(2 * M_PI);
    case SQ_ACT_SILU: return s * (1 + v * (1 - s));
    default: return 1;
  }
}

/// The table of bounds of spec/35-numerics.md, forward: preactivation and H.
struct ForwardOracle {
  Bounded v, h;
  explicit ForwardOracle(const LayerCase& c) : v(c.shape().m, c.shape().n), h(c.shape().m, std::max<std::int64_t>(1, c.shape().r)) {
    const LayerShape& s = c.shape();
    const double w_t = s.dtype == SQ_F32 ? 0 : unit(s.dtype);
    const std::int64_t padded = c.w.q.cols();
    for (std::int64_t m = 0; m < s.m; ++m) {
      for (std::int64_t r = 0; r < s.r; ++r) {
        double sum = 0, magnitude = 0;
        for (std::int64_t k = 0; k < s.k; ++k) {
          const double p = c.branch_input().get(m, k) * round_to(s.dtype, c.a.get(r, k));
          sum += p;
          magnitude += std::fabs(p);
        }
        h.value[h.at(m, r)] = sum;
        h.bound[h.at(m, r)] = gamma(s.k) * magnitude + w_t * (1 + gamma(s.k)) * magnitude;
      }
      for (std::int64_t n = 0; n < s.n; ++n) {
        double base = 0, magnitude = 0, branch = 0, e_branch = 0;
        for (std::int64_t k = 0; k < s.k; ++k) {
          const double p = c.x.get(m, k) * c.w.scale.get(n) * c.w.q.get(n * padded + k);
          base += p;
          magnitude += std::fabs(p);
        }
        for (std::int64_t r = 0; r < s.r; ++r) {
          const double b = round_to(s.dtype, c.b.get(n, r)), e = h.bound[h.at(m, r)], value = h.value[h.at(m, r)];
          branch += 0.5 * value * b;
          e_branch += 0.5 * (e * std::fabs(b) + gamma(s.r + 2) * (std::fabs(value) + e) * std::fabs(b));
        }
        const double bias = s.bias ? c.w.bias.get(n) : 0;
        v.value[v.at(m, n)] = base + branch + bias;
        v.bound[v.at(m, n)] = gamma(s.k + 2) * magnitude + e_branch + 3 * kU * (std::fabs(base) + std::fabs(branch) + std::fabs(bias));
      }
    }
  }
};

/// dX (both shares where the branch has no input of its own), dA^T and dB^T.
struct BackwardOracle {
  Bounded dx, dx_lora, da, db;
  BackwardOracle(const LayerCase& c, const ForwardOracle& f)
      : dx(c.shape().m, c.shape().k), dx_lora(dx), da(std::max<std::int64_t>(1, c.shape().r), c.shape().k), db(c.shape().n, std::max<std::int64_t>(1, c.shape().r)) {
    const LayerShape& s = c.shape();
    const double w_t = s.dtype == SQ_F32 ? 0 : unit(s.dtype);
    Bounded g(s.m, s.n), d(s.m, std::max<std::int64_t>(1, s.r));
    for (std::int64_t m = 0; m < s.m; ++m)
      for (std::int64_t n = 0; n < s.n; ++n) {
        const double y = c.dy.get(m, n);
        const bool act = s.activation != SQ_ACT_NONE;
        const std::size_t i = g.at(m, n);
        g.value[i] = act ? y * activation_slope(s.activation, c.preactivation.get(m, n)) : y;
        g.bound[i] = act ? 64 * kU * std::fabs(y) + (kU + w_t) * std::fabs(g.value[i]) : 0;
      }
    for (std::int64_t m = 0; m < s.m; ++m)
      for (std::int64_t r = 0; r < s.r; ++r)
        for (std::int64_t n = 0; n < s.n; ++n) {
          const double b = round_to(s.dtype, c.b.get(n, r)), gv = g.value[g.at(m, n)], ge = g.bound[g.at(m, n)];
          d.value[d.at(m, r)] += gv * b;
          d.bound[d.at(m, r)] += ge * std::fabs(b) + (gamma(s.n) + w_t) * (std::fabs(gv) + ge) * std::fabs(b);
        }
    for (std::int64_t m = 0; m < s.m; ++m)
      for (std::int64_t k = 0; k < s.k; ++k) {
        double base = 0, e_base = 0, branch = 0, e_branch = 0;
        for (std::int64_t n = 0; n < s.n; ++n) {
          const double w = c.w.scale.get(n) * c.w.q.get(n * c.w.q.cols() + k), gv = g.value[g.at(m, n)], ge = g.bound[g.at(m, n)];
          base += gv * w;
          e_base += ge * std::fabs(w) + (gamma(s.n + 2) + w_t) * (std::fabs(gv) + ge) * std::fabs(w);
        }
        for (std::int64_t r = 0; r < s.r; ++r) {
          const double a = round_to(s.dtype, c.a.get(r, k)), dv = d.value[d.at(m, r)], de = d.bound[d.at(m, r)];
          branch += 0.5 * dv * a;
          e_branch += 0.5 * (de * std::fabs(a) + gamma(s.r + 2) * (std::fabs(dv) + de) * std::fabs(a));
        }
        const std::size_t i = dx.at(m, k);
        dx.value[i] = base + (s.own_input ? 0 : branch);
        dx.bound[i] = e_base + (s.own_input ? 0 : e_branch + 2 * kU * (std::fabs(base) + std::fabs(branch)));
        dx_lora.value[i] = branch;
        dx_lora.bound[i] = e_branch;
      }
    for (std::int64_t r = 0; r < s.r; ++r)
      for (std::int64_t m = 0; m < s.m; ++m) {
        const double dv = d.value[d.at(m, r)], de = d.bound[d.at(m, r)], hv = f.h.value[f.h.at(m, r)], he = f.h.bound[f.h.at(m, r)];
        for (std::int64_t k = 0; k < s.k; ++k) {
          const double xv = c.branch_input().get(m, k);
          da.value[da.at(r, k)] += 0.5 * dv * xv;
          da.bound[da.at(r, k)] += 0.5 * (de * std::fabs(xv) + gamma(s.m + 2) * (std::fabs(dv) + de) * std::fabs(xv));
        }
        for (std::int64_t n = 0; n < s.n; ++n) {
          const double gv = g.value[g.at(m, n)], ge = g.bound[g.at(m, n)];
          db.value[db.at(n, r)] += 0.5 * hv * gv;
          db.bound[db.at(n, r)] += 0.5 * ((std::fabs(gv) + ge) * he + ge * std::fabs(hv) + gamma(s.m + 2) * (std::fabs(gv) + ge) * (std::fabs(hv) + he));
        }
      }
  }
};

/// The largest |got - exact| / bound, where the output's own rounding is in the bound; infinity where a value is not finite.
inline double worst_ratio(const Buffer& got, const Bounded& expected) {
  double worst = 0;
  for (std::int64_t i = 0; i < got.size(); ++i) {
    const auto j = static_cast<std::size_t>(i);
    const double e = expected.bound[j] + unit(got.dtype()) * (std::fabs(expected.value[j]) + expected.bound[j]) + (got.dtype() == SQ_F16 ? 0x1p-24 : 0x1p-133);
    const double error = std::fabs(got.get(i) - expected.value[j]);
    worst = std::isfinite(error) ? std::max(worst, error / e) : INFINITY;
  }
  return worst;
}

}  // namespace squareq::test
