#include "optimized/cuda/weight.hpp"

#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/kernels/kernels.hpp"

namespace squareq::cuda {

Weight resolve_weight(const sq_context& context, const sq_weight_ref* given) {
  const sq_weight_ref ref = read_struct(given, "sq_weight_ref");
  if ((ref.weight != nullptr) == (ref.lease != 0)) throw Error(Code::CALL_VALUE, "sq_weight_ref: exactly one of weight and lease must be set");
  if (ref.lease) throw Error(Code::CALL_UNSUPPORTED, "cuda offers no group 'stream' yet, so it knows no leases");
  const sq_weight weight = read_struct(ref.weight, "sq_weight");
  if (!weight.format || !weight.name) throw Error(Code::CALL_NULL, "sq_weight: format and name are both required");
  Weight w;
  w.name = weight.name;
  w.out = weight.out_features;
  w.in = weight.in_features;
  check_format(weight.format, w.name);
  if (w.out < 1 || w.in < 1)
    refuse(Code::CALL_SHAPE, {w.name, ""}, "out_features is " + std::to_string(w.out) + ", in_features " + std::to_string(w.in) + "; both must be at least 1");
  check_part_names(weight.parts, weight.part_count, w.name, {"qweight", "scale"}, {"zero_point", "bias"});
  const auto vector = [&](const char* part) -> const float* {
    const sq_part* found = find_part(weight.parts, weight.part_count, part);
    return found ? static_cast<const float*>(check_tensor(context, &found->tensor, {w.name, part}, {SQ_F32}, {w.out}).data) : nullptr;
  };
  const sq_tensor& qweight = check_tensor(context, &find_part(weight.parts, weight.part_count, "qweight")->tensor, {w.name, "qweight"}, {SQ_I8}, {w.out, -1});
  if (qweight.shape[1] < w.in)
    refuse(Code::CALL_SHAPE, {w.name, "qweight"}, "row length is " + std::to_string(qweight.shape[1]) + ", in_features is " + std::to_string(w.in));
  w.q = static_cast<const std::int8_t*>(qweight.data);
  w.stride = w.out > 1 ? qweight.strides[0] : qweight.shape[1];
  w.scale = vector("scale");
  w.zero_point = vector("zero_point");
  w.bias = vector("bias");
  return w;
}

void check_zero_point(const sq_context& context, const Weight& weight, cudaStream_t stream) {
  if (!weight.zero_point) return;
  // Consumers of the format disagree on what a zero_point means; they agree only while it is 0.
  const Scratch found(context, sizeof(unsigned long long), stream, "zero_point verdict");
  unsigned long long first = kNoBadElement;
  const auto check = [](cudaError_t status) { check_cuda(status, "looking at zero_point"); };
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
