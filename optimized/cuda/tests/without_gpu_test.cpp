// What the backend says about a machine, and how it refuses one without a GPU (SQ-CNV-002, SQ-CNV-008, SQ-ERR-006).

#include "optimized/cuda/tests/device_memory.hpp"

namespace squareq::cuda_tests {
namespace {

nlohmann::json description() { return nlohmann::json::parse(cuda_backend().describe()); }

bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

TEST(CudaBackend, ListsExactlyTheOperationsItOffers) {
  const Implementation backend = cuda_backend();
  const sq_linear_group& group = *backend->linear;
  EXPECT_TRUE(group.quantize && group.dequantize && group.linear_forward && group.linear_backward && group.quantize_activation && group.numeric_guard && group.explain);
  EXPECT_TRUE(offered(group, &sq_linear_group::rms_norm_rope_forward) && offered(group, &sq_linear_group::rms_norm_rope_backward));
  EXPECT_TRUE(backend->stream && backend->telemetry);
  EXPECT_FALSE(backend->format || backend->module);
  EXPECT_EQ(description().at("operations"), (nlohmann::json{"quantize", "dequantize", "linear_forward", "linear_backward", "quantize_activation", "numeric_guard", "explain", "rms_norm_rope_forward",
                                                            "rms_norm_rope_backward"}));
  EXPECT_EQ(description().at("groups"), (nlohmann::json{"linear", "lora", "stream", "telemetry"}));
}

TEST(CudaBackend, SaysWhetherItCanRunHereAndWhyNot) {
  EXPECT_EQ(description().at("usable").get<bool>(), has_gpu());
  EXPECT_EQ(description().contains("reason"), !has_gpu());
  if (!has_gpu()) {
    EXPECT_EQ(description().at("reason").get<std::string>().rfind("GPU_NONE: ", 0), 0u) << description().at("reason");
  }
}

TEST(CudaBackend, RefusesToStartWithoutAGpu) {
  if (has_gpu()) GTEST_SKIP() << "not run: this machine has a GPU";
  auto host = sized<sq_host>();
  host.device = {SQ_CUDA, 0};
  EXPECT_EQ(error_of([&] { Context(cuda_backend(), host); }).code(), Code::GPU_NONE);
}

TEST(CudaBackend, RefusesTheCpuAndAnotherContract) {
  auto host = sized<sq_host>();
  host.device = {SQ_CPU, 0};
  EXPECT_EQ(error_of([&] { Context(cuda_backend(), host); }).code(), Code::CALL_DEVICE);
  std::uint32_t own = 0;
  void* library = dlopen(find_backend("cuda").c_str(), RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr) << dlerror();
  const auto get = reinterpret_cast<sq_get_implementation>(dlsym(library, SQ_ENTRY_POINT));
  ASSERT_NE(get, nullptr);
  EXPECT_EQ(get(SQ_ABI_VERSION + 1, &own), nullptr);
  EXPECT_EQ(own, SQ_ABI_VERSION);
  dlclose(library);
}

}  // namespace
}  // namespace squareq::cuda_tests
