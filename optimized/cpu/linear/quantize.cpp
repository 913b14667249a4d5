// bp8_v2: per-row symmetric INT8 (SQ-QNT). All fp32: s = max(absmax / 127, 1e-8), inv = 1 / s, q = clamp(rne(w * inv)).
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "optimized/cpu/linear/operations.hpp"
#include "optimized/cpu/linear/tiles.hpp"
#include "optimized/cpu/parts.hpp"

namespace squareq::cpu {
namespace {

constexpr float kScaleFloor = 1e-8f;

struct Job {
  std::string name;
  Matrix w;
  Matrix q;
  float* scale = nullptr;
  float* zero_point = nullptr;
};

Job prepare(const sq_quantize_args& args) {
  Job job;
  job.name = require_name(args.name, "sq_quantize_args");
  const std::string& layer = job.name;
  require_format(args.format, "bp8_v2", layer, "");
  job.w = require_matrix(args.w, "w", layer, {{SQ_F32, SQ_F16, SQ_BF16, SQ_F64}, -1, -1, Use::input});
  if (job.w.rows < 1 || job.w.cols < 1) refuse(SQ_CALL_SHAPE, layer, "w", "shape is " + shape_text(*args.w) + ", expected at least [1, 1]");
  const std::int64_t pack = std::max<std::int64_t>(1, args.pack_k);
  const std::int64_t padded = (job.w.cols + pack - 1) / pack * pack;
  const Parts out(args.out, args.out_count, layer, "bp8_v2", {"qweight", "scale", "zero_point"});
  job.q = require_matrix(out["qweight"], "qweight", layer, {{SQ_I8}, job.w.rows, padded, Use::output});
  job.scale = require_vector(out["scale"], "scale", layer, {SQ_F32}, job.w.rows).row<float>(0);
  job.zero_point = require_vector(out["zero_point"], "zero_point", layer, {SQ_F32}, job.w.rows).row<float>(0);
  return job;
}

/// F64 rows are narrowed first, by the type's own rounding; other types are read as they are.
const void* source_row(const Matrix& w, std::int64_t r, float* narrowed) {
  if (w.dtype != SQ_F64) return w.data + r * w.stride * static_cast<std::int64_t>(dtype_bytes(w.dtype));
  const double* row = w.row<double>(r);
  for (std::int64_t k = 0; k < w.cols; ++k) narrowed[k] = static_cast<float>(row[k]);
  return narrowed;
}

/// max |w| of a row; NaN or infinity where the row holds one.
float row_absmax(const Kernels& kernels, const Matrix& w, const void* row) {
  if (!w.is_16()) return std::bit_cast<float>(kernels.max_abs_f32(static_cast<const float*>(row), w.cols));
  const auto bits = static_cast<std::uint16_t>(kernels.max_abs_16(static_cast<const std::uint16_t*>(row), w.cols));
  float value = 0;
  to_f32(kernels, w.dtype, &bits, 1, &value);
  return value;
}

float row_scale(float absmax) { return std::max(absmax / 127.0f, kScaleFloor); }

[[noreturn]] void refuse_row(const Kernels& kernels, const Job& job, std::int64_t r, float absmax) {
  std::vector<float> narrowed(static_cast<std::size_t>(job.w.cols));
  std::vector<float> row(static_cast<std::size_t>(job.w.cols));
  const void* source = source_row(job.w, r, narrowed.data());
  to_f32(kernels, job.w.dtype == SQ_F64 ? SQ_F32 : job.w.dtype, source, job.w.cols, row.data());
  std::int64_t column = 0;
  while (std::isfinite(absmax) ? std::fabs(row[static_cast<std::size_t>(column)]) != absmax : std::isfinite(row[static_cast<std::size_t>(column)]))
    ++column;
  const std::string value = std::to_string(row[static_cast<std::size_t>(column)]);
  refuse(SQ_DT_WEIGHT_NONFINITE, job.name, "w",
         "row " + std::to_string(r) + ", column " + std::to_string(column) + " is " + value +
             (std::isfinite(absmax) ? ": 127 * scale of its row overflows" : ", expected a finite value"));
}

void quantize_row_codes(const Kernels& kernels, const Job& job, std::int64_t r, float absmax, float* narrowed) {
  const float scale = row_scale(absmax);
  const float inv = 1.0f / scale;
  const void* source = source_row(job.w, r, narrowed);
  auto* q = job.q.row<std::int8_t>(r);
  switch (job.w.dtype) {
    case SQ_BF16: kernels.quantize_bf16(static_cast<const std::uint16_t*>(source), job.w.cols, inv, q); break;
    case SQ_F16: kernels.quantize_f16(static_cast<const std::uint16_t*>(source), job.w.cols, inv, q); break;
    default: kernels.quantize_f32(static_cast<const float*>(source), job.w.cols, inv, q); break;
  }
  std::memset(q + job.w.cols, 0, static_cast<std::size_t>(job.q.cols - job.w.cols));
  job.scale[r] = scale;
  job.zero_point[r] = 0.0f;
}

}  // namespace

void check_quantize(const sq_quantize_args& args) { prepare(args); }

void quantize(Context& context, const sq_quantize_args& args) {
  const Job job = prepare(args);
  const Kernels& kernels = context.kernels;
  const std::int64_t rows = job.w.rows;

  Scratch scratch(context.allocator);
  float* absmax = nullptr;
  float* narrowed = nullptr;  // F64 only; then rows are walked by one thread
  scratch.reserve(&absmax, rows);
  if (job.w.dtype == SQ_F64) scratch.reserve(&narrowed, job.w.cols);
  scratch.commit();
  const std::int64_t grain = narrowed != nullptr ? rows : grain_for(job.w.cols);

  // Every row is judged before the first byte is written: a refused request changes nothing (SQ-CNV-003).
  context.pool.parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) absmax[r] = row_absmax(kernels, job.w, source_row(job.w, r, narrowed));
  });
  std::uint64_t floored = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    if (!std::isfinite(127.0f * row_scale(absmax[r])) || std::isnan(absmax[r])) refuse_row(kernels, job, r, absmax[r]);
    floored += absmax[r] / 127.0f < kScaleFloor ? 1 : 0;
  }
  context.pool.parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) quantize_row_codes(kernels, job, r, absmax[r], narrowed);
  });
  if (args.floored_rows != nullptr) *args.floored_rows = floored;
}

