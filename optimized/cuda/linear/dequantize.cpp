#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/context.hpp"
#include "optimized/cuda/kernels/kernels.hpp"
#include "optimized/cuda/linear/ops.hpp"

namespace squareq::cuda {
namespace {

/// Consumers of the format disagree on what a zero_point means; they agree only while it is 0 (DT_ZP_NONZERO).
void check_zero_point(const sq_context& context, const sq_tensor& zero_point, const std::string& layer, cudaStream_t stream) {
  const Scratch found(context, sizeof(unsigned long long), stream, "dequantize verdict");
  unsigned long long first = kNoBadElement;
  const auto check = [](cudaError_t status) { check_cuda(status, "dequantize: looking at zero_point"); };
  check(cudaMemcpyAsync(found.as<void>(), &first, sizeof first, cudaMemcpyHostToDevice, stream));
  check(find_nonzero(static_cast<const float*>(zero_point.data), zero_point.shape[0], found.as<unsigned long long>(), stream));
  check(cudaMemcpyAsync(&first, found.as<void>(), sizeof first, cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  if (first == kNoBadElement) return;
  float value = 0;
  check(cudaMemcpyAsync(&value, static_cast<const float*>(zero_point.data) + first, sizeof value, cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  refuse(Code::DT_ZP_NONZERO, {layer, "zero_point"}, "row " + std::to_string(first) + " is " + std::to_string(value) + ", must be 0");
}

}  // namespace

void dequantize(const sq_context& context, const sq_dequantize_args* given, bool run) {
  const sq_dequantize_args args = read_struct(given, "sq_dequantize_args");
  const sq_weight_ref ref = read_struct(args.weight, "sq_weight_ref");
  if ((ref.weight != nullptr) == (ref.lease != 0)) throw Error(Code::CALL_VALUE, "sq_weight_ref: exactly one of weight and lease must be set");
  if (ref.lease) throw Error(Code::CALL_UNSUPPORTED, "cuda offers no group 'stream' yet, so it knows no leases");
  const sq_weight weight = read_struct(ref.weight, "sq_weight");
  if (!weight.format || !weight.name) throw Error(Code::CALL_NULL, "sq_weight: format and name are both required");
  const std::string name = weight.name;
  check_format(weight.format, name);
  if (weight.out_features < 1 || weight.in_features < 1)
    refuse(Code::CALL_SHAPE, {name, ""}, "out_features is " + std::to_string(weight.out_features) + ", in_features " + std::to_string(weight.in_features) +
                                             "; both must be at least 1");
  check_part_names(weight.parts, weight.part_count, name, {"qweight", "scale"}, {"zero_point", "bias"});
  const auto vector = [&](const char* part) -> const sq_tensor* {
    const sq_part* found = find_part(weight.parts, weight.part_count, part);
    return found ? &check_tensor(context, &found->tensor, {name, part}, {SQ_F32}, {weight.out_features}) : nullptr;
  };
  const sq_tensor& qweight = check_tensor(context, &find_part(weight.parts, weight.part_count, "qweight")->tensor, {name, "qweight"}, {SQ_I8}, {weight.out_features, -1});
  if (qweight.shape[1] < weight.in_features)
    refuse(Code::CALL_SHAPE, {name, "qweight"}, "row length is " + std::to_string(qweight.shape[1]) + ", in_features is " + std::to_string(weight.in_features));
  const sq_tensor& scale = *vector("scale");
  const sq_tensor* zero_point = vector("zero_point");
  vector("bias");
  const Subject target{name, "out"};
  const sq_tensor& out = check_tensor(context, args.out, target, {SQ_F32, SQ_BF16, SQ_F16}, {-1, weight.in_features});
  if (args.first_row < 0 || args.first_row > weight.out_features || out.shape[0] > weight.out_features - args.first_row)
    refuse(Code::CALL_SHAPE, target, "rows [" + std::to_string(args.first_row) + ", " + std::to_string(args.first_row) + " + " + std::to_string(out.shape[0]) +
                                         ") reach outside the weight's " + std::to_string(weight.out_features) + " rows");
  if (!run) return;

  const CurrentDevice current(context);
  const cudaStream_t stream = cuda_stream(args.stream);
  if (zero_point) check_zero_point(context, *zero_point, name, stream);
  if (out.shape[0] == 0) return;
  check_cuda(dequantize_rows(static_cast<const std::int8_t*>(qweight.data) + args.first_row * qweight.strides[0], qweight.strides[0],
                             static_cast<const float*>(scale.data) + args.first_row, {out.data, out.dtype, out.shape[0], out.shape[1], out.strides[0]}, stream),
             "dequantize");
}

}  // namespace squareq::cuda
