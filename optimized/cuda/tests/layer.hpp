// A linear layer with its branch, on the host in float64 and on the device, and what SQ-NUM allows its results to be.
#pragma once

#include <random>

#include "optimized/cuda/tests/device_matrix.hpp"

namespace squareq::cuda_tests {

struct Shape {
  std::int64_t m, k, n, r;
};

/// Row-major doubles.
struct Host {
  std::int64_t rows = 0, columns = 0;
  std::vector<double> values;
  Host() = default;
  Host(std::int64_t r, std::int64_t c) : rows(r), columns(c), values(static_cast<std::size_t>(r * c)) {}
  double& at(std::int64_t r, std::int64_t c) { return values[static_cast<std::size_t>(r * columns + c)]; }
  double at(std::int64_t r, std::int64_t c) const { return values[static_cast<std::size_t>(r * columns + c)]; }
  Host transposed() const {
    Host t(columns, rows);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < columns; ++c) t.at(c, r) = at(r, c);
    return t;
  }
  template <class F>
  Host map(const F& f) const {
    Host result = *this;
    for (double& v : result.values) v = f(v);
    return result;
  }
  Host magnitude() const { return map([](double v) { return std::fabs(v); }); }
};

/// a [m, k] times b [n, k] transposed.
inline Host product(const Host& a, const Host& b) {
  Host c(a.rows, b.rows);
  const Host right = b.transposed();
  for (std::int64_t i = 0; i < a.rows; ++i) {
    double* sums = c.values.data() + i * c.columns;
    for (std::int64_t k = 0; k < a.columns; ++k) {
      const double x = a.at(i, k), *y = right.values.data() + k * right.columns;
      for (std::int64_t j = 0; j < c.columns; ++j) sums[j] += x * y[j];
    }
  }
  return c;
}

template <class F>
Host combine(const Host& a, const Host& b, const F& f) {
  Host c = a;
  for (std::size_t i = 0; i < c.values.size(); ++i) c.values[i] = f(a.values[i], b.values[i]);
  return c;
}
inline Host operator+(const Host& a, const Host& b) { return combine(a, b, [](double x, double y) { return x + y; }); }
inline Host operator*(double f, const Host& a) { return a.map([f](double x) { return f * x; }); }

inline double unit_of(std::int32_t dtype) { return dtype == SQ_F32 ? 0x1p-24 : dtype == SQ_F16 ? 0x1p-11 : 0x1p-8; }
inline double smallest_of(std::int32_t dtype) { return dtype == SQ_F32 ? 0x1p-149 : dtype == SQ_F16 ? 0x1p-24 : 0x1p-133; }
inline double gamma(std::int64_t n) { return static_cast<double>(n) * 0x1p-24 / (1 - static_cast<double>(n) * 0x1p-24); }

/// spec/40-linear.md, in float64.
inline double activated(int activation, double x) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case SQ_ACT_GELU_ERF: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case SQ_ACT_SILU: return x / (1 + std::exp(-x));
    default: return x;
  }
}
inline double slope(int activation, double x) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: {
      const double t = std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x));
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 0.134145 * x * x);
    }
    case SQ_ACT_GELU_ERF: return 0.5 * (1 + std::erf(x / std::sqrt(2.0))) + x * std::exp(-x * x / 2) / std::sqrt(2 * 3.14159265358979323846);
    case SQ_ACT_SILU: {
      const double s = 1 / (1 + std::exp(-x));
      return s * (1 + x * (1 - s));
    }
    default: return 1;
  }
}

/// A result and how far from it an implementation may be, before the rounding of the output (spec/35-numerics.md).
struct Bounded {
  Host value, error;
};

struct Layer {
  Shape s;
  std::int32_t dtype = SQ_BF16;  // of X, dY and what follows from it
  int activation = SQ_ACT_NONE;
  double scaling = 0.5;
  Host x, lora_x, q, scale, bias, dy, preactivation, a_t, b_t;
  bool with_bias = true, own_x = false, exact = false;

