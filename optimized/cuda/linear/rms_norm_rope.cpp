#include <cmath>

#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/context.hpp"
#include "optimized/cuda/kernels/heads.hpp"
#include "optimized/cuda/linear/ops.hpp"

namespace squareq::cuda {
namespace {

constexpr auto kFloats = {std::int32_t{SQ_F32}, std::int32_t{SQ_BF16}, std::int32_t{SQ_F16}};

Rows rows_of(const sq_tensor& t) { return {t.data, t.dtype, t.shape[0], t.shape[1], t.shape[0] > 1 ? t.strides[0] : t.shape[1]}; }

/// What both directions are given, checked.
Heads check_heads(const sq_context& context, const sq_tensor* given_x, const sq_tensor* given_weight, const sq_tensor* given_rope, float epsilon) {
  const Subject of_x{"", "x"}, of_weight{"", "weight"}, of_rope{"", "rope"};
  Heads job{};
  const sq_tensor& x = check_tensor(context, given_x, of_x, kFloats, {-1, -1});
  const sq_tensor& weight = check_tensor(context, given_weight, of_weight, kFloats, {-1});
  job.x = rows_of(x), job.size = weight.shape[0], job.weight = weight.data, job.weight_dtype = weight.dtype, job.epsilon = epsilon;
  if (job.size < 1) refuse(Code::CALL_SHAPE, of_weight, "shape is " + shape_text(weight) + ", a head must hold at least 1 element");
  if (x.shape[1] < 1 || x.shape[1] % job.size != 0)
    refuse(Code::CALL_SHAPE, of_x, "shape is " + shape_text(x) + ", columns must be heads of the weight's " + std::to_string(job.size) + " elements");
  if (x.shape[1] / job.size > kMostHeads)
    refuse(Code::CALL_UNSUPPORTED, of_x, "rows hold " + std::to_string(x.shape[1] / job.size) + " heads, cuda takes at most " + std::to_string(kMostHeads));
  if (given_rope) {
    const sq_tensor& rope = check_tensor(context, given_rope, of_rope, {SQ_F32}, {-1, job.size});
    job.rope = static_cast<const float*>(rope.data), job.positions = rope.shape[0];
    job.rope_stride = rope.shape[0] > 1 ? rope.strides[0] : rope.shape[1];
    if (job.size % 2 != 0) refuse(Code::CALL_SHAPE, of_rope, "heads have " + std::to_string(job.size) + " elements, a rotation needs pairs");
    if (job.positions < 1 || x.shape[0] % job.positions != 0)
      refuse(Code::CALL_SHAPE, of_rope, std::to_string(job.positions) + " positions do not divide the " + std::to_string(x.shape[0]) + " rows of x");
  }
  if (!std::isfinite(epsilon) || epsilon <= 0) throw Error(Code::CALL_VALUE, "epsilon is " + std::to_string(epsilon) + ", must be finite and above 0");
  return job;
}

}  // namespace

void rms_norm_rope_forward(const sq_context& context, const sq_rms_norm_rope_forward_args* given, bool run) {
  const sq_rms_norm_rope_forward_args args = read_struct(given, "sq_rms_norm_rope_forward_args");
  Heads job = check_heads(context, args.x, args.weight, args.rope, args.epsilon);
  job.out = rows_of(check_tensor(context, args.y, {"", "y"}, {job.x.dtype}, {job.x.rows, job.x.columns}, Access::write));
  if (!run) return;
  const CurrentDevice current(context);
  check_cuda(rms_norm_rope(job, cuda_stream(args.stream)), "rms_norm_rope_forward");
}

void rms_norm_rope_backward(const sq_context& context, const sq_rms_norm_rope_backward_args* given, bool run) {
  const sq_rms_norm_rope_backward_args args = read_struct(given, "sq_rms_norm_rope_backward_args");
  Heads job = check_heads(context, args.x, args.weight, args.rope, args.epsilon);
  job.dy = rows_of(check_tensor(context, args.dy, {"", "dy"}, {job.x.dtype}, {job.x.rows, job.x.columns}));
  job.out = rows_of(check_tensor(context, args.dx, {"", "dx"}, {job.x.dtype}, {job.x.rows, job.x.columns}, Access::write));
  if (!run) return;
  const CurrentDevice current(context);
  check_cuda(rms_norm_rope_gradient(job, cuda_stream(args.stream)), "rms_norm_rope_backward");
}

}  // namespace squareq::cuda