namespace {

struct DequantizeJob {
  Weight w;
  Matrix out;
};

DequantizeJob prepare_dequantize(Context& context, const sq_dequantize_args& args) {
  const Weight w = resolve_weight(context, args.weight);
  const Matrix out = require_matrix(args.out, "out", w.name, {{SQ_F32, SQ_BF16, SQ_F16}, -1, w.in, Use::output});
  if (args.first_row < 0 || args.first_row > w.out || out.rows > w.out - args.first_row)
    refuse(SQ_CALL_SHAPE, w.name, "out",
           "rows [" + std::to_string(args.first_row) + ", +" + std::to_string(out.rows) + ") of a weight of " + std::to_string(w.out) + " rows");
  return {w, out};
}

}  // namespace

void check_dequantize(Context& context, const sq_dequantize_args& args) { prepare_dequantize(context, args); }

void dequantize(Context& context, const sq_dequantize_args& args) {
  const auto [weight, result] = prepare_dequantize(context, args);
  const Weight& w = weight;
  const Matrix& out = result;
  constexpr std::int64_t piece = 1024;
  context.pool.parallel_for(out.rows, grain_for(w.in), [&](std::int64_t begin, std::int64_t end) {
    float values[piece];
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t n = args.first_row + r;
      for_tiles(w.in, piece, [&](Span k) {
        float* to = out.is_16() ? values : out.row<float>(r) + k.begin;
        context.kernels.dequantize(w.q + n * w.stride + k.begin, k.size, w.scale[n], to);
        if (out.is_16()) from_f32(context.kernels, out.dtype, values, k.size, out.row<std::uint16_t>(r) + k.begin);
      });
    }
  });
}

}  // namespace squareq::cpu
