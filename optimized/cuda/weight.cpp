#include "optimized/cuda/weight.hpp"

#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/context.hpp"
#include "optimized/cuda/kernels/kernels.hpp"
#include "optimized/cuda/stream/session.hpp"

namespace squareq::cuda {
namespace {

Weight resolve_parts(const sq_context& context, const sq_weight& weight) {
  if (!weight.name) throw Error(Code::CALL_NULL, "sq_weight.name is null, it is required");
  Weight result;
  result.name = weight.name;
  result.out = weight.out_features;
  result.in = weight.in_features;
  check_format(weight.format, result.name);
  if (result.out < 1 || result.in < 1)
    refuse(Code::CALL_SHAPE, {result.name, ""}, "out_features is " + std::to_string(result.out) + ", in_features " + std::to_string(result.in) + "; both must be at least 1");
  check_part_names(weight.parts, weight.part_count, result.name, {"qweight", "scale"}, {"zero_point", "bias"});
  const auto vector = [&](const char* part) -> const float* {
    const sq_part* found = find_part(weight.parts, weight.part_count, part);
    return found ? static_cast<const float*>(check_tensor(context, &found->tensor, {result.name, part}, {SQ_F32}, {result.out}).data) : nullptr;
  };
  const sq_tensor& qweight = check_tensor(context, &find_part(weight.parts, weight.part_count, "qweight")->tensor, {result.name, "qweight"}, {SQ_I8}, {result.out, -1});
  if (qweight.shape[1] < result.in)
    refuse(Code::CALL_SHAPE, {result.name, "qweight"}, "row length is " + std::to_string(qweight.shape[1]) + ", in_features is " + std::to_string(result.in));
  result.q = static_cast<const std::int8_t*>(qweight.data);
  result.stride = result.out > 1 ? qweight.strides[0] : qweight.shape[1];
  result.scale = vector("scale");
  result.zero_point = vector("zero_point");
  result.bias = vector("bias");
  return result;
}

}  // namespace

Weight resolve_weight(const sq_context& context, const sq_weight_ref* given, cudaStream_t stream) {
  const sq_weight_ref ref = read_struct(given, "sq_weight_ref");
  if ((ref.weight != nullptr) == (ref.lease != 0)) throw Error(Code::CALL_VALUE, "sq_weight_ref: exactly one of weight and lease must be set");
  if (ref.weight) return resolve_parts(context, read_struct(ref.weight, "sq_weight"));
  auto hold = context.session(ref.session)->hold(ref.lease, ref.layer, stream);
  Weight result = resolve_parts(context, hold->layer(ref.layer));
  result.zero_point = nullptr;
  result.hold = std::move(hold);
  return result;
}

void check_zero_point(const sq_context& context, const Weight& weight, cudaStream_t stream) {
  if (!weight.zero_point) return;
  // Consumers of the format disagree on what a zero_point means; they agree only while it is 0.
  const auto check = [](cudaError_t status) { check_cuda(status, "looking at zero_point"); };
  const Scratch found(context, sizeof(unsigned long long), stream, "zero_point verdict");
  unsigned long long first = kNoBadElement;
  check(cudaMemcpyAsync(found.as<void>(), &first, sizeof first, cudaMemcpyHostToDevice, stream));
  check(find_nonzero(weight.zero_point, weight.out, found.as<unsigned long long>(), stream));
  check(cudaMemcpyAsync(&first, found.as<void>(), sizeof first, cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  if (first == kNoBadElement) return;
  float value = 0;
  check(cudaMemcpyAsync(&value, weight.zero_point + first, sizeof value, cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  refuse(Code::DT_ZP_NONZERO, {weight.name, "zero_point"}, "row " + std::to_string(first) + " is " + std::to_string(value) + ", must be 0");
}

}  // namespace squareq::cuda
