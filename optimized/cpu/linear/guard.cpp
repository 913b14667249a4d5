// Counts NaN and infinite elements of a tensor of any rank and stride.
#include <atomic>
#include <string>

#include "optimized/cpu/linear/linear_job.hpp"
#include "optimized/cpu/linear/operations.hpp"

namespace squareq::cpu {
namespace {

/// A walk over `rows` runs of `length` adjacent elements each.
struct Walk {
  std::int64_t rows = 1;
  std::int64_t length = 1;
  std::int32_t outer = 0;  // dimensions that the rows run over
};

Walk walk_of(const sq_tensor& x) {
  Walk walk;
  walk.outer = x.rank;
  while (walk.outer > 0 && (x.shape[walk.outer - 1] == 1 || x.strides[walk.outer - 1] == walk.length)) walk.length *= x.shape[--walk.outer];
  for (std::int32_t d = 0; d < walk.outer; ++d) walk.rows *= x.shape[d];
  return walk;
}

std::int64_t offset_of(const sq_tensor& x, const Walk& walk, std::int64_t row) {
  std::int64_t offset = 0;
  for (std::int32_t d = walk.outer; d-- > 0; row /= x.shape[d]) offset += row % x.shape[d] * x.strides[d];
  return offset;
}

void count(const Kernels& kernels, std::int32_t dtype, const std::byte* data, std::int64_t n, std::int64_t* found) {
  switch (dtype) {
    case SQ_F64: kernels.count_nonfinite_f64(reinterpret_cast<const double*>(data), n, found); return;
    case SQ_F32: kernels.count_nonfinite_f32(reinterpret_cast<const float*>(data), n, found); return;
    default: kernels.count_nonfinite_16(reinterpret_cast<const std::uint16_t*>(data), n, dtype == SQ_BF16 ? 0x7F80u : 0x7C00u, found); return;
  }
}

}  // namespace

void check_guard(const sq_numeric_guard_args& args) {
  check_any(args.x, "x", {SQ_F32, SQ_BF16, SQ_F16, SQ_F64});
  require_vector(args.counts, "counts", "", {SQ_I64}, 2);
}

void numeric_guard(Context& context, const sq_numeric_guard_args& args) {
  check_guard(args);
  const sq_tensor& x = *args.x;
  const Walk walk = walk_of(x);
  const auto width = static_cast<std::int64_t>(dtype_bytes(x.dtype));
  const auto* base = static_cast<const std::byte*>(x.data);
  std::atomic<std::int64_t> nan{0}, infinite{0};
  if (walk.length > 0)
    for (std::int64_t row = 0; row < walk.rows; ++row)
      context.pool.parallel_for(walk.length, grain_for(1), [&](std::int64_t begin, std::int64_t end) {
        std::int64_t found[2] = {0, 0};
        count(context.kernels, x.dtype, base + (offset_of(x, walk, row) + begin) * width, end - begin, found);
        nan += found[0];
        infinite += found[1];
      });
  auto* counts = static_cast<std::int64_t*>(args.counts->data);
  counts[0] += nan;
  counts[1] += infinite;
  context.nan_count += nan;
  context.inf_count += infinite;
}

}  // namespace squareq::cpu
