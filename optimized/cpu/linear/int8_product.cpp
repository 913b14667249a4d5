#include "optimized/cpu/linear/int8_product.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "optimized/cpu/blas.hpp"

namespace squareq::cpu {

void Int8Scratch::reserve(Scratch& scratch, std::int64_t rows, std::int64_t cols, std::int64_t depth) {
  const std::int64_t step = std::min(depth, kBufferedDepth);
  scratch.reserve(&a, rows * step);
  scratch.reserve(&b, cols * step);
  scratch.reserve(&partial, rows * cols);
  scratch.reserve(&sum, rows * cols);
}

namespace {

void add_partial(Context& context, const Int8Scratch& s, std::int64_t rows, std::int64_t cols) {
  context.pool.parallel_for(rows, grain_for(cols), [&](std::int64_t begin, std::int64_t end) {
    context.kernels.accumulate_i32(s.partial + begin * cols, (end - begin) * cols, s.sum + begin * cols);
  });
}

}  // namespace

void int8_forward(Context& context, const std::int8_t* a, std::int64_t a_stride, std::int64_t rows, const Weight& w, Span n, const Int8Scratch& s) {
  std::memset(s.sum, 0, static_cast<std::size_t>(rows * n.size) * sizeof *s.sum);
  for_tiles(w.in, kBufferedDepth, [&](Span k) {
    widen_block(context, a + k.begin, a_stride, rows, k.size, s.a);
    dequantize_block(context, w, n, k, true, s.b);
    sgemm(context.pool, Op::none, Op::transpose, rows, n.size, k.size, 1, s.a, k.size, s.b, k.size, 0, s.partial, n.size);
    add_partial(context, s, rows, n.size);
  });
}

void int8_backward(Context& context, const std::int8_t* a, std::int64_t a_stride, std::int64_t rows, const Weight& w, Span k, const Int8Scratch& s) {
  std::memset(s.sum, 0, static_cast<std::size_t>(rows * k.size) * sizeof *s.sum);
  for_tiles(w.out, kBufferedDepth, [&](Span n) {
    widen_block(context, a + n.begin, a_stride, rows, n.size, s.a);
    dequantize_block(context, w, n, k, true, s.b);
    sgemm(context.pool, Op::none, Op::none, rows, k.size, n.size, 1, s.a, n.size, s.b, k.size, 0, s.partial, k.size);
    add_partial(context, s, rows, k.size);
  });
}

float quantize_row(const Kernels& kernels, const float* x, std::int64_t n, std::int8_t* q) {
  const float absmax = std::bit_cast<float>(kernels.max_abs_f32(x, n));
  const float scale = !std::isfinite(absmax) ? std::numeric_limits<float>::quiet_NaN() : std::max(absmax / 127.0f, 1e-30f);
  kernels.quantize_div(x, n, scale, q);
  return scale;
}

}  // namespace squareq::cpu
