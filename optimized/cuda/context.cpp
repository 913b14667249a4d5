#include "optimized/cuda/context.hpp"

#include <algorithm>

#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/stream/session.hpp"

namespace squareq::cuda {
namespace {

constexpr int kOldestMajor = 8;  // Ampere: the oldest device that a kernel is compiled for

std::string words(cudaError_t status) { return std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status); }

bool is_sticky(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress: case cudaErrorLaunchTimeout: case cudaErrorHardwareStackError: case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress: case cudaErrorInvalidAddressSpace: case cudaErrorInvalidPc: case cudaErrorLaunchFailure: case cudaErrorAssert:
    case cudaErrorECCUncorrectable: return true;
    default: return false;
  }
}

}  // namespace

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::optional<DeviceInfo> device_info(int index) {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) return std::nullopt;
  return DeviceInfo{index, properties.name, properties.major, properties.minor, properties.multiProcessorCount, properties.totalGlobalMem};
}

std::optional<Problem> why_unusable() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return Problem{Code::GPU_NONE, "no usable CUDA device: " + words(status), {}, {}, {}};
  if (count == 0) return Problem{Code::GPU_NONE, "no CUDA device in this machine", {}, {}, {}};
  std::string found;
  for (int index = 0; index < count; ++index) {
    const auto info = device_info(index);
    if (!info) continue;
    if (info->major >= kOldestMajor) return std::nullopt;
    found += (found.empty() ? "" : ", ") + info->name + " " + std::to_string(info->major) + "." + std::to_string(info->minor);
  }
  return Problem{Code::GPU_ARCH, "compute capability " + std::to_string(kOldestMajor) + ".0 or newer is needed; found: " + (found.empty() ? "none" : found), {}, {}, {}};
}

void configure(sq_context& context, const sq_host* given) {
  context.host = read_struct(given, "sq_host");
  const sq_host& host = context.host;
  if (host.abi_version != SQ_ABI_VERSION)
    throw Error(Code::CALL_VERSION, "host speaks contract version " + std::to_string(host.abi_version) + ", this implementation version " + std::to_string(SQ_ABI_VERSION));
  if (host.device.kind != SQ_CUDA) throw Error(Code::CALL_DEVICE, "cuda runs on a CUDA device, not on " + device_text(host.device));
  if (const auto problem = why_unusable()) throw Error(*problem);
  if (host.device.index < 0 || host.device.index >= device_count())
    throw Error(Code::CALL_DEVICE, "there is no " + device_text(host.device) + "; this machine has " + std::to_string(device_count()) + " CUDA devices");
  const auto info = device_info(host.device.index);
  if (!info || info->major < kOldestMajor)
    throw Error(Code::GPU_ARCH, device_text(host.device) + " has compute capability " + (info ? std::to_string(info->major) + "." + std::to_string(info->minor) : "unknown") +
                                    ", " + std::to_string(kOldestMajor) + ".0 or newer is needed");
  if (host.allocator) {
    context.allocator = read_struct(host.allocator, "sq_allocator");
    if (!context.allocator->allocate || !context.allocator->release) throw Error(Code::CALL_NULL, "sq_allocator: allocate and release are both required");
  }
  context.host.allocator = nullptr;  // the copy above is the one in use
  context.device_name = info->name;
  context.major = info->major;
  context.minor = info->minor;
  context.multiprocessors = info->multiprocessors;
  const CurrentDevice current(context);
  context.nonfinite.allocate();
}

NonfiniteTotals::~NonfiniteTotals() {
  if (counters_) cudaFreeHost(counters_);
}

void NonfiniteTotals::allocate() {
  void* memory = nullptr;
  const cudaError_t status = cudaHostAlloc(&memory, 2 * sizeof(std::int64_t), cudaHostAllocMapped);
  if (status == cudaErrorMemoryAllocation) throw Error(Code::HOST_OOM, "allocation of the numeric guard's totals failed");
  check_cuda(status, "allocation of the numeric guard's totals");
  counters_ = static_cast<std::int64_t*>(memory);
  counters_[0] = counters_[1] = 0;
}

std::int64_t NonfiniteTotals::read(int index) const { return __atomic_load_n(counters_ + index, __ATOMIC_RELAXED); }

void check_cuda(cudaError_t status, const std::string& doing) {
  if (status == cudaSuccess) return;
  const Code code = status == cudaErrorMemoryAllocation ? Code::GPU_OOM : is_sticky(status) ? Code::GPU_STICKY : Code::INTERNAL;
  throw Error(code, doing + ": " + words(status));
}

CurrentDevice::CurrentDevice(const sq_context& context) {
  check_cuda(cudaGetDevice(&former_), "asking for the current device");
  check_cuda(cudaSetDevice(context.host.device.index), "choosing " + device_text(context.host.device));
}

CurrentDevice::~CurrentDevice() { cudaSetDevice(former_); }

Scratch::Scratch(const sq_context& context, std::uint64_t bytes, cudaStream_t stream, const char* tag) : context_(context), bytes_(bytes), stream_(stream) {
  if (context.allocator) {
    data_ = context.allocator->allocate(context.allocator->user, SQ_MEM_SCRATCH, bytes, 256, stream, tag);
    if (!data_) throw Error(Code::GPU_OOM, "allocation of " + std::to_string(bytes) + " bytes for '" + tag + "' failed");
  } else {
    check_cuda(cudaMallocAsync(&data_, bytes, stream), "allocation of " + std::to_string(bytes) + " bytes for '" + tag + "'");
  }
}

Scratch::~Scratch() {
  if (context_.allocator) context_.allocator->release(context_.allocator->user, data_, SQ_MEM_SCRATCH, bytes_, stream_);
  else cudaFreeAsync(data_, stream_);
}

sq_status report(sq_error* e, const Problem& problem) {
  const auto code = static_cast<sq_status>(problem.code);
  if (!e || e->size < sizeof(sq_error)) return code;
  const auto copy = [](char* target, std::size_t capacity, const std::string& text) {
    const std::size_t bytes = std::min(capacity - 1, text.size());
    std::memcpy(target, text.data(), bytes);
    target[bytes] = 0;
  };
  e->code = code;
  copy(e->message, sizeof e->message, problem.message);
  copy(e->layer, sizeof e->layer, problem.layer);
  copy(e->tensor, sizeof e->tensor, problem.tensor);
  copy(e->file, sizeof e->file, problem.file);
  return code;
}

}  // namespace squareq::cuda

sq_context::~sq_context() = default;

std::shared_ptr<squareq::cuda::StreamSession> sq_context::session(std::uint64_t id) const {
  const std::lock_guard lock(sessions_mutex);
  const auto found = sessions.find(id);
  if (found == sessions.end())
    throw squareq::Error(squareq::Code::CALL_STATE, "stream session " + std::to_string(id) + " is not open in this context");
  return found->second;
}
