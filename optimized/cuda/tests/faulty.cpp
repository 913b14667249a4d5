// libsquareq_cuda_faulty.so: the stream engine alone, with hazards that stream_test plants through the environment (transfer/faults.hpp).
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "optimized/cuda/context.hpp"
#include "optimized/cuda/stream/session.hpp"
#include "optimized/cuda/transfer/faults.hpp"

namespace squareq::cuda {

bool fault(const char* name) {
  const char* wanted = std::getenv("SQUAREQ_CUDA_FAULT");
  return wanted && std::string_view(wanted) == name;
}

void delay_copy(cudaStream_t stream) {
  const char* delay = std::getenv("SQUAREQ_CUDA_COPY_DELAY_MS");
  if (!delay) return;
  const auto milliseconds = static_cast<std::uintptr_t>(std::atoi(delay));
  check_cuda(cudaLaunchHostFunc(stream, [](void* ms) { std::this_thread::sleep_for(std::chrono::milliseconds(reinterpret_cast<std::uintptr_t>(ms))); },
                                reinterpret_cast<void*>(milliseconds)),
             "delaying a copy");
}

namespace {

sq_status create(const sq_host* host, sq_context** out, sq_error* e) {
  return guarded(e, [&] {
    auto context = std::make_unique<sq_context>();
    configure(*context, host);
    *out = context.release();
  });
}

void destroy(sq_context* context) { delete context; }

sq_status describe(sq_context*, sq_text_sink sink, void* user, sq_error* e) {
  return guarded(e, [&] {
    const auto problem = why_unusable();
    const std::string text = R"({"name":"cuda_faulty","version":"0.1.0","abi_version":1,"device":"cuda","groups":["stream","telemetry"],"operations":[],)"
                             R"("usable":)" + std::string(problem ? "false" : "true") + R"(,"reason":")" + (problem ? std::string(code_name(problem->code)) : "") + "\"}";
    sink(user, text.data(), text.size());
  });
}

const sq_implementation table = {sizeof(sq_implementation), SQ_ABI_VERSION, "cuda_faulty", "0.1.0", create, destroy, describe,
                                 nullptr, &stream_group, &telemetry_group, nullptr, nullptr};

}  // namespace
}  // namespace squareq::cuda

extern "C" __attribute__((visibility("default"))) const sq_implementation* squareq_implementation(uint32_t host_abi_version, uint32_t* own_abi_version) {
  if (own_abi_version) *own_abi_version = SQ_ABI_VERSION;
  return host_abi_version == SQ_ABI_VERSION ? &squareq::cuda::table : nullptr;
}
