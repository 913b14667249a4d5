#include <cmath>

#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/context.hpp"
#include "optimized/cuda/kernels/rows.hpp"
#include "optimized/cuda/linear/ops.hpp"
#include "squareq/text.hpp"

namespace squareq::cuda {
namespace {

constexpr auto kFloats = {std::int32_t{SQ_F32}, std::int32_t{SQ_BF16}, std::int32_t{SQ_F16}};

Rows rows_of(const sq_tensor& t) { return {t.data, t.dtype, t.shape[0], t.shape[1], t.shape[0] > 1 ? t.strides[0] : t.shape[1]}; }

Producer check_producer(const sq_context& context, const sq_quantize_activation_args& args, std::int64_t rows, std::int64_t columns) {
  if (args.producer < SQ_PRODUCER_NONE || args.producer > SQ_PRODUCER_GELU_TANH)
    throw Error(Code::CALL_VALUE, "producer is " + std::to_string(args.producer) + ", must be 0, 1 or 2");
  Producer producer{args.producer, {}, {}, 1, args.epsilon};
  if (args.producer != SQ_PRODUCER_LAYERNORM_MODULATE) {
    if (args.shift || args.scale)
      throw Error(Code::CALL_VALUE,
                  "shift and scale belong to producer LAYERNORM_MODULATE, but producer is " + std::to_string(args.producer));
    return producer;
  }
  const Subject subject{"", "shift"};
  const sq_tensor& shift = check_tensor(context, args.shift, subject, kFloats, {-1, columns});
  const std::int64_t groups = shift.shape[0];
  if (groups < 1 || rows % groups != 0)
    refuse(Code::CALL_SHAPE, subject, std::to_string(groups) + " groups do not divide the " + std::to_string(rows) + " rows of x");
  producer.shift = rows_of(shift);
  producer.scale = rows_of(check_tensor(context, args.scale, {"", "modulation scale"}, {shift.dtype}, {groups, columns}));
  producer.rows_per_group = std::max<std::int64_t>(1, rows / groups);
  if (!std::isfinite(args.epsilon) || args.epsilon <= 0)
    throw Error(Code::CALL_VALUE, "epsilon is " + std::to_string(args.epsilon) + ", must be finite and above 0");
  return producer;
}

}  // namespace

void quantize_activation(const sq_context& context, const sq_quantize_activation_args* given, bool run) {
  const sq_quantize_activation_args args = read_struct(given, "sq_quantize_activation_args");
  if (!args.format) throw Error(Code::CALL_NULL, "sq_quantize_activation_args: format is required");
  if (std::string_view(args.format) != "per_token_int8")
    throw Error(Code::CALL_UNSUPPORTED, "activation format is '" + printable(args.format) + "', cuda quantizes to 'per_token_int8'");
  const Subject subject{"", "x"};
  const sq_tensor& x = check_tensor(context, args.x, subject, kFloats, {-1, -1});
  const std::int64_t rows = x.shape[0], columns = x.shape[1];
  if (columns < 1) refuse(Code::CALL_SHAPE, subject, "shape is " + shape_text(x) + ", rows must hold at least 1 element");
  check_part_names(args.out, args.out_count, "", {"q", "scale"}, {}, "per_token_int8");
  const sq_tensor& q = check_tensor(context, &find_part(args.out, args.out_count, "q")->tensor, {"", "q"}, {SQ_I8}, {rows, columns}, Access::write);
  const sq_tensor& scale = check_tensor(context, &find_part(args.out, args.out_count, "scale")->tensor, {"", "scale"}, {SQ_F32}, {rows}, Access::write);
  const Producer producer = check_producer(context, args, rows, columns);
  if (!run) return;

  const CurrentDevice current(context);
  check_cuda(quantize_tokens(rows_of(x), producer, static_cast<std::int8_t*>(q.data), rows_of(q).row_stride, columns,
                             static_cast<float*>(scale.data), cuda_stream(args.stream)),
             "quantize_activation");
}

}  // namespace squareq::cuda
