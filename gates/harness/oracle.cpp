// The float64 oracle. Every formula is written out here from the spec; nothing is shared with any implementation.
//   z = sum_k x[m,k] w[n,k] + s sum_r H[m,r] B[n,r] + b[n],   H = X A,   y = act(z)                       (spec/40-linear.md, 50-lora.md)
//   g = dy act'(z),  D = g B,  dX = g W + s D A^T,  dA^T = s D^T X,  dB^T = s g^T H
#include <cmath>

#include "gates/harness/bounds.hpp"
#include "gates/harness/half.hpp"
#include "gates/harness/linear.hpp"

namespace squareq::gates {
namespace {

using Matrix = std::vector<double>;  // row-major, dense

constexpr double u = 0x1p-24;

Matrix weight_matrix(const Layer& layer) {
  Matrix w;
  w.reserve(static_cast<std::size_t>(layer.n * layer.k));
  for (std::int64_t n = 0; n < layer.n; ++n)
    for (std::int64_t k = 0; k < layer.k; ++k) w.push_back(layer.weight(n, k));
  return w;
}

/// Adapters as the call uses them: rounded once to a 16-bit activation's dtype, as they are for F32.
Matrix rounded(const Guarded& t, std::int32_t dtype) {
  Matrix v = t.values();
  for (double& value : v)
    if (dtype == SQ_BF16) value = from_bf16(to_bf16(static_cast<float>(value)));
    else if (dtype == SQ_F16) value = from_f16(to_f16(value));
  return v;
}

/// Sum and sum of magnitudes of one inner product.
struct Dot {
  double value = 0, size = 0;
  void add(double a, double b) {
    value += a * b;
    size += std::fabs(a * b);
  }
};

std::size_t at(std::int64_t row, std::int64_t columns, std::int64_t column) { return static_cast<std::size_t>(row * columns + column); }

/// H = X A in float64 and E_H.
struct LowRank {
  Matrix value, error;
};
LowRank low_rank(const Problem& p, const Matrix& x, const Matrix& a) {
  const Adapter& adapter = *p.adapter;
  LowRank h;
  const double g = gamma(static_cast<double>(p.layer.k)), w = operand_roundoff(p.x.dtype());
  for (std::int64_t m = 0; m < p.m; ++m)
    for (std::int64_t r = 0; r < adapter.rank; ++r) {
      Dot dot;
      for (std::int64_t k = 0; k < p.layer.k; ++k) dot.add(x[at(m, p.layer.k, k)], a[at(r, p.layer.k, k)]);
      h.value.push_back(dot.value);
      h.error.push_back((g + w * (1 + g)) * dot.size);
    }
  return h;
}

}  // namespace

double activate(sq_activation activation, double z) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: return 0.5 * z * (1 + std::tanh(std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z)));
    case SQ_ACT_GELU_ERF: return 0.5 * z * std::erfc(-z / std::sqrt(2.0));
    case SQ_ACT_SILU: return z / (1 + std::exp(-z));
    default: return z;
  }
}

double activate_derivative(sq_activation activation, double z) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: {
      const double c = std::sqrt(2 / M_PI), t = std::tanh(c * (z + 0.044715 * z * z * z));
      return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * c * (1 + 3 * 0.044715 * z * z);
    }
    case SQ_ACT_GELU_ERF: return 0.5 * std::erfc(-z / std::sqrt(2.0)) + z * std::exp(-z * z / 2) / std::sqrt(2 * M_PI);
    case SQ_ACT_SILU: {
      const double s = 1 / (1 + std::exp(-z));
      return s * (1 + z * (1 - s));
    }
    default: return 1;
  }
}

ForwardOracle oracle_forward(const Problem& p) {
  ForwardOracle out;
  const Matrix x = p.x.values(), w = weight_matrix(p.layer);
  Matrix a, b;
  LowRank h;
  const std::int64_t rank = p.adapter ? p.adapter->rank : 0;
  if (p.adapter) {
    a = rounded(p.adapter->a_t, p.x.dtype());
    b = rounded(p.adapter->b_t, p.x.dtype());
    h = low_rank(p, p.adapter->x_own ? p.adapter->x_own->values() : x, a);
    for (std::size_t i = 0; i < h.value.size(); ++i) out.h.add(h.value[i], with_output_rounding(h.value[i], h.error[i], SQ_F32));
  }
  const std::int64_t k_count = p.layer.k;
  for (std::int64_t m = 0; m < p.m; ++m)
    for (std::int64_t n = 0; n < p.layer.n; ++n) {
      Dot base;
      double branch = 0, branch_error = 0;
      for (std::int64_t k = 0; k < k_count; ++k) base.add(x[at(m, k_count, k)], w[at(n, k_count, k)]);
      for (std::int64_t r = 0; r < rank; ++r) {
        const double hv = h.value[at(m, rank, r)], h_error = h.error[at(m, rank, r)], bv = b[at(n, rank, r)];
        branch += hv * bv;
        branch_error += (h_error + gamma(static_cast<double>(rank + 2)) * (std::fabs(hv) + h_error)) * std::fabs(bv);
      }
      const double c = p.adapter ? static_cast<double>(p.adapter->scaling) : 0, bias = p.layer.has_bias ? p.layer.bias.at(n) : 0;
      branch *= c;
      branch_error *= std::fabs(c);
      const double v = base.value + branch + bias;
      const double error = gamma(static_cast<double>(k_count + 2)) * base.size + branch_error + 3 * u * (std::fabs(base.value) + std::fabs(branch) + std::fabs(bias));
      out.preactivation.add(v, with_output_rounding(v, error, SQ_F32));
      const double y = activate(p.activation, v);
      out.y.add(y, with_output_rounding(y, p.activation == SQ_ACT_NONE ? error : activation_slope * error + activation_bound(v), p.y_dtype));
    }
  return out;
}

