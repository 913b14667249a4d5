// RMSNorm of every head, then a rotation of its neighbouring pairs, and the gradient of both (SQ-LIN-060 to 065). Rows are shared out
// over the threads; a head is worked through in pieces on the stack, so that any d needs no scratch and outputs may be their inputs.
#include <algorithm>
#include <cmath>
#include <string>

#include "optimized/cpu/linear/linear_job.hpp"
#include "optimized/cpu/linear/operations.hpp"

namespace squareq::cpu {
namespace {

constexpr std::int64_t kPiece = 256;  // elements; a multiple of the 16 lanes of the sums, so that they do not depend on it
constexpr std::int64_t kLanes = 16;

/// A call after its checks. Forward: `in` is x itself, `out` y. Backward: dy and dx.
struct Job {
  Matrix x, weight, rope, in, out;
  std::int64_t d = 0, heads = 0;
  float epsilon = 0;
};

Job prepare(const sq_tensor* x, const sq_tensor* weight, const sq_tensor* rope, float epsilon) {
  Job job;
  job.x = require_matrix(x, "x", "", {kFloatTypes, -1, -1, Use::input});
  job.weight = require_vector(weight, "weight", "", kFloatTypes, -1);
  job.d = job.weight.cols;
  if (job.d < 1 || job.x.cols < 1 || job.x.cols % job.d != 0)
    refuse(SQ_CALL_SHAPE, "", "x", "shape is " + shape_text(*x) + ", expected columns that are a multiple of the " + std::to_string(job.d) + " elements of weight");
  job.heads = job.x.cols / job.d;
  if (rope != nullptr) {
    job.rope = require_matrix(rope, "rope", "", {{SQ_F32}, -1, job.d, Use::input});
    if (job.d % 2 != 0) refuse(SQ_CALL_SHAPE, "", "rope", "a head has " + std::to_string(job.d) + " elements, expected an even number for a rotation of pairs");
    if (job.rope.rows < 1 || job.x.rows % job.rope.rows != 0)
      refuse(SQ_CALL_SHAPE, "", "rope", "has " + std::to_string(job.rope.rows) + " rows, expected a divisor of the " + std::to_string(job.x.rows) + " rows of x");
  }
  if (!std::isfinite(epsilon) || epsilon <= 0)
    refuse(SQ_CALL_VALUE, "", "", "epsilon is " + std::to_string(epsilon) + ", expected a finite number above 0");
  job.epsilon = epsilon;
  return job;
}

Job prepare(const sq_rms_norm_rope_forward_args& args) {
  Job job = prepare(args.x, args.weight, args.rope, args.epsilon);
  job.in = job.x;
  job.out = require_matrix(args.y, "y", "", {{job.x.dtype}, job.x.rows, job.x.cols, Use::output});
  return job;
}

Job prepare(const sq_rms_norm_rope_backward_args& args) {
  Job job = prepare(args.x, args.weight, args.rope, args.epsilon);
  job.in = require_matrix(args.dy, "dy", "", {{job.x.dtype}, job.x.rows, job.x.cols, Use::input});
  job.out = require_matrix(args.dx, "dx", "", {{job.x.dtype}, job.x.rows, job.x.cols, Use::output});
  return job;
}

std::byte* address(const Matrix& m, std::int64_t row, std::int64_t column) {
  return m.data + (row * m.stride + column) * static_cast<std::int64_t>(dtype_bytes(m.dtype));
}

/// `n` elements as F32: where they lie, or widened into `buffer`.
const float* widened(const Kernels& kernels, const Matrix& m, std::int64_t row, std::int64_t column, std::int64_t n, float* buffer) {
  const std::byte* from = address(m, row, column);
  if (m.dtype == SQ_F32) return reinterpret_cast<const float*>(from);
  to_f32(kernels, m.dtype, from, n, buffer);
  return buffer;
}

/// Calls body(begin, size) for the pieces of one head.
template <class Body>
void for_pieces(std::int64_t d, const Body& body) {
  for (std::int64_t begin = 0; begin < d; begin += kPiece) body(begin, std::min(kPiece, d - begin));
}

double mean_of(const double* lanes, std::int64_t d) {
  double sum = 0;
  for (std::int64_t l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum / static_cast<double>(d);
}

/// 1 / sqrt(mean(x^2) + epsilon) of the head that begins at `column`.
double inverse_rms(const Kernels& kernels, const Job& job, std::int64_t row, std::int64_t column) {
  double lanes[kLanes] = {};
  float buffer[kPiece];
  for_pieces(job.d, [&](std::int64_t begin, std::int64_t n) { kernels.add_squares(widened(kernels, job.x, row, column + begin, n, buffer), n, lanes); });
  return 1.0 / std::sqrt(mean_of(lanes, job.d) + static_cast<double>(job.epsilon));
}

void forward_head(const Kernels& kernels, const Job& job, std::int64_t row, std::int64_t column) {
  const auto r = static_cast<float>(inverse_rms(kernels, job, row, column));
  float x[kPiece], weight[kPiece], y[kPiece];
  for_pieces(job.d, [&](std::int64_t begin, std::int64_t n) {
    kernels.scale_by_weight(widened(kernels, job.x, row, column + begin, n, x), widened(kernels, job.weight, 0, begin, n, weight), n, r, y);
    if (job.rope) kernels.rotate_pairs(job.rope.row<float>(row % job.rope.rows) + begin, n, 1.0f, y);
    from_f32(kernels, job.out.dtype, y, n, address(job.out, row, column + begin));
  });
}

void backward_head(const Kernels& kernels, const Job& job, std::int64_t row, std::int64_t column) {
  float x[kPiece], weight[kPiece], g[kPiece];
  const auto turned_back = [&](std::int64_t begin, std::int64_t n) {
    to_f32(kernels, job.in.dtype, address(job.in, row, column + begin), n, g);
    if (job.rope) kernels.rotate_pairs(job.rope.row<float>(row % job.rope.rows) + begin, n, -1.0f, g);
  };
  const double r = inverse_rms(kernels, job, row, column);
  double lanes[kLanes] = {};
  for_pieces(job.d, [&](std::int64_t begin, std::int64_t n) {
    turned_back(begin, n);
    kernels.add_products(widened(kernels, job.x, row, column + begin, n, x), widened(kernels, job.weight, 0, begin, n, weight), g, n, lanes);
  });
  const auto mean = static_cast<float>(mean_of(lanes, job.d) * r);
  for_pieces(job.d, [&](std::int64_t begin, std::int64_t n) {
    turned_back(begin, n);
    kernels.rms_norm_gradient(widened(kernels, job.x, row, column + begin, n, x), widened(kernels, job.weight, 0, begin, n, weight), g, n, static_cast<float>(r), mean, g);
    from_f32(kernels, job.out.dtype, g, n, address(job.out, row, column + begin));
  });
}

/// Calls head(kernels, job, row, column) for every head of every row, on the context's threads.
template <class Head>
void for_heads(Context& context, const Job& job, const Head& head) {
  context.pool.parallel_for(job.x.rows, grain_for(job.x.cols), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row)
      for (std::int64_t h = 0; h < job.heads; ++h) head(context.kernels, job, row, h * job.d);
  });
}

}  // namespace

void check_rms_norm_rope(const sq_rms_norm_rope_forward_args& args) { prepare(args); }
void check_rms_norm_rope(const sq_rms_norm_rope_backward_args& args) { prepare(args); }

void rms_norm_rope_forward(Context& context, const sq_rms_norm_rope_forward_args& args) { for_heads(context, prepare(args), forward_head); }
void rms_norm_rope_backward(Context& context, const sq_rms_norm_rope_backward_args& args) { for_heads(context, prepare(args), backward_head); }

}  // namespace squareq::cpu
