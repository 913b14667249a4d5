// Device buffers with guards around them, an allocator that counts, and the test fixture that says "not run" where no GPU exists.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "squareq/contract.hpp"

namespace squareq::cuda_tests {

#define REQUIRE_CUDA(call)                                                                  \
  do {                                                                                      \
    const cudaError_t status_ = (call);                                                     \
    if (status_ != cudaSuccess) throw std::runtime_error(std::string(#call ": ") + cudaGetErrorString(status_)); \
  } while (false)

/// Bytes in device memory between two guards of 256 bytes that no kernel may touch.
class DeviceBytes {
 public:
  explicit DeviceBytes(std::size_t bytes, unsigned char fill = 0xCD);
  ~DeviceBytes();
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  void* data() const { return base_ + kGuard; }
  std::size_t size() const { return bytes_; }
  void write(const void* from) { REQUIRE_CUDA(cudaMemcpy(data(), from, bytes_, cudaMemcpyHostToDevice)); }
  bool guards_intact() const;

  template <class T>
  std::vector<T> read() const {
    std::vector<T> values(bytes_ / sizeof(T));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    REQUIRE_CUDA(cudaMemcpy(values.data(), data(), values.size() * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  static constexpr std::size_t kGuard = 256;
  std::size_t bytes_;
  unsigned char* base_ = nullptr;
};

template <class T>
std::unique_ptr<DeviceBytes> on_device(const std::vector<T>& values) {
  auto bytes = std::make_unique<DeviceBytes>(values.size() * sizeof(T));
  bytes->write(values.data());
  return bytes;
}

/// What the backend asked for; makes the n-th request fail where `fail_at` is set.
struct CountingAllocator {
  sq_allocator table();
  std::uint64_t requests = 0, live_bytes = 0, peak_bytes = 0;
  std::optional<std::uint64_t> fail_at;
  std::vector<sq_stream_handle> streams;
};

/// A context on device 0. Skips every test, with the backend's own reason, where it cannot run.
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override;

  CountingAllocator allocator_;
  std::optional<Context> context_;
};

/// The backend under test, found as users find it.
Implementation cuda_backend();

sq_tensor device_tensor(const DeviceBytes& bytes, std::int32_t dtype, std::initializer_list<std::int64_t> shape);

/// The error that a call ends in; Code::OK where it does not.
template <class Call>
Error error_of(const Call& call) {
  try {
    call();
  } catch (const Error& e) {
    return e;
  }
  return Error(Code::OK, "no error");
}

/// The published vectors of the V2 Python builder (fixtures/linear/README.md).
const nlohmann::json& goldens();

inline std::uint32_t bits_from_hex(const nlohmann::json& hex) { return static_cast<std::uint32_t>(std::stoul(hex.get<std::string>(), nullptr, 16)); }

}  // namespace squareq::cuda_tests