  /// Exact by construction: integers, power-of-two scales; every sum fits fp32. Otherwise random numbers of ordinary size.
  Layer(Shape shape, std::int32_t type, bool exact_numbers, unsigned seed) : s(shape), dtype(type), exact(exact_numbers) {
    std::mt19937 random(seed);
    const auto integer = [&](std::int64_t limit) { return static_cast<double>(static_cast<std::int64_t>(random() % static_cast<unsigned>(2 * limit + 1)) - limit); };
    const auto real = [&](double size) { return size * (static_cast<double>(random()) / 2147483648.0 - 1); };
    const auto make = [&](std::int64_t rows, std::int64_t columns, const auto& value) {
      Host h(rows, columns);
      for (double& v : h.values) v = value();
      return h;
    };
    const auto activation_of = [&](std::int64_t rows, std::int64_t columns, std::int64_t depth) {
      const std::int64_t limit = std::min<std::int64_t>(type == SQ_BF16 ? 100 : 300, (1 << 24) / (127 * depth) / 4);
      return exact ? make(rows, columns, [&] { return integer(std::max<std::int64_t>(1, limit)); }) : make(rows, columns, [&] { return rounded(dtype, real(1.5)); });
    };
    x = activation_of(s.m, s.k, s.k);
    lora_x = activation_of(s.m, s.k, s.k);
    dy = activation_of(s.m, s.n, s.n);
    preactivation = make(s.m, s.n, [&] { return rounded(dtype, real(4)); });
    q = make(s.n, s.k, [&] { return integer(127); });
    scale = make(1, s.n, [&] { return exact ? std::ldexp(1.0, static_cast<int>(random() % 2)) / 512 : static_cast<float>(0.001 + 0.01 * std::fabs(real(1))); });
    bias = make(1, s.n, [&] { return exact ? integer(50) : static_cast<float>(real(1)); });
    // The branch of an exact layer: few and small non-zeros, so that H and D are integers that 16 bits hold.
    const auto adapter = [&](std::int64_t rows, std::int64_t columns) {
      return exact ? make(rows, columns, [&] { return random() % 16 == 0 ? integer(1) : 0.0; }) : make(rows, columns, [&] { return static_cast<float>(real(0.2)); });
    };
    a_t = adapter(s.r, s.k);
    b_t = adapter(s.n, s.r);
  }

  double w() const { return dtype == SQ_F32 ? 0 : unit_of(dtype); }
  const Host& branch_x() const { return own_x ? lora_x : x; }
  Host weight() const {
    Host result = q;
    for (std::int64_t n = 0; n < s.n; ++n)
      for (std::int64_t k = 0; k < s.k; ++k) result.at(n, k) *= scale.at(0, n);
    return result;
  }
  Host rounded_to_dtype(const Host& h) const { return h.map([this](double v) { return rounded(dtype, v); }); }

