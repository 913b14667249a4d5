// Counts NaN and infinite elements exactly and adds them to the caller's counters (SQ-LIN-030).
#include <cmath>

#include "reference/linear/ops.hpp"

namespace squareq::reference {

void numeric_guard(sq_context& context, const sq_numeric_guard_args* given, bool run) {
  const sq_numeric_guard_args args = read_struct(given, "sq_numeric_guard_args");
  const Subject subject{"", "x"};
  if (!args.x) refuse(Code::CALL_NULL, subject, "tensor is missing");
  const sq_tensor& x = *args.x;
  if (x.rank < 0 || x.rank > SQ_MAX_RANK) refuse(Code::CALL_SHAPE, subject, "rank is " + std::to_string(x.rank) + ", must be 0 to " + std::to_string(SQ_MAX_RANK));
  if (x.device.kind != SQ_CPU) refuse(Code::CALL_DEVICE, subject, "tensor is on " + device_text(x.device) + ", must be on the cpu");
  if (x.dtype != SQ_F32 && x.dtype != SQ_BF16 && x.dtype != SQ_F16 && x.dtype != SQ_F64)
    refuse(Code::CALL_DTYPE, subject, "dtype is " + std::string(dtype_name(x.dtype)) + ", must be f32, bf16, f16 or f64");
  std::int64_t count = 1;
  for (std::int32_t i = 0; i < x.rank; ++i) {
    if (x.shape[i] < 0) refuse(Code::CALL_SHAPE, subject, "shape is " + shape_text(x) + ", no dimension may be negative");
    count *= x.shape[i];
  }
  if (count && !x.data) refuse(Code::CALL_NULL, subject, "data is null, but the shape is " + shape_text(x));
  const sq_tensor& counts = check_tensor(args.counts, {"", "counts"}, {SQ_I64}, {2}, Access::write);
  if (!run) return;

  std::int64_t nans = 0, infinite = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = i, element = 0;
    for (std::int32_t d = x.rank; d-- > 0; rest /= x.shape[d]) element += rest % x.shape[d] * x.strides[d];
    const double value = x.dtype == SQ_F64 ? static_cast<const double*>(x.data)[element] : load(x, element);
    nans += std::isnan(value);
    infinite += std::isinf(value);
  }
  static_cast<std::int64_t*>(counts.data)[0] += nans;
  static_cast<std::int64_t*>(counts.data)[1] += infinite;
  context.nan_count += nans;
  context.inf_count += infinite;
}

}  // namespace squareq::reference