BackwardOracle oracle_backward(const Problem& p, const Guarded& dy, const Guarded* preactivation) {
  BackwardOracle out;
  const std::int64_t k_count = p.layer.k, n_count = p.layer.n, rank = p.adapter ? p.adapter->rank : 0;
  const std::int32_t dtype = p.x.dtype();
  const double c = p.adapter ? static_cast<double>(p.adapter->scaling) : 0, c_size = std::fabs(c), operand = operand_roundoff(dtype);
  const Matrix x = p.x.values(), w = weight_matrix(p.layer);
  Matrix g = dy.values(), g_error(g.size());
  for (std::size_t i = 0; i < g.size() && p.activation != SQ_ACT_NONE; ++i) {
    const double dy_value = g[i];
    g[i] *= activate_derivative(p.activation, preactivation->at(static_cast<std::int64_t>(i)));
    g_error[i] = derivative_bound(dy_value, g[i], dtype);
  }
  Matrix a, b, branch_x, d, d_error;
  LowRank h;
  if (p.adapter) {
    a = rounded(p.adapter->a_t, dtype);
    b = rounded(p.adapter->b_t, dtype);
    branch_x = p.adapter->x_own ? p.adapter->x_own->values() : x;
    h = low_rank(p, branch_x, a);
    const double factor = gamma(static_cast<double>(n_count)) + operand;
    for (std::int64_t m = 0; m < p.m; ++m)
      for (std::int64_t r = 0; r < rank; ++r) {
        double value = 0, error = 0;
        for (std::int64_t n = 0; n < n_count; ++n) {
          const double gv = g[at(m, n_count, n)], e = g_error[at(m, n_count, n)], bv = b[at(n, rank, r)];
          value += gv * bv;
          error += (e + factor * (std::fabs(gv) + e)) * std::fabs(bv);
        }
        d.push_back(value);
        d_error.push_back(error);
      }
  }
  const bool own = p.adapter && p.adapter->x_own;
  const double base_factor = gamma(static_cast<double>(n_count + 2)) + operand, rank_factor = gamma(static_cast<double>(rank + 2));
  for (std::int64_t m = 0; m < p.m; ++m)
    for (std::int64_t k = 0; k < k_count; ++k) {
      double base = 0, base_error = 0, branch = 0, branch_error = 0;
      for (std::int64_t n = 0; n < n_count; ++n) {
        const double gv = g[at(m, n_count, n)], e = g_error[at(m, n_count, n)], wv = w[at(n, k_count, k)];
        base += gv * wv;
        base_error += (e + base_factor * (std::fabs(gv) + e)) * std::fabs(wv);
      }
      for (std::int64_t r = 0; r < rank; ++r) {
        const double dv = d[at(m, rank, r)], e = d_error[at(m, rank, r)], av = a[at(r, k_count, k)];
        branch += dv * av;
        branch_error += (e + rank_factor * (std::fabs(dv) + e)) * std::fabs(av);
      }
      branch *= c;
      branch_error *= c_size;
      if (own) {
        out.dx.add(base, with_output_rounding(base, base_error, dy.dtype()));
        out.dx_lora.add(branch, with_output_rounding(branch, branch_error, dy.dtype()));
      } else {
        const double joined = rank ? branch_error + 2 * u * (std::fabs(base) + std::fabs(branch)) : 0;
        out.dx.add(base + branch, with_output_rounding(base + branch, base_error + joined, dy.dtype()));
      }
    }
  const double m_factor = gamma(static_cast<double>(p.m + 2));
  for (std::int64_t r = 0; r < rank; ++r)
    for (std::int64_t k = 0; k < k_count; ++k) {
      double value = 0, error = 0;
      for (std::int64_t m = 0; m < p.m; ++m) {
        const double dv = d[at(m, rank, r)], e = d_error[at(m, rank, r)], xv = branch_x[at(m, k_count, k)];
        value += dv * xv;
        error += (e + m_factor * (std::fabs(dv) + e)) * std::fabs(xv);
      }
      out.da_t.add(c * value, with_output_rounding(c * value, c_size * error, SQ_F32));
    }
  for (std::int64_t n = 0; n < n_count; ++n)
    for (std::int64_t r = 0; r < rank; ++r) {
      double value = 0, error = 0;
      for (std::int64_t m = 0; m < p.m; ++m) {
        const double hv = h.value[at(m, rank, r)], h_error = h.error[at(m, rank, r)], gv = g[at(m, n_count, n)], e = g_error[at(m, n_count, n)];
        value += hv * gv;
        error += (std::fabs(gv) + e) * h_error + e * std::fabs(hv) + m_factor * (std::fabs(gv) + e) * (std::fabs(hv) + h_error);
      }
      out.db_t.add(c * value, with_output_rounding(c * value, c_size * error, SQ_F32));
    }
  return out;
}

}  // namespace squareq::gates