  Bounded h() const {
    const Host a = rounded_to_dtype(a_t), sums = product(branch_x().magnitude(), a.magnitude());
    // The sums of an exact layer are exact, so H is their rounding and nothing else.
    const Host value = product(branch_x(), a);
    return {exact ? rounded_to_dtype(value) : value, sums.map([this](double v) { return gamma(s.k) * v + w() * (1 + gamma(s.k)) * v; })};
  }
  Bounded v() const {
    const Host full = weight(), base = product(x, full);
    Bounded result{base, gamma(s.k + 2) * product(x.magnitude(), full.magnitude())};
    Host sizes = base.magnitude();
    if (s.r) {
      const Bounded low = h();
      const Host b = rounded_to_dtype(b_t), branch = scaling * product(low.value, b);
      result.error = result.error + std::fabs(scaling) * product(low.error + gamma(s.r + 2) * (low.value.magnitude() + low.error), b.magnitude());
      result.value = result.value + branch;
      sizes = sizes + branch.magnitude();
    }
    for (std::int64_t m = 0; m < s.m; ++m)
      for (std::int64_t n = 0; n < s.n; ++n) {
        const double c = with_bias ? bias.at(0, n) : 0;
        result.value.at(m, n) += c;
        result.error.at(m, n) += 3 * 0x1p-24 * (sizes.at(m, n) + std::fabs(c));
      }
    return result;
  }
  Bounded y() const {
    Bounded result = v();
    if (activation == SQ_ACT_NONE) return result;
    result.error = combine(result.value, result.error, [](double value, double e) { return 1.13 * e + 8 * 0x1p-24 * std::fabs(value); });
    result.value = result.value.map([this](double value) { return activated(activation, value); });
    return result;
  }
  Bounded g() const {
    if (activation == SQ_ACT_NONE) return {dy, 0.0 * dy};
    const Host value = combine(dy, preactivation, [this](double d, double p) { return d * slope(activation, p); });
    return {value, combine(dy, value, [this](double d, double v) { return 64 * 0x1p-24 * std::fabs(d) + (0x1p-24 + w()) * std::fabs(v); })};
  }
  Bounded d() const {
    const Bounded gradient = g();
    const Host b = rounded_to_dtype(b_t).transposed();
    const Host value = product(gradient.value, b);
    return {
        exact ? rounded_to_dtype(value) : value,
        product(gradient.error, b.magnitude()) + (gamma(s.n) + w()) * product(gradient.value.magnitude() + gradient.error, b.magnitude())};
  }
  Bounded dx_base() const {
    const Bounded gradient = g();
    const Host full = weight().transposed();
    return {product(gradient.value, full),
            product(gradient.error, full.magnitude()) +
                (gamma(s.n + 2) + w()) * product(gradient.value.magnitude() + gradient.error, full.magnitude())};
  }
  Bounded dx_branch() const {
    const Bounded low = d();
    const Host a = rounded_to_dtype(a_t).transposed();
    return {scaling * product(low.value, a), std::fabs(scaling) * product(low.error + gamma(s.r + 2) * (low.value.magnitude() + low.error), a.magnitude())};
  }
  Bounded dx() const {
    const Bounded base = dx_base();
    if (!s.r || own_x) return base;
    const Bounded branch = dx_branch();
    return {base.value + branch.value, base.error + branch.error + 2 * 0x1p-24 * (base.value.magnitude() + branch.value.magnitude())};
  }
  Bounded da_t() const {
    const Bounded low = d();
    const Host columns = branch_x().transposed();
    const Host error = low.error + gamma(s.m + 2) * (low.value.magnitude() + low.error);
    return {scaling * product(low.value.transposed(), columns), std::fabs(scaling) * product(error.transposed(), columns.magnitude())};
  }
  Bounded db_t() const {
    const Bounded low = h(), gradient = g();
    const Host gt = gradient.value.transposed(), size = (gradient.value.magnitude() + gradient.error).transposed(), e = gradient.error.transposed();
    const Host ht = low.value.transposed(), he = low.error.transposed();
    return {scaling * product(gt, ht),
            std::fabs(scaling) * (product(size, he) + product(e, ht.magnitude()) + gamma(s.m + 2) * product(size, ht.magnitude() + he))};
  }
};

/// The layer on the device, its outputs asked for in `out_dtype` rows apart.
struct DeviceLayer {
  const Layer& l;
  DeviceWeight w;
  DeviceMatrix x, lora_x, dy, preactivation_in, a_t, b_t, y, preactivation, h, dx, dx_lora, da_t, db_t;
  sq_lora lora = sized<sq_lora>();
  sq_linear_forward_args forward = sized<sq_linear_forward_args>();
  sq_linear_backward_args backward = sized<sq_linear_backward_args>();

