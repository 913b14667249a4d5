#include "optimized/cuda/memory/memory.hpp"

#include <string>
#include <utility>

#include "optimized/cuda/context.hpp"

namespace squareq::cuda {

Memory::Memory(const sq_context& context, sq_memory_kind kind, std::uint64_t bytes, cudaStream_t stream, const char* tag)
    : context_(&context), bytes_(bytes), kind_(kind), stream_(stream) {
  const std::string what = "allocation of " + std::to_string(bytes) + " bytes for '" + tag + "'";
  const Code failure = kind == SQ_MEM_DEVICE ? Code::GPU_OOM : Code::HOST_OOM;
  if (context.allocator) {
    data_ = context.allocator->allocate(context.allocator->user, kind, bytes, kAlignment, stream, tag);
    if (!data_) throw Error(failure, what + " failed");
    return;
  }
  const cudaError_t status = kind == SQ_MEM_DEVICE ? cudaMalloc(&data_, bytes) : cudaHostAlloc(&data_, bytes, cudaHostAllocDefault);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // told to the caller; the next launch must not report it again
    throw Error(failure, what + " failed");
  }
  check_cuda(status, what);
}

Memory::Memory(Memory&& other) noexcept { *this = std::move(other); }

Memory& Memory::operator=(Memory&& other) noexcept {
  if (this == &other) return *this;
  reset();
  context_ = other.context_;
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  kind_ = other.kind_;
  stream_ = other.stream_;
  return *this;
}

void Memory::reset() {
  if (!data_) return;
  if (context_->allocator) context_->allocator->release(context_->allocator->user, data_, kind_, bytes_, stream_);
  else if (kind_ == SQ_MEM_DEVICE) cudaFree(data_);
  else cudaFreeHost(data_);
  data_ = nullptr;
  bytes_ = 0;
}

}  // namespace squareq::cuda
