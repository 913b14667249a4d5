#include "optimized/cpu/linear/linear_job.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "optimized/cpu/linear/int8_product.hpp"
#include "optimized/cpu/parts.hpp"

namespace squareq::cpu {
namespace {

constexpr std::int64_t kFree = -1;

/// Rows and depth of a pass. `buffered`: some activation must be converted, so that rows and depth are bounded.
Tiles tile_sizes(std::int64_t rows, std::int64_t columns, std::int64_t depth, bool buffered_rows, bool buffered_depth, bool buffered_columns) {
  Tiles t;
  t.m = even_tile(rows, buffered_rows ? kBufferedRows : kDirectRows);
  t.k = even_tile(depth, buffered_depth && t.m * std::min(depth, kDirectDepth) > kActivationTile ? kBufferedDepth : kDirectDepth);
  t.n = std::max<std::int64_t>(1, kWeightTile / t.k);
  if (buffered_columns) t.n = std::min(t.n, std::max<std::int64_t>(1, kActivationTile / t.m));
  t.n = even_tile(columns, t.n);
  return t;
}

bool check_compute(std::int32_t compute, bool codes_given, const Weight& w) {
  if (compute < SQ_COMPUTE_DEFAULT || compute > SQ_COMPUTE_W8A8)
    refuse(SQ_CALL_VALUE, w.name, "", "compute is " + std::to_string(compute) + ", expected 0 (default), 1 (exact weights) or 2 (W8A8)");
  if (compute == SQ_COMPUTE_EXACT_W && codes_given)
    refuse(SQ_CALL_VALUE, w.name, "xq", "compute 1 (exact weights) was asked for with a quantized activation, expected x");
  return compute == SQ_COMPUTE_W8A8 || codes_given;
}

void check_depth(bool int8, std::int64_t depth, const Weight& w) {
  if (int8 && depth > kInt8Depth)
    refuse(SQ_CALL_SHAPE, w.name, "", "contraction of " + std::to_string(depth) + " overflows int32, at most " + std::to_string(kInt8Depth) + " is served");
}

void check_codes(const sq_quantized_activation& xq, ForwardJob& job) {
  const std::string& layer = job.w.name;
  require_format(xq.format, "per_token_int8", layer, "xq");
  const Parts parts(xq.parts, xq.part_count, layer, "per_token_int8", {"q", "scale"});
  const Matrix codes = require_matrix(parts["q"], "xq.q", layer, {{SQ_I8}, kFree, job.w.in, Use::input});
  job.xq = codes.row<std::int8_t>(0);
  job.xq_stride = codes.stride;
  job.rows = codes.rows;
  job.xq_scale = require_vector(parts["scale"], "xq.scale", layer, {SQ_F32}, codes.rows).row<float>(0);
}

}  // namespace

void check_activation(std::int32_t activation, const Weight& w) {
  if (activation < SQ_ACT_NONE || activation > SQ_ACT_SILU)
    refuse(SQ_CALL_VALUE, w.name, "", "activation is " + std::to_string(activation) + ", expected 0 to 3");
}

Lora check_lora(const sq_lora* given, const Weight& w, const Matrix& x, std::int64_t rows) {
  if (given == nullptr) return {};
  const sq_lora l = checked_struct(given, "lora");
  Lora lora;
  lora.scaling = l.scaling;
  if (!std::isfinite(l.scaling)) refuse(SQ_CALL_VALUE, w.name, "lora", "scaling is " + std::to_string(l.scaling) + ", expected a finite number");
  lora.a = require_matrix(l.a_t, "lora.a_t", w.name, {{SQ_F32}, kFree, w.in, Use::input});
  lora.rank = lora.a.rows;
  if (lora.rank < 1) refuse(SQ_CALL_SHAPE, w.name, "lora.a_t", "has " + std::to_string(lora.rank) + " rows, expected a rank of at least 1");
  lora.b = require_matrix(l.b_t, "lora.b_t", w.name, {{SQ_F32}, w.out, lora.rank, Use::input});
  lora.x = check_matrix(l.x, "lora.x", w.name, {kFloatTypes, rows, w.in, Use::input});
  if (lora.x && x && lora.x.dtype != x.dtype)
    refuse(SQ_CALL_DTYPE, w.name, "lora.x", "dtype is " + std::string(dtype_name(lora.x.dtype)) + ", expected x's " + std::string(dtype_name(x.dtype)));
  return lora;
}

bool adapter_needs_buffer(const Matrix& m, std::int32_t activation_dtype) { return activation_dtype != SQ_F32 || !m.direct(); }

Block32 adapter_block(Context& context, const Matrix& m, Span rows, Span cols, std::int32_t activation_dtype, float* buffer) {
  if (!adapter_needs_buffer(m, activation_dtype)) return read_block(context, m, rows, cols, nullptr);
  for (std::int64_t r = 0; r < rows.size; ++r)
    to_f32(context.kernels, SQ_F32, m.row<float>(rows.begin + r) + cols.begin, cols.size, buffer + r * cols.size);
  if (activation_dtype != SQ_F32) round_block(context, activation_dtype, buffer, rows.size * cols.size);
  return {buffer, cols.size};
}

ForwardJob prepare_forward(Context& context, const sq_linear_forward_args& args) {
  ForwardJob job;
  job.w = resolve_weight(context, args.weight);
  const Weight& w = job.w;
  check_activation(args.activation, w);
  job.activation = args.activation;
  if ((args.x != nullptr) == (args.xq != nullptr))
    refuse(SQ_CALL_VALUE, w.name, "x", args.x != nullptr ? "x and xq are both set" : "neither x nor xq is set");
  job.int8 = check_compute(args.compute, args.xq != nullptr, w);
  check_depth(job.int8, w.in, w);
  if (args.xq != nullptr) {
    check_codes(checked_struct(args.xq, "xq"), job);
  } else {
    job.x = require_matrix(args.x, "x", w.name, {kFloatTypes, kFree, w.in, Use::input});
    job.rows = job.x.rows;
  }
  job.lora = check_lora(args.lora, w, job.x, job.rows);
  if (job.lora && !job.lora.x) {
    if (!job.x) refuse(SQ_CALL_NULL, w.name, "lora.x", "is required where the layer's input is given as codes only");
    job.lora.x = job.x;
  }
  job.activation_dtype = job.lora ? job.lora.x.dtype : job.x ? job.x.dtype : SQ_F32;
  if (job.x || job.lora) {
    job.y = require_matrix(args.y, "y", w.name, {{job.activation_dtype, SQ_F32}, job.rows, w.out, Use::output});
  } else {
    job.y = require_matrix(args.y, "y", w.name, {kFloatTypes, job.rows, w.out, Use::output});
  }
  job.preactivation = check_matrix(args.preactivation, "preactivation", w.name, {{job.y.dtype, SQ_F32}, job.rows, w.out, Use::output});
  if (args.h != nullptr && !job.lora) refuse(SQ_CALL_VALUE, w.name, "h", "was asked for without a LoRA branch");
  job.h = check_matrix(args.h, "h", w.name, {{SQ_F32}, job.rows, job.lora.rank, Use::output});
  const bool converts = job.int8 || !job.x.direct();
  job.tiles = tile_sizes(job.rows, w.out, w.in, converts || !job.y.direct() || job.int8, converts, !job.y.direct() || job.int8);
  if (job.int8 && job.x) job.tiles.m = even_tile(job.rows, std::clamp<std::int64_t>(4 * kActivationTile / w.in, 1, kBufferedRows));  // its codes: 4 MiB
  return job;
}

BackwardJob prepare_backward(Context& context, const sq_linear_backward_args& args) {
  BackwardJob job;
  job.w = resolve_weight(context, args.weight);
  const Weight& w = job.w;
  check_activation(args.activation, w);
  job.activation = args.activation;
  if (args.accumulate > 1) refuse(SQ_CALL_VALUE, w.name, "", "accumulate is " + std::to_string(args.accumulate) + ", expected 0 or 1");
  job.accumulate = args.accumulate == 1;
  job.int8 = check_compute(args.compute, false, w);
  check_depth(job.int8, w.out, w);
  job.dy = require_matrix(args.dy, "dy", w.name, {kFloatTypes, kFree, w.out, Use::input});
  job.rows = job.dy.rows;
  if (job.activation != SQ_ACT_NONE)
    job.preactivation = require_matrix(args.preactivation, "preactivation", w.name, {{job.dy.dtype, SQ_F32}, job.rows, w.out, Use::input});
  job.x = check_matrix(args.x, "x", w.name, {kFloatTypes, job.rows, w.in, Use::input});
  job.lora = check_lora(args.lora, w, job.x, job.rows);
  job.own_input = job.lora && job.lora.x;
  if (job.lora && !job.lora.x) job.lora.x = job.x;
  const std::pair<const char*, const sq_tensor*> of_branch[] = {{"h", args.h}, {"da_t", args.da_t}, {"db_t", args.db_t}, {"dx_lora", args.dx_lora}};
  for (const auto& [name, tensor] : of_branch)
    if (tensor != nullptr && !job.lora) refuse(SQ_CALL_VALUE, w.name, name, "belongs to a LoRA branch, which is not given");
  if (args.dx_lora != nullptr && !job.own_input) refuse(SQ_CALL_VALUE, w.name, "dx_lora", "was asked for without lora.x: dx holds the branch's share");
  job.h = check_matrix(args.h, "h", w.name, {{SQ_F32}, job.rows, job.lora.rank, Use::input});
  if ((args.da_t != nullptr || (args.db_t != nullptr && !job.h)) && !job.lora.x)
    refuse(SQ_CALL_NULL, w.name, "x", args.da_t != nullptr ? "is required for da_t" : "is required for db_t where h is not given");
  const Matrix& input = job.lora && job.lora.x ? job.lora.x : job.x;
  job.activation_dtype = input ? input.dtype : job.dy.dtype;
  if (job.dy.dtype != job.activation_dtype && job.dy.dtype != SQ_F32)
    refuse(SQ_CALL_DTYPE, w.name, "dy", "dtype is " + std::string(dtype_name(job.dy.dtype)) + ", expected x's " + std::string(dtype_name(job.activation_dtype)) + " or f32");
  job.dx = check_matrix(args.dx, "dx", w.name, {{job.dy.dtype}, job.rows, w.in, Use::output});
  job.dx_lora = check_matrix(args.dx_lora, "dx_lora", w.name, {{job.dy.dtype}, job.rows, w.in, Use::output});
  job.da = check_matrix(args.da_t, "da_t", w.name, {{SQ_F32}, job.lora.rank, w.in, Use::output});
  job.db = check_matrix(args.db_t, "db_t", w.name, {{SQ_F32}, w.out, job.lora.rank, Use::output});
  const auto buffered = [](const Matrix& m) { return m.given && !m.direct(); };
  const bool wide = buffered(job.dx) || buffered(job.dx_lora) || (job.da && buffered(job.lora.x));
  job.tiles = tile_sizes(job.rows, w.out, w.in, !job.dy_direct() || wide || job.int8, wide || job.int8, !job.dy_direct());
  if (job.int8) {  // one row's scale needs the whole row
    job.tiles.m = even_tile(job.rows, std::max<std::int64_t>(1, std::min(kBufferedRows, kActivationTile / w.out)));
    job.tiles.n = w.out;
    job.tiles.k = even_tile(w.in, kBufferedDepth);
  }
  return job;
}

ActivationLoop activation_loop(const Kernels& kernels, std::int32_t activation) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: return kernels.gelu_tanh;
    case SQ_ACT_GELU_ERF: return kernels.gelu_erf;
    case SQ_ACT_SILU: return kernels.silu;
    default: return nullptr;
  }
}

GradientLoop gradient_loop(const Kernels& kernels, std::int32_t activation) {
  switch (activation) {
    case SQ_ACT_GELU_TANH: return kernels.gelu_tanh_gradient;
    case SQ_ACT_GELU_ERF: return kernels.gelu_erf_gradient;
    case SQ_ACT_SILU: return kernels.silu_gradient;
    default: return nullptr;
  }
}

}  // namespace squareq::cpu
