#include "gates/harness/device_memory.hpp"

#include <dlfcn.h>

#include <cstddef>
#include <string>

#include "squareq/error.hpp"

namespace squareq::gates {
namespace {

// The driver API, declared by hand (CUDA Driver API reference, 12 and 13): the suite builds and runs without a toolkit.
using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = void*;
using CUstream = void*;
constexpr CUresult kSuccess = 0, kOutOfMemory = 2;
constexpr unsigned kNonBlocking = 1;

struct Driver {
  CUresult (*cuInit)(unsigned);
  CUresult (*cuDeviceGetCount)(int*);
  CUresult (*cuDeviceGet)(CUdevice*, int);
  CUresult (*cuDevicePrimaryCtxRetain)(CUcontext*, CUdevice);
  CUresult (*cuCtxSetCurrent)(CUcontext);
  CUresult (*cuCtxSynchronize)();
  CUresult (*cuMemAlloc_v2)(CUdeviceptr*, std::size_t);
  CUresult (*cuMemFree_v2)(CUdeviceptr);
  CUresult (*cuMemAllocHost_v2)(void**, std::size_t);
  CUresult (*cuMemFreeHost)(void*);
  CUresult (*cuMemcpyHtoD_v2)(CUdeviceptr, const void*, std::size_t);
  CUresult (*cuMemcpyDtoH_v2)(void*, CUdeviceptr, std::size_t);
  CUresult (*cuMemsetD8_v2)(CUdeviceptr, unsigned char, std::size_t);
  CUresult (*cuMemGetInfo_v2)(std::size_t*, std::size_t*);
  CUresult (*cuStreamCreate)(CUstream*, unsigned);
  CUresult (*cuGetErrorName)(CUresult, const char**);
};

[[noreturn]] void unusable(const std::string& why) { throw Error(Code::CFG_BACKEND, "the suite cannot use this machine's GPU: " + why); }

class CudaMemory final : public DeviceMemory {
 public:
  CudaMemory() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // stays open: the driver cannot be unloaded
    if (!library) unusable(dlerror());
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (!function) unusable(std::string("libcuda.so.1 has no ") + name);
    };
    find(driver_.cuInit, "cuInit");
    find(driver_.cuDeviceGetCount, "cuDeviceGetCount");
    find(driver_.cuDeviceGet, "cuDeviceGet");
    find(driver_.cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain");
    find(driver_.cuCtxSetCurrent, "cuCtxSetCurrent");
    find(driver_.cuCtxSynchronize, "cuCtxSynchronize");
    find(driver_.cuMemAlloc_v2, "cuMemAlloc_v2");
    find(driver_.cuMemFree_v2, "cuMemFree_v2");
    find(driver_.cuMemAllocHost_v2, "cuMemAllocHost_v2");
    find(driver_.cuMemFreeHost, "cuMemFreeHost");
    find(driver_.cuMemcpyHtoD_v2, "cuMemcpyHtoD_v2");
    find(driver_.cuMemcpyDtoH_v2, "cuMemcpyDtoH_v2");
    find(driver_.cuMemsetD8_v2, "cuMemsetD8_v2");
    find(driver_.cuMemGetInfo_v2, "cuMemGetInfo_v2");
    find(driver_.cuStreamCreate, "cuStreamCreate");
    find(driver_.cuGetErrorName, "cuGetErrorName");
    int devices = 0;
    CUdevice device = 0;
    if (const CUresult r = driver_.cuInit(0)) unusable("cuInit: " + name_of(r));
    if (const CUresult r = driver_.cuDeviceGetCount(&devices)) unusable("cuDeviceGetCount: " + name_of(r));
    if (devices == 0) unusable("the driver knows no device");
    if (const CUresult r = driver_.cuDeviceGet(&device, 0)) unusable("cuDeviceGet: " + name_of(r));
    // The primary context is the one that the runtime API of an implementation uses.
    if (const CUresult r = driver_.cuDevicePrimaryCtxRetain(&context_, device)) unusable("cuDevicePrimaryCtxRetain: " + name_of(r));
    enter();
    check(driver_.cuStreamCreate(&stream_, kNonBlocking), "cuStreamCreate");
  }

  void* allocate(std::uint64_t bytes) override {
    enter();
    CUdeviceptr pointer = 0;
    const CUresult result = driver_.cuMemAlloc_v2(&pointer, bytes);
    if (result == kOutOfMemory) return nullptr;
    check(result, "cuMemAlloc");
    return reinterpret_cast<void*>(pointer);
  }
  void release(void* pointer) override {
    enter();
    check(driver_.cuMemFree_v2(address(pointer)), "cuMemFree");
  }
  void* allocate_pinned(std::uint64_t bytes) override {
    enter();
    void* pointer = nullptr;
    const CUresult result = driver_.cuMemAllocHost_v2(&pointer, bytes);
    if (result == kOutOfMemory) return nullptr;
    check(result, "cuMemAllocHost");
    return pointer;
  }
  void release_pinned(void* pointer) override {
    enter();
    check(driver_.cuMemFreeHost(pointer), "cuMemFreeHost");
  }
  void to_device(void* to, const void* from, std::uint64_t bytes) override {
    enter();
    check(driver_.cuMemcpyHtoD_v2(address(to), from, bytes), "cuMemcpyHtoD");
    synchronize();  // a copy from pageable memory may return before it has arrived
  }
  void to_host(void* to, const void* from, std::uint64_t bytes) override {
    enter();
    check(driver_.cuMemcpyDtoH_v2(to, address(from), bytes), "cuMemcpyDtoH");
  }
  void fill(void* to, unsigned char value, std::uint64_t bytes) override {
    enter();
    check(driver_.cuMemsetD8_v2(address(to), value, bytes), "cuMemsetD8");
    synchronize();
  }
  sq_stream_handle stream() override { return stream_; }
  void synchronize() override {
    enter();
    check(driver_.cuCtxSynchronize(), "cuCtxSynchronize");
  }
  std::uint64_t free_bytes() override {
    enter();
    std::size_t free = 0, total = 0;
    check(driver_.cuMemGetInfo_v2(&free, &total), "cuMemGetInfo");
    return free;
  }

 private:
  static CUdeviceptr address(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }
  std::string name_of(CUresult result) const {
    const char* name = nullptr;
    return driver_.cuGetErrorName(result, &name) == kSuccess && name ? name : "error " + std::to_string(result);
  }
  void check(CUresult result, const char* call) const {
    if (result != kSuccess) throw Error(Code::GPU_STICKY, std::string("the suite's own ") + call + " failed: " + name_of(result));
  }
  /// Implementations call the allocator from threads of their own.
  void enter() const { check(driver_.cuCtxSetCurrent(context_), "cuCtxSetCurrent"); }

  Driver driver_{};
  CUcontext context_ = nullptr;
  CUstream stream_ = nullptr;
};

DeviceMemory* in_use = nullptr;

}  // namespace

DeviceMemory& cuda_device_memory() {
  static CudaMemory memory;
  return memory;
}

DeviceMemory* device_in_use() { return in_use; }
void use_device(DeviceMemory* device) { in_use = device; }

}  // namespace squareq::gates
