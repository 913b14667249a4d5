// Memory of a stream session: from the host's allocator, or, where it gave none, CUDA's plain allocation, to the byte.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "squareq/contract.h"

struct sq_context;

namespace squareq::cuda {

inline constexpr std::uint64_t kAlignment = 256;

/// One block of memory of kind SQ_MEM_DEVICE or SQ_MEM_HOST_PINNED. The destructor gives it back: whoever owns it has made sure that the
/// device is done with it.
class Memory {
 public:
  Memory() = default;
  /// Throws GPU_OOM (device) or HOST_OOM (page-locked), naming tag and bytes. The context's device must be current.
  Memory(const sq_context& context, sq_memory_kind kind, std::uint64_t bytes, cudaStream_t stream, const char* tag);
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;
  ~Memory() { reset(); }
  void reset();

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  std::uint64_t bytes() const { return bytes_; }

 private:
  const sq_context* context_ = nullptr;
  void* data_ = nullptr;
  std::uint64_t bytes_ = 0;
  sq_memory_kind kind_ = SQ_MEM_DEVICE;
  cudaStream_t stream_ = nullptr;
};

}  // namespace squareq::cuda
