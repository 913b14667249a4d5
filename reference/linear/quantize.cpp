// bp8_v2: per-row symmetric INT8 (SQ-QNT-001 to 009). Every step is one fp32 operation with its own rounding; the build switches
// contraction off, so the product is rounded before the integer rounding.
#include <cmath>
#include <mutex>

#include "reference/linear/ops.hpp"

namespace squareq::reference {
namespace {

constexpr float scale_floor = 1e-8f;

struct Row {
  float amax = 0;
  std::int64_t column = 0;  // of amax, or of the first element that is not finite
  bool finite = true;
};

Row measure(const sq_tensor& w, std::int64_t row, std::int64_t columns) {
  Row result;
  for (std::int64_t k = 0; k < columns; ++k) {
    const float a = std::fabs(load(w, row, k));
    if (!std::isfinite(a)) return {a, k, false};
    if (a > result.amax) result.amax = a, result.column = k;
  }
  return result;
}

float row_scale(float amax) { return std::fmax(amax / 127.0f, scale_floor); }

}  // namespace

void quantize(sq_context& context, const sq_quantize_args* given, bool run) {
  const sq_quantize_args args = read_struct(given, "sq_quantize_args");
  if (!args.format || !args.name) throw Error(Code::CALL_NULL, "sq_quantize_args: format and name are both required");
  const std::string name = args.name;
  if (std::string_view(args.format) != "bp8_v2") refuse(Code::CALL_UNSUPPORTED, {name, ""}, "format is '" + std::string(args.format) + "', reference quantizes to 'bp8_v2'");
  const Subject source{name, "w"};
  if (!args.w) refuse(Code::CALL_NULL, source, "tensor is missing");
  const sq_tensor& w = check_rows(args.w, source, {SQ_F32, SQ_F16, SQ_BF16, SQ_F64}, args.w->rank == 2 ? args.w->shape[1] : 0, Access::read);
  const std::int64_t rows = w.shape[0], columns = w.shape[1];
  if (rows < 1 || columns < 1) refuse(Code::CALL_SHAPE, source, "shape is " + shape_text(w) + ", both dimensions must be at least 1");
  const std::int64_t pack = args.pack_k <= 1 ? 1 : args.pack_k;
  const std::int64_t padded = (columns + pack - 1) / pack * pack;
  check_part_names(args.out, args.out_count, name, args.format, {"qweight", "scale", "zero_point"}, {});
  const auto part = [&](const char* part_name) { return &find_part(args.out, args.out_count, part_name)->tensor; };
  const sq_tensor& qweight = check_tensor(part("qweight"), {name, "qweight"}, {SQ_I8}, {rows, padded}, Access::write);
  auto* scale = static_cast<float*>(check_tensor(part("scale"), {name, "scale"}, {SQ_F32}, {rows}, Access::write).data);
  auto* zero_point = static_cast<float*>(check_tensor(part("zero_point"), {name, "zero_point"}, {SQ_F32}, {rows}, Access::write).data);

  // The whole matrix is looked at before the first byte is written, so that a refused weight leaves nothing behind.
  std::mutex mutex;
  std::int64_t bad_row = rows;
  parallel_for(context, rows, [&](std::int64_t n) {
    const Row row = measure(w, n, columns);
    if (row.finite && std::isfinite(row_scale(row.amax) * 127.0f)) return;
    const std::lock_guard lock(mutex);
    bad_row = std::min(bad_row, n);
  });
  if (bad_row < rows) {
    const Row row = measure(w, bad_row, columns);
    const std::string place = "row " + std::to_string(bad_row) + ", column " + std::to_string(row.column);
    refuse(Code::DT_WEIGHT_NONFINITE, source,
           row.finite ? place + ": " + std::to_string(row.amax) + " is so large that 127 * scale overflows" : place + " is " + (std::isnan(row.amax) ? "NaN" : "infinite"));
  }
  if (!run) return;

  std::atomic<std::uint64_t> floored{0};
  parallel_for(context, rows, [&](std::int64_t n) {
    const float amax = measure(w, n, columns).amax;
    if (amax / 127.0f < scale_floor) ++floored;
    const float s = row_scale(amax);
    const float inverse = 1.0f / s;
    std::int8_t* q = static_cast<std::int8_t*>(qweight.data) + n * qweight.strides[0];
    for (std::int64_t k = 0; k < columns; ++k) {
      const float t = load(w, n, k) * inverse;
      q[k] = static_cast<std::int8_t>(std::fmin(std::fmax(std::rint(t), -127.0f), 127.0f));
    }
    for (std::int64_t k = columns; k < padded; ++k) q[k] = 0;
    scale[n] = s;
    zero_point[n] = 0.0f;
  });
  if (args.floored_rows) *args.floored_rows = floored;
}

}  // namespace squareq::reference