  /// `gap`: elements between rows. `shift`: elements by which x, dy and qweight lie off their alignment. `padding`: codes of garbage per row.
  explicit DeviceLayer(const Layer& layer, std::int32_t out_dtype, std::int64_t gap = 0, std::int64_t shift = 0, std::int64_t padding = 0) : l(layer) {
    const auto [m, k, n, r] = l.s;
    const auto put = [](DeviceMatrix& to, const Host& from, std::int32_t dtype, std::int64_t stride, std::int64_t off) {
      to = DeviceMatrix(dtype, from.rows, from.columns, stride, off);
      to.fill([&](std::int64_t i, std::int64_t j) { return from.at(i, j); });
    };
    w.q = DeviceMatrix(SQ_I8, n, k, k + padding, shift);  // what lies between the rows is the sentinel 0xCD, a code like any other
    w.q.fill([&](std::int64_t i, std::int64_t j) { return l.q.at(i, j); });
    put(w.scale, l.scale, SQ_F32, 0, 0);
    if (l.with_bias) put(w.bias, l.bias, SQ_F32, 0, 0);
    w.bind(k);
    put(x, l.x, l.dtype, k + gap, shift), put(dy, l.dy, l.dtype, n + gap, shift), put(preactivation_in, l.preactivation, l.dtype, n + gap, 0);
    y = DeviceMatrix(out_dtype, m, n, n + gap), preactivation = DeviceMatrix(SQ_F32, m, n, n + gap);
    dx = DeviceMatrix(l.dtype, m, k, k + gap);
    forward.activation = backward.activation = l.activation;
    forward.weight = backward.weight = &w.ref;
    forward.x = backward.x = x.tensor();
    forward.y = y.tensor(), forward.preactivation = preactivation.tensor();
    backward.dy = dy.tensor(), backward.dx = dx.tensor();
    if (l.activation != SQ_ACT_NONE) backward.preactivation = preactivation_in.tensor();
    if (!r) return;
    put(a_t, l.a_t, SQ_F32, k + gap, 0), put(b_t, l.b_t, SQ_F32, r + gap, 0);
    h = DeviceMatrix(SQ_F32, m, r, r + gap), da_t = DeviceMatrix(SQ_F32, r, k, k + gap), db_t = DeviceMatrix(SQ_F32, n, r, r + gap);
    lora.scaling = static_cast<float>(l.scaling);
    lora.a_t = a_t.tensor(), lora.b_t = b_t.tensor();
    if (l.own_x) {
      put(lora_x, l.lora_x, l.dtype, k + gap, 0);
      lora.x = lora_x.tensor();
      dx_lora = DeviceMatrix(l.dtype, m, k, k + gap);
      backward.dx_lora = dx_lora.tensor();
    }
    forward.lora = backward.lora = &lora;
    forward.h = h.tensor(), backward.da_t = da_t.tensor(), backward.db_t = db_t.tensor();
  }
  DeviceLayer(const DeviceLayer&) = delete;
  DeviceLayer& operator=(const DeviceLayer&) = delete;
};

/// Every element equal to the exact value rounded once, or, where `bounded`, within the bound.
inline void expect(const char* name, DeviceMatrix& got, const Bounded& wanted, bool bounded) {
  got.download();
  EXPECT_TRUE(got.intact()) << name << ": bytes outside the rows were written";
  ASSERT_EQ(got.rows(), wanted.value.rows) << name;
  ASSERT_EQ(got.columns(), wanted.value.columns) << name;
  double worst = 0;
  for (std::int64_t i = 0; i < got.rows(); ++i)
    for (std::int64_t j = 0; j < got.columns(); ++j) {
      const double g = got.get(i, j), e = wanted.value.at(i, j);
      if (!bounded) {
        ASSERT_EQ(g, rounded(got.dtype(), e)) << name << "[" << i << ", " << j << "]";
        continue;
      }
      const double bound = wanted.error.at(i, j) + unit_of(got.dtype()) * (std::fabs(e) + wanted.error.at(i, j)) + smallest_of(got.dtype());
      worst = std::max(worst, std::fabs(g - e) / bound);
      ASSERT_LE(std::fabs(g - e), bound) << name << "[" << i << ", " << j << "] is " << g << ", exactly " << e;
    }
  if (bounded) ::testing::Test::RecordProperty(std::string(name) + "_margin", std::to_string(worst));
}

}  // namespace squareq::cuda_tests
