#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/context.hpp"
#include "optimized/cuda/kernels/kernels.hpp"
#include "optimized/cuda/linear/ops.hpp"

namespace squareq::cuda {
namespace {

/// Merges neighbouring dimensions that follow each other in memory, and drops those of size 1.
Strided collapse(const sq_tensor& x, std::int64_t count) {
  Strided s{x.data, x.dtype, 0, count, {}, {}};
  for (std::int32_t i = 0; i < x.rank; ++i) {
    if (x.shape[i] == 1) continue;
    if (s.rank && s.strides[s.rank - 1] == x.shape[i] * x.strides[i]) {
      s.shape[s.rank - 1] *= x.shape[i];
      s.strides[s.rank - 1] = x.strides[i];
    } else {
      s.shape[s.rank] = x.shape[i];
      s.strides[s.rank++] = x.strides[i];
    }
  }
  if (s.rank == 0) {
    s.rank = 1;
    s.shape[0] = s.strides[0] = 1;
  }
  return s;
}

}  // namespace

void numeric_guard(const sq_context& context, const sq_numeric_guard_args* given, bool run) {
  const sq_numeric_guard_args args = read_struct(given, "sq_numeric_guard_args");
  const Subject subject{"", "x"};
  if (!args.x) refuse(Code::CALL_NULL, subject, "tensor is missing");
  const sq_tensor& x = *args.x;
  if (x.rank < 0 || x.rank > SQ_MAX_RANK) refuse(Code::CALL_SHAPE, subject, "rank is " + std::to_string(x.rank) + ", must be 0 to " + std::to_string(SQ_MAX_RANK));
  if (x.dtype != SQ_F32 && x.dtype != SQ_BF16 && x.dtype != SQ_F16 && x.dtype != SQ_F64)
    refuse(Code::CALL_DTYPE, subject, "dtype is " + std::string(dtype_name(x.dtype)) + ", must be f32, bf16, f16 or f64");
  if (x.device.kind != SQ_CUDA || x.device.index != context.host.device.index)
    refuse(Code::CALL_DEVICE, subject, "tensor is on " + device_text(x.device) + ", must be on " + device_text(context.host.device));
  std::int64_t count = 1;
  for (std::int32_t i = 0; i < x.rank; ++i) {
    if (x.shape[i] < 0) refuse(Code::CALL_SHAPE, subject, "shape is " + shape_text(x) + ", no dimension may be negative");
    count *= x.shape[i];
  }
  if (count && !x.data) refuse(Code::CALL_NULL, subject, "data is null, but the shape is " + shape_text(x));
  if (reinterpret_cast<std::uintptr_t>(x.data) % dtype_bytes(x.dtype))
    refuse(Code::CALL_ALIGN, subject, "data is not aligned to its elements of " + std::to_string(dtype_bytes(x.dtype)) + " bytes");
  const sq_tensor& counts = check_tensor(context, args.counts, {"", "counts"}, {SQ_I64}, {2});
  if (!run) return;

  const CurrentDevice current(context);
  check_cuda(count_nonfinite(collapse(x, count), static_cast<std::int64_t*>(counts.data), context.nonfinite.counters(), cuda_stream(args.stream)), "numeric_guard");
}

}  // namespace squareq::cuda
