#include <cmath>

#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/context.hpp"
#include "optimized/cuda/kernels/kernels.hpp"
#include "optimized/cuda/linear/ops.hpp"
#include "squareq/text.hpp"

namespace squareq::cuda {
namespace {

/// Element [row, column] of w as fp32, for a message. The stream has been waited for.
float fetch(const sq_tensor& w, std::int64_t row, std::int64_t column, cudaStream_t stream) {
  unsigned char raw[8] = {};
  const std::size_t bytes = dtype_bytes(w.dtype);
  const auto* from = static_cast<const unsigned char*>(w.data) + static_cast<std::size_t>(row * w.strides[0] + column) * bytes;
  check_cuda(cudaMemcpyAsync(raw, from, bytes, cudaMemcpyDeviceToHost, stream), "reading an element of the weight");
  check_cuda(cudaStreamSynchronize(stream), "reading an element of the weight");
  if (w.dtype == SQ_F64) {
    double value;
    std::memcpy(&value, raw, sizeof value);
    return static_cast<float>(value);
  }
  // 16-bit values that are refused are never finite: their widened sign, exponent and mantissa tell NaN from infinity.
  std::uint32_t bits = 0;
  std::memcpy(&bits, raw, bytes);
  if (w.dtype == SQ_BF16) bits <<= 16;
  if (w.dtype == SQ_F16) bits = (bits & 0x8000u) << 16 | 0x7F800000u | (bits & 0x3FFu) << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

void quantize(const sq_context& context, const sq_quantize_args* given, bool run) {
  const sq_quantize_args args = read_struct(given, "sq_quantize_args");
  if (!args.name) throw Error(Code::CALL_NULL, "sq_quantize_args.name is null, it is required");
  const std::string name = args.name;
  check_format(args.format, name);
  const Subject source{name, "w"};
  const sq_tensor& w = check_tensor(context, args.w, source, {SQ_F32, SQ_F16, SQ_BF16, SQ_F64}, {-1, -1});
  const std::int64_t rows = w.shape[0], columns = w.shape[1];
  if (rows < 1 || columns < 1) refuse(Code::CALL_SHAPE, source, "shape is " + shape_text(w) + ", both dimensions must be at least 1");
  const std::int64_t pack = args.pack_k <= 1 ? 1 : args.pack_k;
  const std::int64_t padded = (columns + pack - 1) / pack * pack;
  check_part_names(args.out, args.out_count, name, {"qweight", "scale", "zero_point"}, {});
  const auto part = [&](const char* part_name) { return &find_part(args.out, args.out_count, part_name)->tensor; };
  const sq_tensor& qweight = check_tensor(context, part("qweight"), {name, "qweight"}, {SQ_I8}, {rows, padded}, Access::write);
  const sq_tensor& scale = check_tensor(context, part("scale"), {name, "scale"}, {SQ_F32}, {rows}, Access::write);
  const sq_tensor& zero_point = check_tensor(context, part("zero_point"), {name, "zero_point"}, {SQ_F32}, {rows}, Access::write);
  if (!run) return;

  const CurrentDevice current(context);
  const cudaStream_t stream = cuda_stream(args.stream);
  const Rows source_rows{w.data, w.dtype, rows, columns, w.strides[0]};
  const Scratch amax(context, static_cast<std::uint64_t>(rows) * sizeof(float), stream, "quantize amax");
  const Scratch verdict(context, sizeof(WeightVerdict), stream, "quantize verdict");

  // The whole matrix is looked at before the first byte is written, so that a refused weight leaves nothing behind.
  WeightVerdict seen{kNoBadElement, 0};
  check_cuda(cudaMemcpyAsync(verdict.as<void>(), &seen, sizeof seen, cudaMemcpyHostToDevice, stream), "quantize");
  check_cuda(measure_rows(source_rows, amax.as<float>(), verdict.as<WeightVerdict>(), stream), "quantize: measuring rows");
  check_cuda(cudaMemcpyAsync(&seen, verdict.as<void>(), sizeof seen, cudaMemcpyDeviceToHost, stream), "quantize");
  check_cuda(cudaStreamSynchronize(stream), "quantize: measuring rows");
  if (seen.first_bad != kNoBadElement) {
    const auto row = static_cast<std::int64_t>(seen.first_bad) / columns, column = static_cast<std::int64_t>(seen.first_bad) % columns;
    const float value = fetch(w, row, column, stream);
    const std::string place = "row " + std::to_string(row) + ", column " + std::to_string(column);
    refuse(Code::DT_WEIGHT_NONFINITE, source,
           std::isnan(value)   ? place + " is NaN"
           : std::isinf(value) ? place + " is infinite"
                               : place + ": " + std::to_string(value) + " is so large that 127 * scale overflows");
  }
  check_cuda(quantize_rows(source_rows, amax.as<float>(), static_cast<std::int8_t*>(qweight.data), qweight.strides[0], padded, static_cast<float*>(scale.data),
                           static_cast<float*>(zero_point.data), stream), "quantize: writing codes");
  if (args.floored_rows) *args.floored_rows = seen.floored;
}

}  // namespace squareq::cuda
