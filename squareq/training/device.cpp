#include "squareq/training/device.hpp"

#include <torch/torch.h>

#include <array>
#include <cstdlib>
#include <new>
#include <string>

#ifdef SQUAREQ_TORCH_CUDA
#include <ATen/Context.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#endif

#include "squareq/error.hpp"

namespace squareq::training {

#ifdef SQUAREQ_TORCH_CUDA

namespace {

constexpr std::uint64_t kHostAlignment = 256;

/// `index`: the device's, as the table's user pointer.
void* allocate(void* index, std::int32_t kind, std::uint64_t bytes, std::uint64_t alignment, sq_stream_handle stream, const char*) {
  try {
    switch (kind) {
      case SQ_MEM_DEVICE:
      case SQ_MEM_SCRATCH: {
        // libtorch's blocks begin at multiples of 512 bytes.
        const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(reinterpret_cast<std::intptr_t>(index)));
        return alignment <= 512 ? c10::cuda::CUDACachingAllocator::raw_alloc_with_stream(bytes, static_cast<cudaStream_t>(stream)) : nullptr;
      }
      case SQ_MEM_HOST_PINNED: {  // not through libtorch's own cache, which rounds to powers of two
        void* memory = nullptr;
        const bool good = cudaHostAlloc(&memory, bytes, cudaHostAllocDefault) == cudaSuccess;
        if (!good) static_cast<void>(cudaGetLastError());
        return good ? memory : nullptr;
      }
      case SQ_MEM_HOST: return alignment <= kHostAlignment ? ::operator new(bytes, std::align_val_t{kHostAlignment}, std::nothrow) : nullptr;
      default: return nullptr;
    }
  } catch (const std::exception&) {  // libtorch's out-of-memory error; a C table must not let it through
    return nullptr;
  }
}

void release(void*, void* pointer, std::int32_t kind, std::uint64_t, sq_stream_handle) {
  switch (kind) {
    case SQ_MEM_DEVICE:
    case SQ_MEM_SCRATCH: c10::cuda::CUDACachingAllocator::raw_delete(pointer); break;
    case SQ_MEM_HOST_PINNED: cudaFreeHost(pointer); break;
    default: ::operator delete(pointer, std::align_val_t{kHostAlignment});
  }
}

}  // namespace

bool torch_has_cuda() { return true; }

void prepare_device(sq_device device, bool deterministic) {
  if (device.kind != SQ_CUDA) return;
  // cuBLAS repeats itself only with a workspace of its own; libtorch reads this when it makes its first handle.
  ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
  try {
    torch::empty({1}, torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(device.index)));
  } catch (const c10::Error& e) {
    throw Error(Code::CFG_BACKEND, std::string("libtorch cannot use the GPU: ") + e.what_without_backtrace());
  }
  at::Context& context = at::globalContext();
  context.setDeterministicAlgorithms(deterministic, false);
  context.setDeterministicFillUninitializedMemory(false);  // every output is written in full; filling it before costs a pass over it
  context.setSDPUseMemEfficient(!deterministic);  // its backward adds with atomics
  context.setSDPUseCuDNN(false);                  // in neither mode: with it torch 2.11 died of an illegal access in the first backward at 1024 x 1024
  context.setAllowTF32CuBLAS(false);
}

const sq_allocator* device_allocator(sq_device device) {
  static const auto tables = [] {
    std::array<sq_allocator, C10_COMPILE_TIME_MAX_GPUS> all;
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = {sizeof(sq_allocator), 0, reinterpret_cast<void*>(i), allocate, release};
    return all;
  }();
  return device.kind == SQ_CUDA ? &tables.at(static_cast<std::size_t>(device.index)) : nullptr;
}

std::int64_t multiprocessors() { return at::cuda::getCurrentDeviceProperties()->multiProcessorCount; }

std::optional<DeviceMemory> device_memory(bool on_gpu) {
  if (!on_gpu) return std::nullopt;
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(0);
  constexpr auto all = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);  // small and large pool
  const auto bytes = [](std::int64_t value) { return static_cast<std::uint64_t>(value); };
  return DeviceMemory{bytes(stats.allocated_bytes[all].current), bytes(stats.reserved_bytes[all].current), bytes(stats.allocated_bytes[all].peak)};
}

#else

bool torch_has_cuda() { return false; }

void prepare_device(sq_device device, bool) {
  if (device.kind == SQ_CUDA)
    throw Error(Code::CFG_BACKEND, "this program was built with a libtorch without CUDA, so it cannot compute beside backend 'cuda': build the preset 'cuda'");
}

const sq_allocator* device_allocator(sq_device) { return nullptr; }

std::int64_t multiprocessors() { return 0; }

std::optional<DeviceMemory> device_memory(bool) { return std::nullopt; }

#endif

}  // namespace squareq::training
