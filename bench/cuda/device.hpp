// The device and its peaks, device memory, random contents, scratch for captured calls.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "squareq/contract.hpp"

namespace squareq::bench {

inline constexpr sq_device kDevice{SQ_CUDA, 0};

/// Throws with CUDA's words unless `status` is cudaSuccess: GPU_OOM for memory, GPU_NONE where there is no device, else GPU_STICKY.
void require(cudaError_t status, const std::string& what);

struct Device {
  std::string name;
  int capability = 0;  // 90 for 9.0
  int multiprocessors = 0;
  double memory_bytes_per_second = 0;  // memory clock times width, both edges
  double highest_mhz = 0;              // the SM clock's upper end, as the driver says
  /// Dense operations per clock and multiprocessor of the tensor cores, fp32 (int32) sums; 0: not known for this capability.
  int bf16_per_clock = 0, int8_per_clock = 0;
  nlohmann::ordered_json json() const;
};

/// Device 0, made current. Throws GPU_NONE where none can be used.
Device use_device();

/// An instance of the CUDA backend on device 0, deterministic. `allocator` must outlive it.
Context open_backend(const sq_allocator* allocator);

class Buffer {
 public:
  explicit Buffer(std::size_t bytes);
  ~Buffer() { cudaFreeAsync(data_, nullptr); }  // from the device's pool: nothing waits
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  void* data_ = nullptr;
};

/// Random contents, made once and repeated on the device: bf16 numbers in [-1, 1), codes in [-127, 127], or F32 numbers in (0.001, 0.01).
class Random {
 public:
  Random();
  /// Other seeds begin at other places of the pattern.
  void fill(const Buffer& to, std::int32_t dtype, unsigned seed) const;

 private:
  Buffer bf16_, f32_, i8_;
};

/// Scratch for captured calls: hands out pieces of one allocation and starts over with every call, so that a graph can hold the addresses.
class Arena {
 public:
  explicit Arena(std::size_t bytes) : memory_(bytes) {}
  sq_allocator table();

 private:
  Buffer memory_;
  std::size_t used_ = 0;
  std::uint64_t live_ = 0;
};

}  // namespace squareq::bench
