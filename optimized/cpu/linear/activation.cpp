// Activations to int8, alone or fused into their producer.
#include <algorithm>
#include <cmath>
#include <string>

#include "optimized/cpu/linear/int8_product.hpp"
#include "optimized/cpu/linear/linear_job.hpp"
#include "optimized/cpu/linear/operations.hpp"
#include "optimized/cpu/parts.hpp"

namespace squareq::cpu {
namespace {

struct Job {
  std::int32_t producer = SQ_PRODUCER_NONE;
  Matrix x, shift, scale, q;
  float* row_scale = nullptr;
  float epsilon = 0;
};

Job prepare(const sq_quantize_activation_args& args) {
  Job job;
  require_format(args.format, "per_token_int8", "", "");
  if (args.producer < SQ_PRODUCER_NONE || args.producer > SQ_PRODUCER_GELU_TANH)
    refuse(SQ_CALL_VALUE, "", "", "producer is " + std::to_string(args.producer) + ", expected 0 to 2");
  job.producer = args.producer;
  job.x = require_matrix(args.x, "x", "", {kFloatTypes, -1, -1, Use::input});
  if (job.x.cols < 1) refuse(SQ_CALL_SHAPE, "", "x", "shape is " + shape_text(*args.x) + ", expected at least one column");
  if (job.producer == SQ_PRODUCER_LAYERNORM_MODULATE) {
    job.shift = require_matrix(args.shift, "shift", "", {kFloatTypes, -1, job.x.cols, Use::input});
    job.scale = require_matrix(args.scale, "scale", "", {{job.shift.dtype}, job.shift.rows, job.x.cols, Use::input});
    if (job.shift.rows < 1 || job.x.rows % job.shift.rows != 0)
      refuse(SQ_CALL_SHAPE, "", "shift", "has " + std::to_string(job.shift.rows) + " groups, expected a divisor of the " + std::to_string(job.x.rows) + " rows of x");
    if (!std::isfinite(args.epsilon) || args.epsilon <= 0)
      refuse(SQ_CALL_VALUE, "", "", "epsilon is " + std::to_string(args.epsilon) + ", expected a finite number above 0");
    job.epsilon = args.epsilon;
  } else if (args.shift != nullptr || args.scale != nullptr) {
    refuse(SQ_CALL_VALUE, "", args.shift != nullptr ? "shift" : "scale", "belongs to producer 1 (LAYERNORM_MODULATE), producer is " + std::to_string(args.producer));
  }
  const Parts out(args.out, args.out_count, "", "per_token_int8", {"q", "scale"});
  job.q = require_matrix(out["q"], "q", "", {{SQ_I8}, job.x.rows, job.x.cols, Use::output});
  job.row_scale = require_vector(out["scale"], "scale", "", {SQ_F32}, job.x.rows).row<float>(0);
  return job;
}

void load_row(const Kernels& kernels, const Matrix& m, std::int64_t r, float* out) {
  to_f32(kernels, m.dtype, m.data + r * m.stride * static_cast<std::int64_t>(dtype_bytes(m.dtype)), m.cols, out);
}

}  // namespace

void check_quantize_activation(const sq_quantize_activation_args& args) { prepare(args); }

void quantize_activation(Context& context, const sq_quantize_activation_args& args) {
  const Job job = prepare(args);
  const Kernels& kernels = context.kernels;
  const std::int64_t depth = job.x.cols;
  // Rows go in batches of one row buffer per piece; what the producer makes stays F32 until it is quantized.
  const std::int64_t batch = std::min<std::int64_t>(job.x.rows, std::max<std::int64_t>(1, kActivationTile / depth));
  const bool modulate = job.producer == SQ_PRODUCER_LAYERNORM_MODULATE;
  Scratch scratch(context.allocator);
  float* values = nullptr;
  float* shift = nullptr;
  float* scale = nullptr;
  scratch.reserve(&values, batch * depth);
  scratch.reserve(&shift, modulate ? depth : 0);
  scratch.reserve(&scale, modulate ? depth : 0);
  scratch.commit();

  const std::int64_t group_rows = modulate ? job.x.rows / job.shift.rows : job.x.rows;
  for (std::int64_t group = 0; group * group_rows < job.x.rows; ++group) {
    if (modulate) {
      load_row(kernels, job.shift, group, shift);
      load_row(kernels, job.scale, group, scale);
    }
    for_tiles(group_rows, batch, [&](Span piece) {
      const std::int64_t first = group * group_rows + piece.begin;
      context.pool.parallel_for(piece.size, grain_for(depth), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
          float* row = values + r * depth;
          load_row(kernels, job.x, first + r, row);
          if (modulate) kernels.layernorm_modulate(row, shift, scale, depth, job.epsilon, row);
          if (job.producer == SQ_PRODUCER_GELU_TANH) kernels.gelu_tanh(row, depth, row);
          job.row_scale[first + r] = quantize_row(kernels, row, depth, job.q.row<std::int8_t>(first + r));
        }
      });
    });
  }
}

}  // namespace squareq::cpu
