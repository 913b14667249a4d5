// per_token_int8: one scale per row of X (SQ-QNT-020 to 024), alone or behind the producer of X.
#include <cmath>

#include "reference/linear/activation.hpp"
#include "reference/linear/ops.hpp"

namespace squareq::reference {

float activation_scale(const float* x, std::int64_t count, std::int64_t stride) {
  float amax = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float a = std::fabs(x[i * stride]);
    if (!std::isfinite(a)) return std::nanf("");  // the whole row becomes NaN: never a finite result from a non-finite input
    amax = std::fmax(amax, a);
  }
  return std::fmax(amax / 127.0f, 1e-30f);
}

namespace {

/// y = LayerNorm(x) * (1 + scale) + shift over one row, without affine parameters. Statistics in double.
void layernorm_modulate(float* x, std::int64_t columns, float epsilon, const sq_tensor& shift, const sq_tensor& scale, std::int64_t group) {
  double sum = 0, squares = 0;
  for (std::int64_t k = 0; k < columns; ++k) sum += x[k];
  const double mean = sum / static_cast<double>(columns);
  for (std::int64_t k = 0; k < columns; ++k) squares += (x[k] - mean) * (x[k] - mean);
  const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(columns) + epsilon);
  for (std::int64_t k = 0; k < columns; ++k)
    x[k] = static_cast<float>((x[k] - mean) * inverse) * (1.0f + load(scale, group, k)) + load(shift, group, k);
}

}  // namespace

void quantize_activation(sq_context& context, const sq_quantize_activation_args* given, bool run) {
  const sq_quantize_activation_args args = read_struct(given, "sq_quantize_activation_args");
  if (!args.format) throw Error(Code::CALL_NULL, "sq_quantize_activation_args: format is required");
  if (std::string_view(args.format) != "per_token_int8")
    throw Error(Code::CALL_UNSUPPORTED, "activation format is '" + std::string(args.format) + "', reference quantizes to 'per_token_int8'");
  if (args.producer < SQ_PRODUCER_NONE || args.producer > SQ_PRODUCER_GELU_TANH)
    throw Error(Code::CALL_VALUE, "producer is " + std::to_string(args.producer) + ", must be 0, 1 or 2");
  const Subject subject{"", "x"};
  if (!args.x) refuse(Code::CALL_NULL, subject, "tensor is missing");
  const sq_tensor& x = check_rows(args.x, subject, {SQ_F32, SQ_BF16, SQ_F16}, args.x->rank == 2 ? args.x->shape[1] : 0, Access::read);
  const std::int64_t rows = x.shape[0], columns = x.shape[1];
  if (columns < 1) refuse(Code::CALL_SHAPE, subject, "shape is " + shape_text(x) + ", rows must hold at least 1 element");
  check_part_names(args.out, args.out_count, "", args.format, {"q", "scale"}, {});
  const sq_tensor& q = check_tensor(&find_part(args.out, args.out_count, "q")->tensor, {"", "q"}, {SQ_I8}, {rows, columns}, Access::write);
  const sq_tensor& scale = check_tensor(&find_part(args.out, args.out_count, "scale")->tensor, {"", "scale"}, {SQ_F32}, {rows}, Access::write);

  const bool modulate = args.producer == SQ_PRODUCER_LAYERNORM_MODULATE;
  std::int64_t rows_per_group = 1;
  if (modulate) {
    const Subject shift{"", "shift"};
    const sq_tensor& t = check_rows(args.shift, shift, {SQ_F32, SQ_BF16, SQ_F16}, columns, Access::read);
    const std::int64_t groups = t.shape[0];
    if (groups < 1 || rows % groups != 0) refuse(Code::CALL_SHAPE, shift, std::to_string(groups) + " groups do not divide the " + std::to_string(rows) + " rows of x");
    check_tensor(args.scale, {"", "modulation scale"}, {t.dtype}, {groups, columns}, Access::read);
    rows_per_group = std::max<std::int64_t>(1, rows / groups);
    if (!(args.epsilon > 0) || !std::isfinite(args.epsilon)) throw Error(Code::CALL_VALUE, "epsilon is " + std::to_string(args.epsilon) + ", must be positive and finite");
  } else if (args.shift || args.scale) {
    throw Error(Code::CALL_VALUE, "shift and scale belong to producer LAYERNORM_MODULATE, but producer is " + std::to_string(args.producer));
  }
  if (!run || rows == 0) return;

  const Matrix wide(context, rows, columns, "quantize_activation x");
  parallel_for(context, rows, [&](std::int64_t m) {
    float* row = wide.row(m);
    for (std::int64_t k = 0; k < columns; ++k) row[k] = load(x, m, k);
    if (modulate) layernorm_modulate(row, columns, args.epsilon, *args.shift, *args.scale, m / rows_per_group);
    if (args.producer == SQ_PRODUCER_GELU_TANH)
      for (std::int64_t k = 0; k < columns; ++k) row[k] = activate(SQ_ACT_GELU_TANH, row[k]);
    const float s = activation_scale(row, columns, 1);
    static_cast<float*>(scale.data)[m] = s;
    for (std::int64_t k = 0; k < columns; ++k) static_cast<std::int8_t*>(q.data)[m * q.strides[0] + k] = quantize_value(row[k], s);
  });
}

}  // namespace squareq::reference
