// libsquareq_cuda.so: the CUDA backend. Its one exported symbol is at the end.
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "optimized/cuda/context.hpp"
#include "optimized/cuda/linear/ops.hpp"
#include "optimized/cuda/stream/session.hpp"

namespace squareq::cuda {
namespace {

sq_status create(const sq_host* host, sq_context** out, sq_error* e) {
  return guarded(e, [&] {
    if (!out) throw Error(Code::CALL_NULL, "create: context is null");
    auto context = std::make_unique<sq_context>();
    configure(*context, host);
    const char* first_kernel = std::getenv("SQUAREQ_CUDA_KERNEL");
    context->first_kernel = check_kernel_name(first_kernel ? first_kernel : "");
    *out = context.release();
  });
}

void destroy(sq_context* context) { delete context; }

sq_status describe(sq_context*, sq_text_sink sink, void* user, sq_error* e) {
  return guarded(e, [&] {
    if (!sink) throw Error(Code::CALL_NULL, "describe: sink is null");
    const auto problem = why_unusable();
    nlohmann::ordered_json text = {
        {"name", "cuda"}, {"version", "0.1.0"}, {"abi_version", SQ_ABI_VERSION}, {"device", "cuda"}, {"usable", !problem}, {"deterministic", true},
        {"groups", {"linear", "lora", "stream", "telemetry"}},
        {"operations", {"quantize", "dequantize", "linear_forward", "linear_backward", "quantize_activation", "numeric_guard", "explain", "rms_norm_rope_forward", "rms_norm_rope_backward"}}, {"formats", {"bp8_v2"}},
        {"activation_formats", {"per_token_int8"}}, {"activation_dtypes", {"f32", "bf16", "f16"}}, {"rounding_classes", {"R1", "R2", "R4"}}};
    if (problem) text["reason"] = std::string(code_name(problem->code)) + ": " + problem->message;
    int runtime = 0, driver = 0;
    cudaRuntimeGetVersion(&runtime);
    if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
    nlohmann::ordered_json devices = nlohmann::ordered_json::array();
    for (int i = 0; i < device_count(); ++i)
      if (const auto info = device_info(i))
        devices.push_back({{"index", i}, {"name", info->name}, {"compute_capability", std::to_string(info->major) + "." + std::to_string(info->minor)}, {"bytes", info->bytes}});
    text["details"] = {{"runtime_version", runtime}, {"driver_version", driver}, {"devices", devices}};
    const std::string dumped = text.dump();
    sink(user, dumped.data(), dumped.size());
  });
}

const sq_implementation table = {sizeof(sq_implementation), SQ_ABI_VERSION, "cuda", "0.1.0", create, destroy, describe,
                                 &linear_group, &stream_group, &telemetry_group, nullptr, nullptr};

}  // namespace
}  // namespace squareq::cuda

extern "C" __attribute__((visibility("default"))) const sq_implementation* squareq_implementation(uint32_t host_abi_version, uint32_t* own_abi_version) {
  if (own_abi_version) *own_abi_version = SQ_ABI_VERSION;
  return host_abi_version == SQ_ABI_VERSION ? &squareq::cuda::table : nullptr;
}
