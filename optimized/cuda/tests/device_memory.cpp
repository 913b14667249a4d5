#include "optimized/cuda/tests/device_memory.hpp"

#include <algorithm>

#include "fixtures/places.hpp"

namespace squareq::cuda_tests {

DeviceBytes::DeviceBytes(std::size_t bytes, unsigned char fill) : bytes_(bytes) {
  void* memory = nullptr;
  REQUIRE_CUDA(cudaMalloc(&memory, bytes + 2 * kGuard));
  base_ = static_cast<unsigned char*>(memory);
  REQUIRE_CUDA(cudaMemset(base_, 0xA5, bytes + 2 * kGuard));
  REQUIRE_CUDA(cudaMemset(data(), fill, bytes));
  REQUIRE_CUDA(cudaDeviceSynchronize());  // before a non-blocking stream writes here
}

DeviceBytes::~DeviceBytes() { cudaFree(base_); }

bool DeviceBytes::guards_intact() const {
  std::vector<unsigned char> all(bytes_ + 2 * kGuard);
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE_CUDA(cudaMemcpy(all.data(), base_, all.size(), cudaMemcpyDeviceToHost));
  for (std::size_t i = 0; i < kGuard; ++i)
    if (all[i] != 0xA5 || all[all.size() - 1 - i] != 0xA5) return false;
  return true;
}

sq_allocator CountingAllocator::table() {
  sq_allocator a{};
  a.size = sizeof a;
  a.user = this;
  a.allocate = [](void* user, std::int32_t kind, std::uint64_t bytes, std::uint64_t, sq_stream_handle stream, const char*) -> void* {
    auto& self = *static_cast<CountingAllocator*>(user);
    void* pointer = nullptr;
    if (kind != SQ_MEM_SCRATCH || self.requests++ == self.fail_at || cudaMalloc(&pointer, bytes) != cudaSuccess) return nullptr;
    self.streams.push_back(stream);
    self.live_bytes += bytes;
    self.peak_bytes = std::max(self.peak_bytes, self.live_bytes);
    return pointer;
  };
  a.release = [](void* user, void* pointer, std::int32_t, std::uint64_t bytes, sq_stream_handle) {
    static_cast<CountingAllocator*>(user)->live_bytes -= bytes;
    cudaFree(pointer);  // waits for the device, so work that still uses it is done
  };
  return a;
}

Implementation cuda_backend() { return Implementation::load(find_backend("cuda")); }

void CudaTest::SetUp() {
  const Implementation backend = cuda_backend();
  const auto description = nlohmann::json::parse(backend.describe());
  if (!description.at("usable").get<bool>()) GTEST_SKIP() << "not run: " << description.at("reason").get<std::string>();
  const sq_allocator table = allocator_.table();
  auto host = sized<sq_host>();
  host.device = {SQ_CUDA, 0};
  host.allocator = &table;
  context_.emplace(backend, host);
}

sq_tensor device_tensor(const DeviceBytes& bytes, std::int32_t dtype, std::initializer_list<std::int64_t> shape) {
  return make_tensor(bytes.data(), dtype, shape, {SQ_CUDA, 0});
}

const nlohmann::json& goldens() {
  static const nlohmann::json all = [] {
    std::ifstream file(test::fixtures() / "linear/goldens.json");
    return nlohmann::json::parse(file);
  }();
  return all;
}

}  // namespace squareq::cuda_tests
