#include "bench/cuda/device.hpp"

#include <algorithm>
#include <cstring>
#include <random>

namespace squareq::bench {
namespace {

constexpr std::size_t kPattern = std::size_t{4} << 20, kSlack = std::size_t{1} << 20;

int attribute(cudaDeviceAttr what) {
  int value = 0;
  require(cudaDeviceGetAttribute(&value, what, 0), "asking the device");
  return value;
}

void upload_pattern(const Buffer& to, std::int32_t dtype) {
  std::mt19937 random(static_cast<unsigned>(7 + dtype));
  std::vector<unsigned char> block(to.bytes());
  if (dtype == SQ_I8) {
    for (unsigned char& b : block) b = static_cast<unsigned char>(static_cast<int>(random() % 255) - 127);
  } else {
    const std::size_t width = dtype_bytes(dtype);
    for (std::size_t i = 0; i + width <= block.size(); i += width) {
      const float unit = static_cast<float>(random()) / 4294967296.0f;
      const float value = dtype == SQ_F32 ? 0.001f + 0.009f * unit : 2 * unit - 1;
      unsigned char raw[4];
      std::memcpy(raw, &value, 4);
      std::memcpy(block.data() + i, raw + 4 - width, width);  // bf16 is the upper half
    }
  }
  require(cudaMemcpy(to.data(), block.data(), block.size(), cudaMemcpyHostToDevice), "filling");
}

}  // namespace

void require(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  const bool none = status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver || status == cudaErrorDevicesUnavailable;
  throw Error(status == cudaErrorMemoryAllocation ? Code::GPU_OOM : none ? Code::GPU_NONE : Code::GPU_STICKY,
              what + ": " + cudaGetErrorString(status));
}

nlohmann::ordered_json Device::json() const {
  return {{"name", name}, {"capability", capability}, {"multiprocessors", multiprocessors}, {"highest_mhz", highest_mhz},
          {"memory_bytes_per_second", memory_bytes_per_second}, {"bf16_per_clock", bf16_per_clock}, {"int8_per_clock", int8_per_clock}};
}

Device use_device() {
  int count = 0;
  require(cudaGetDeviceCount(&count), "no GPU can be used here");
  if (count == 0) throw Error(Code::GPU_NONE, "no GPU can be used here: the driver lists none");
  require(cudaSetDevice(0), "taking device 0");
  cudaDeviceProp properties{};
  require(cudaGetDeviceProperties(&properties, 0), "asking the device");
  Device device;
  device.name = properties.name;
  device.capability = 10 * properties.major + properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  device.highest_mhz = attribute(cudaDevAttrClockRate) / 1e3;
  device.memory_bytes_per_second = 2e3 * attribute(cudaDevAttrMemoryClockRate) * attribute(cudaDevAttrGlobalMemoryBusWidth) / 8;
  // A100: 312 T/s at 1.41 GHz and 108 multiprocessors; H100 SXM: 989 T/s at 1.83 GHz and 132. Consumer parts of one capability differ.
  if (device.capability == 80) device.bf16_per_clock = 2048, device.int8_per_clock = 4096;
  if (device.capability == 90) device.bf16_per_clock = 4096, device.int8_per_clock = 8192;
  cudaMemPool_t pool = nullptr;
  require(cudaDeviceGetDefaultMemPool(&pool, 0), "memory pool");
  std::uint64_t keep = UINT64_MAX;
  require(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "memory pool");
  return device;
}

Context open_backend(const sq_allocator* allocator) {
  auto host = sized<sq_host>();
  host.device = kDevice;
  host.deterministic = 1;
  host.allocator = allocator;
  return Context(Implementation::load(find_backend("cuda")), host);
}

Buffer::Buffer(std::size_t bytes) : bytes_(bytes) {
  require(cudaMallocAsync(&data_, bytes, nullptr), "allocating " + std::to_string(bytes) + " bytes");
  require(cudaStreamSynchronize(nullptr), "allocating");
}

Random::Random() : bf16_(kPattern + kSlack), f32_(kPattern + kSlack), i8_(kPattern + kSlack) {
  upload_pattern(bf16_, SQ_BF16);
  upload_pattern(f32_, SQ_F32);
  upload_pattern(i8_, SQ_I8);
}

void Random::fill(const Buffer& to, std::int32_t dtype, unsigned seed) const {
  const Buffer& from = dtype == SQ_I8 ? i8_ : dtype == SQ_F32 ? f32_ : bf16_;
  const auto* pattern = static_cast<const unsigned char*>(from.data()) + std::size_t{seed} * 2503 * 4 % kSlack;
  for (std::size_t at = 0; at < to.bytes(); at += kPattern)
    require(cudaMemcpyAsync(static_cast<unsigned char*>(to.data()) + at, pattern, std::min(kPattern, to.bytes() - at), cudaMemcpyDeviceToDevice, nullptr),
            "filling");
}

sq_allocator Arena::table() {
  auto a = sized<sq_allocator>();
  a.user = this;
  a.allocate = [](void* user, std::int32_t, std::uint64_t bytes, std::uint64_t, sq_stream_handle, const char*) -> void* {
    auto& self = *static_cast<Arena*>(user);
    const std::size_t begin = self.live_ == 0 ? 0 : self.used_, end = begin + (bytes + 255) / 256 * 256;
    if (end > self.memory_.bytes()) return nullptr;
    self.used_ = end;
    ++self.live_;
    return static_cast<unsigned char*>(self.memory_.data()) + begin;
  };
  a.release = [](void* user, void*, std::int32_t, std::uint64_t, sq_stream_handle) { --static_cast<Arena*>(user)->live_; };
  return a;
}

}  // namespace squareq::bench
