// Queries and keys of attention: RMSNorm of every head, then a rotation of its neighbouring pairs (SQ-LIN-060 to 065).
//   r = 1 / sqrt(mean(x^2) + epsilon),  n = x r w,  y[2j] = n[2j] cos - n[2j+1] sin,  y[2j+1] = n[2j] sin + n[2j+1] cos
//   g[2j] = dy[2j] cos + dy[2j+1] sin,  g[2j+1] = -dy[2j] sin + dy[2j+1] cos,  dx = r (w g - x r^2 mean(x w g))
// Statistics in double. A pair is read before it is written, and the statistics of a head before either: y may be x, dx may be dy.
#include <cmath>

#include "reference/linear/ops.hpp"

namespace squareq::reference {
namespace {

/// One call with its tensors checked.
struct Heads {
  sq_tensor x{}, weight{};
  const sq_tensor* rope = nullptr;  // null: no rotation
  std::int64_t rows = 0, count = 0, d = 0;
  double epsilon = 0;
};

Heads check_heads(const sq_tensor* given_x, const sq_tensor* given_weight, const sq_tensor* rope, float epsilon) {
  const Subject of_x{"", "x"}, of_weight{"", "weight"}, of_rope{"", "rope"};
  if (!given_x) refuse(Code::CALL_NULL, of_x, "tensor is missing");
  if (!given_weight) refuse(Code::CALL_NULL, of_weight, "tensor is missing");
  Heads heads;
  heads.x = check_rows(given_x, of_x, {SQ_F32, SQ_BF16, SQ_F16}, given_x->shape[1], Access::read);
  heads.weight = check_tensor(given_weight, of_weight, {SQ_F32, SQ_BF16, SQ_F16}, {given_weight->shape[0]}, Access::read);
  heads.rows = heads.x.shape[0];
  heads.d = heads.weight.shape[0];
  const std::int64_t columns = heads.x.shape[1];
  if (heads.d < 1 || columns < 1 || columns % heads.d != 0)
    refuse(Code::CALL_SHAPE, of_x, "shape is " + shape_text(heads.x) + ", columns must be a multiple of the " + std::to_string(heads.d) + " elements of weight");
  heads.count = columns / heads.d;
  if (rope) {
    check_rows(rope, of_rope, {SQ_F32}, heads.d, Access::read);
    if (heads.d % 2 != 0) refuse(Code::CALL_SHAPE, of_rope, "a head has " + std::to_string(heads.d) + " elements, a rotation needs pairs");
    if (rope->shape[0] < 1 || heads.rows % rope->shape[0] != 0)
      refuse(Code::CALL_SHAPE, of_rope, "shape is " + shape_text(*rope) + ", its rows must divide the " + std::to_string(heads.rows) + " rows of x");
    heads.rope = rope;
  }
  if (!(epsilon > 0) || !std::isfinite(epsilon)) throw Error(Code::CALL_VALUE, "epsilon is " + std::to_string(epsilon) + ", must be positive and finite");
  heads.epsilon = static_cast<double>(epsilon);
  return heads;
}

/// 1 / sqrt(mean(x^2) + epsilon) of the head that begins at column `first`.
double inverse_rms(const Heads& heads, std::int64_t row, std::int64_t first) {
  double squares = 0;
  for (std::int64_t i = 0; i < heads.d; ++i) {
    const double x = load(heads.x, row, first + i);
    squares += x * x;
  }
  return 1.0 / std::sqrt(squares / static_cast<double>(heads.d) + heads.epsilon);
}

struct Pair {
  float even = 0, odd = 0;
};

/// A pair turned by the table's angle for this row, forwards or back.
Pair rotated(const Heads& heads, std::int64_t row, std::int64_t even, Pair p, bool back) {
  const std::int64_t place = row % heads.rope->shape[0];
  const float cos = load(*heads.rope, place, even), sin = load(*heads.rope, place, even + 1);
  return back ? Pair{p.even * cos + p.odd * sin, p.odd * cos - p.even * sin} : Pair{p.even * cos - p.odd * sin, p.even * sin + p.odd * cos};
}

/// Calls body(row, first column of the head) for every head of every row.
template <class Body>
void for_heads(const sq_context& context, const Heads& heads, const Body& body) {
  parallel_for(context, heads.rows, [&](std::int64_t row) {
    for (std::int64_t h = 0; h < heads.count; ++h) body(row, h * heads.d);
  });
}

}  // namespace

void rms_norm_rope_forward(sq_context& context, const sq_rms_norm_rope_forward_args* given, bool run) {
  const sq_rms_norm_rope_forward_args args = read_struct(given, "sq_rms_norm_rope_forward_args");
  const Heads heads = check_heads(args.x, args.weight, args.rope, args.epsilon);
  const sq_tensor& y = check_tensor(args.y, {"", "y"}, {heads.x.dtype}, {heads.rows, heads.x.shape[1]}, Access::write);
  if (!run) return;

  for_heads(context, heads, [&](std::int64_t row, std::int64_t first) {
    const double r = inverse_rms(heads, row, first);
    const auto normed = [&](std::int64_t i) { return static_cast<float>(load(heads.x, row, first + i) * r) * load(heads.weight, i); };
    if (!heads.rope)
      for (std::int64_t i = 0; i < heads.d; ++i) store(y, row, first + i, normed(i));
    else
      for (std::int64_t i = 0; i < heads.d; i += 2) {
        const Pair turned = rotated(heads, row, i, {normed(i), normed(i + 1)}, false);
        store(y, row, first + i, turned.even);
        store(y, row, first + i + 1, turned.odd);
      }
  });
}

void rms_norm_rope_backward(sq_context& context, const sq_rms_norm_rope_backward_args* given, bool run) {
  const sq_rms_norm_rope_backward_args args = read_struct(given, "sq_rms_norm_rope_backward_args");
  const Heads heads = check_heads(args.x, args.weight, args.rope, args.epsilon);
  const sq_tensor& dy = check_tensor(args.dy, {"", "dy"}, {heads.x.dtype}, {heads.rows, heads.x.shape[1]}, Access::read);
  const sq_tensor& dx = check_tensor(args.dx, {"", "dx"}, {heads.x.dtype}, {heads.rows, heads.x.shape[1]}, Access::write);
  if (!run) return;

  for_heads(context, heads, [&](std::int64_t row, std::int64_t first) {
    // w g of elements i and i + 1, or of i alone where nothing is rotated.
    const auto weighted = [&](std::int64_t i) {
      const float even = load(dy, row, first + i);
      if (!heads.rope) return Pair{even * load(heads.weight, i), 0};
      const Pair g = rotated(heads, row, i, {even, load(dy, row, first + i + 1)}, true);
      return Pair{g.even * load(heads.weight, i), g.odd * load(heads.weight, i + 1)};
    };
    const std::int64_t step = heads.rope ? 2 : 1;
    double products = 0;
    for (std::int64_t i = 0; i < heads.d; i += step) {
      const Pair wg = weighted(i);
      products += static_cast<double>(load(heads.x, row, first + i)) * wg.even;
      if (heads.rope) products += static_cast<double>(load(heads.x, row, first + i + 1)) * wg.odd;
    }
    const double r = inverse_rms(heads, row, first), mean = products / static_cast<double>(heads.d);
    const auto gradient = [&](std::int64_t i, float wg) { store(dx, row, first + i, static_cast<float>(r * (wg - load(heads.x, row, first + i) * r * r * mean))); };
    for (std::int64_t i = 0; i < heads.d; i += step) {
      const Pair wg = weighted(i);
      gradient(i, wg.even);
      if (heads.rope) gradient(i + 1, wg.odd);
    }
  });
}

}  // namespace squareq::reference
