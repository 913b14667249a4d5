// Where libtorch and a backend share a GPU: memory from libtorch's caching allocator, and kernels that repeat themselves. The one place that knows
// libtorch's CUDA interface.
#pragma once

#include <cstdint>
#include <optional>

#include "squareq/contract.h"

namespace squareq::training {

/// Whether this program was built with a libtorch that has CUDA.
bool torch_has_cuda();

/// Makes libtorch ready for `device`: fp32 products in fp32 and, where `deterministic`, only kernels that repeat themselves, attention's backward above
/// all; else libtorch may take flash attention's backward that adds in any order, or the memory-efficient one. A setting of the whole process: the
/// last call counts. Throws CFG_BACKEND where this libtorch has no CUDA, or cannot use the GPU. Nothing on the CPU, where everything repeats itself.
void prepare_device(sq_device device, bool deterministic = true);

/// Memory for a backend's contexts on `device`, so that slots, residents, workspace and libtorch's own tensors come from one pool: SQ_MEM_DEVICE
/// and SQ_MEM_SCRATCH from libtorch's caching allocator (in the order of the stream they are asked for), SQ_MEM_HOST_PINNED page-locked to the
/// byte. Null on the CPU: backends allocate there themselves. Lives as long as the program.
const sq_allocator* device_allocator(sq_device device);

/// Multiprocessors of the current GPU; 0 where this libtorch has no CUDA. Thread-safe.
std::int64_t multiprocessors();

/// Bytes of GPU 0 that this process took through libtorch's caching allocator: libtorch's tensors and, by device_allocator, all of a backend's. The CUDA
/// context and page-locked host memory are not in it.
struct DeviceMemory {
  std::uint64_t allocated = 0;       ///< in use now
  std::uint64_t reserved = 0;        ///< taken from the driver, in use or kept for reuse
  std::uint64_t peak_allocated = 0;  ///< the most that was in use at once since the process began
};

/// Empty where `on_gpu` is false. Does not wait for the device. Thread-safe.
std::optional<DeviceMemory> device_memory(bool on_gpu);

}  // namespace squareq::training
