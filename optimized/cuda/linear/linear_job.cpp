#include "optimized/cuda/linear/linear_job.hpp"

#include <cmath>
#include <string>

#include "optimized/cuda/arguments.hpp"
#include "squareq/text.hpp"

namespace squareq::cuda {
namespace {

constexpr auto kFloats = {std::int32_t{SQ_F32}, std::int32_t{SQ_BF16}, std::int32_t{SQ_F16}};
constexpr std::int64_t kLongestInt8Sum = 133144;  // 127 * 127 * 133144 < 2^31
constexpr std::int64_t kMostRows = std::int64_t{1} << 30;  // rows and features are counted in 32 bits on the device

Matrix matrix_of(const sq_tensor& t) {
  const bool several = t.shape[0] > 1;
  return {t.data, t.dtype, t.shape[0], t.shape[1], several ? t.strides[0] : t.shape[1], true};
}

Matrix optional(const sq_context& context, const sq_tensor* tensor, const Subject& subject, std::initializer_list<std::int32_t> dtypes, std::int64_t rows,
                std::int64_t columns, Access access) {
  return tensor ? matrix_of(check_tensor(context, tensor, subject, dtypes, {rows, columns}, access)) : Matrix{};
}

void check_numbers(const Weight& w, std::int32_t activation, std::int32_t compute) {
  if (activation < SQ_ACT_NONE || activation > SQ_ACT_SILU)
    refuse(Code::CALL_VALUE, {w.name, ""}, "activation is " + std::to_string(activation) + ", must be 0 to 3");
  if (compute < SQ_COMPUTE_DEFAULT || compute > SQ_COMPUTE_W8A8)
    refuse(Code::CALL_VALUE, {w.name, ""}, "compute is " + std::to_string(compute) + ", must be 0 to 2");
}

void check_sum(const Weight& w, bool int8, std::int64_t length) {
  if (int8 && length > kLongestInt8Sum)
    refuse(Code::CALL_SHAPE, {w.name, ""},
           "a sum of " + std::to_string(length) + " int8 products can overflow int32, at most " + std::to_string(kLongestInt8Sum) +
               " are served");
}

std::int64_t check_row_count(const Weight& w, const char* tensor, std::int64_t rows) {
  if (rows > kMostRows) refuse(Code::CALL_SHAPE, {w.name, tensor}, "has " + std::to_string(rows) + " rows, at most " + std::to_string(kMostRows) + " are served");
  if (w.out > kMostRows || w.in > kMostRows)
    refuse(Code::CALL_SHAPE, {w.name, ""},
           "weight is [" + std::to_string(w.out) + ", " + std::to_string(w.in) + "], at most " + std::to_string(kMostRows) +
               " each are served");
  return rows;
}

/// The branch's own x, or null. Only the struct is looked at.
const sq_tensor* own_x(const sq_lora* lora) { return lora ? read_struct(lora, "sq_lora").x : nullptr; }

/// `dtype`: what lora->x must be.
Lora check_lora(const sq_context& context, const sq_lora* given, const Weight& w, std::int64_t rows, std::int32_t dtype) {
  if (!given) return {};
  const sq_lora args = read_struct(given, "sq_lora");
  Lora lora;
  lora.scaling = args.scaling;
  if (!std::isfinite(lora.scaling)) refuse(Code::CALL_VALUE, {w.name, "lora"}, "scaling is " + std::to_string(lora.scaling) + ", must be finite");
  const Subject a{w.name, "lora a_t"};
  lora.a_t = matrix_of(check_tensor(context, args.a_t, a, {SQ_F32}, {-1, w.in}));
  lora.rank = lora.a_t.rows;
  if (lora.rank < 1) refuse(Code::CALL_SHAPE, a, "rank is 0, must be at least 1");
  lora.b_t = matrix_of(check_tensor(context, args.b_t, {w.name, "lora b_t"}, {SQ_F32}, {w.out, lora.rank}));
  lora.own_x = args.x != nullptr;
  lora.x = optional(context, args.x, {w.name, "lora x"}, {dtype}, rows, w.in, Access::read);
  return lora;
}

void check_codes(const sq_context& context, const sq_quantized_activation* given, ForwardJob& job) {
  const sq_quantized_activation xq = read_struct(given, "sq_quantized_activation");
  const Subject self{job.w.name, "xq"};
  if (!xq.format) refuse(Code::CALL_NULL, self, "format is null");
  if (std::string_view(xq.format) != "per_token_int8") refuse(Code::CALL_UNSUPPORTED, self, "format is '" + printable(xq.format) + "', cuda reads 'per_token_int8'");
  check_part_names(xq.parts, xq.part_count, job.w.name, {"q", "scale"}, {}, "per_token_int8");
  job.xq = matrix_of(check_tensor(context, &find_part(xq.parts, xq.part_count, "q")->tensor, {job.w.name, "xq q"}, {SQ_I8}, {-1, job.w.in}));
  job.rows = job.xq.rows;
  job.xq_scale = static_cast<const float*>(
      check_tensor(context, &find_part(xq.parts, xq.part_count, "scale")->tensor, {job.w.name, "xq scale"}, {SQ_F32}, {job.rows}).data);
}

}  // namespace

ForwardJob prepare_forward(const sq_context& context, const sq_linear_forward_args* given) {
  const sq_linear_forward_args args = read_struct(given, "sq_linear_forward_args");
  ForwardJob job;
  job.w = resolve_weight(context, args.weight, cuda_stream(args.stream));
  const Weight& w = job.w;
  check_numbers(w, args.activation, args.compute);
  job.activation = args.activation;
  if ((args.x != nullptr) == (args.xq != nullptr)) refuse(Code::CALL_VALUE, {w.name, "x"}, "exactly one of x and xq must be given");
  if (args.xq && args.compute == SQ_COMPUTE_EXACT_W) refuse(Code::CALL_VALUE, {w.name, "xq"}, "compute EXACT_W needs a floating x, but xq was given");
  job.int8 = args.xq || args.compute == SQ_COMPUTE_W8A8;
  check_sum(w, job.int8, w.in);
  if (args.xq) {
    check_codes(context, args.xq, job);
  } else {
    job.x = matrix_of(check_tensor(context, args.x, {w.name, "x"}, kFloats, {-1, w.in}));
    job.rows = job.x.rows;
  }
  check_row_count(w, "x", job.rows);

  const Subject y{w.name, "y"};
  if (!args.y) refuse(Code::CALL_NULL, y, "tensor is missing");
  const sq_tensor* branch_x = own_x(args.lora);
  // The activations' dtype: X's own; with an int8 X, that of the branch's floating input or of Y.
  job.dtype = job.x ? job.x.dtype : branch_x ? branch_x->dtype : args.y->dtype;
  job.y = matrix_of(job.x || args.lora ? check_tensor(context, args.y, y, {job.dtype, SQ_F32}, {job.rows, w.out}, Access::write)
                                       : check_tensor(context, args.y, y, kFloats, {job.rows, w.out}, Access::write));
  if (branch_x && !job.x) check_tensor(context, branch_x, {w.name, "lora x"}, kFloats, {job.rows, w.in});
  job.lora = check_lora(context, args.lora, w, job.rows, job.dtype);
  if (job.lora && !job.lora.own_x) {
    if (!job.x) refuse(Code::CALL_NULL, {w.name, "lora x"}, "an int8 x cannot feed the low-rank branch, which needs its own floating x");
    job.lora.x = job.x;
  }
  job.preactivation = optional(context, args.preactivation, {w.name, "preactivation"}, {job.y.dtype, SQ_F32}, job.rows, w.out, Access::write);
  if (args.h && !job.lora) refuse(Code::CALL_VALUE, {w.name, "h"}, "h was asked for, but there is no lora");
  job.h = optional(context, args.h, {w.name, "h"}, {SQ_F32}, job.rows, job.lora.rank, Access::write);
  return job;
}

BackwardJob prepare_backward(const sq_context& context, const sq_linear_backward_args* given) {
  const sq_linear_backward_args args = read_struct(given, "sq_linear_backward_args");
  BackwardJob job;
  job.w = resolve_weight(context, args.weight, cuda_stream(args.stream));
  const Weight& w = job.w;
  check_numbers(w, args.activation, args.compute);
  if (args.accumulate > 1) refuse(Code::CALL_VALUE, {w.name, ""}, "accumulate is " + std::to_string(args.accumulate) + ", must be 0 or 1");
  job.activation = args.activation;
  job.accumulate = args.accumulate != 0;
  job.int8 = args.compute == SQ_COMPUTE_W8A8;
  check_sum(w, job.int8, w.out);
  job.dy = matrix_of(check_tensor(context, args.dy, {w.name, "dy"}, kFloats, {-1, w.out}));
  const std::int64_t rows = job.rows = check_row_count(w, "dy", job.dy.rows);

  if (args.activation != SQ_ACT_NONE)
    job.preactivation = matrix_of(check_tensor(context, args.preactivation, {w.name, "preactivation"}, {job.dy.dtype, SQ_F32}, {rows, w.out}));
  const Matrix x = optional(context, args.x, {w.name, "x"}, kFloats, rows, w.in, Access::read);
  const sq_tensor* branch_x = own_x(args.lora);
  if (branch_x && !x) check_tensor(context, branch_x, {w.name, "lora x"}, kFloats, {rows, w.in});
  job.dtype = x ? x.dtype : branch_x ? branch_x->dtype : job.dy.dtype;
  job.lora = check_lora(context, args.lora, w, rows, job.dtype);
  if (job.lora && !job.lora.own_x) job.lora.x = x;
  if ((x || branch_x) && job.dy.dtype != SQ_F32 && job.dy.dtype != job.dtype)
    refuse(
        Code::CALL_DTYPE, {w.name, "dy"},
        "dtype is " + std::string(dtype_name(job.dy.dtype)) + ", x is " + std::string(dtype_name(job.dtype)) + "; dy must be f32 or as x");

  const struct { const sq_tensor* tensor; const char* name; } branch_only[] = {{args.h, "h"}, {args.dx_lora, "dx_lora"}, {args.da_t, "da_t"}, {args.db_t, "db_t"}};
  for (const auto& [tensor, name] : branch_only)
    if (tensor && !job.lora) refuse(Code::CALL_VALUE, {w.name, name}, "belongs to the low-rank branch, but there is no lora");
  if (args.dx_lora && !job.lora.own_x) refuse(Code::CALL_VALUE, {w.name, "dx_lora"}, "is the share of the branch's own x, but lora has no x; dx holds both shares");
  job.dx = optional(context, args.dx, {w.name, "dx"}, {job.dy.dtype}, rows, w.in, Access::write);
  job.dx_lora = optional(context, args.dx_lora, {w.name, "dx_lora"}, {job.dy.dtype}, rows, w.in, Access::write);
  if (!job.lora) return job;
  job.h = optional(context, args.h, {w.name, "h"}, {SQ_F32}, rows, job.lora.rank, Access::read);
  job.da_t = optional(context, args.da_t, {w.name, "da_t"}, {SQ_F32}, job.lora.rank, w.in, Access::write);
  job.db_t = optional(context, args.db_t, {w.name, "db_t"}, {SQ_F32}, w.out, job.lora.rank, Access::write);
  if (job.da_t && !job.lora.x) refuse(Code::CALL_NULL, {w.name, "x"}, "da_t needs x, which is missing");
  if (job.db_t && !job.h && !job.lora.x) refuse(Code::CALL_NULL, {w.name, "x"}, "db_t needs h, or x to make it from; both are missing");
  return job;
}

}  // namespace squareq::cuda
