// A device's memory as the suite needs it, without a header or library of its vendor: a table of functions, loaded at run time.
#pragma once

#include <cstdint>

#include "squareq/contract.h"

namespace squareq::gates {

/// One device. Functions that can fail throw Error (GPU_OOM excepted: allocate returns null). Thread-safe. Copies and fills have happened when
/// they return.
struct DeviceMemory {
  virtual ~DeviceMemory() = default;

  virtual void* allocate(std::uint64_t bytes) = 0;         // device memory, aligned to 256 bytes; null: none left
  virtual void release(void* pointer) = 0;                 // waits for the device
  virtual void* allocate_pinned(std::uint64_t bytes) = 0;  // page-locked host memory; null: none left
  virtual void release_pinned(void* pointer) = 0;
  virtual void to_device(void* to, const void* from, std::uint64_t bytes) = 0;
  virtual void to_host(void* to, const void* from, std::uint64_t bytes) = 0;
  virtual void fill(void* to, unsigned char value, std::uint64_t bytes) = 0;
  /// The stream that the suite hands to every call.
  virtual sq_stream_handle stream() = 0;
  virtual void synchronize() = 0;  // with everything on the device
  virtual std::uint64_t free_bytes() = 0;
};

/// CUDA device 0 through libcuda.so.1. Throws CFG_BACKEND where there is no driver or no device. Never called in a process that forks
/// afterwards: CUDA does not survive a fork.
DeviceMemory& cuda_device_memory();

/// The device on which this process's tensors and measured memory are placed; null: the host.
DeviceMemory* device_in_use();
void use_device(DeviceMemory* device);

}  // namespace squareq::gates
