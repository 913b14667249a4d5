#include "gates/harness/memory.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <fstream>

#if defined(__SANITIZE_ADDRESS__)
// GCC ships the functions without their header.
extern "C" std::size_t __sanitizer_get_current_allocated_bytes();
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void*, std::size_t), void (*on_free)(const volatile void*));
#endif

namespace squareq::gates {
namespace {

constexpr std::uint64_t fence = 256;
constexpr unsigned char fence_byte = 0xC3;
constexpr unsigned char fresh_byte = 0xA5;

std::uint64_t free_on_device() { return device_in_use() ? device_in_use()->free_bytes() : 0; }

#if defined(__SANITIZE_ADDRESS__)

std::atomic<std::uint64_t> heap_peak{0};

std::uint64_t heap_bytes() { return __sanitizer_get_current_allocated_bytes(); }

void watch_heap() {
  // The hook runs after the counter was raised.
  static const int installed = __sanitizer_install_malloc_and_free_hooks(
      [](const volatile void*, std::size_t) {
        const std::uint64_t now = heap_bytes();
        std::uint64_t seen = heap_peak;
        while (now > seen && !heap_peak.compare_exchange_weak(seen, now)) {}
      },
      [](const volatile void*) {});
  static_cast<void>(installed);
}

#else

std::uint64_t status_kib(const char* key) {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word)
    if (word == key) {
      std::uint64_t kib = 0;
      status >> kib;
      return kib * 1024;
    }
  return 0;
}

#endif

}  // namespace

Meter::Meter(DeviceMemory* device) : device_(device) {
  table_.size = sizeof table_;
  table_.user = this;
  table_.allocate = [](void* user, std::int32_t kind, std::uint64_t bytes, std::uint64_t alignment, sq_stream_handle, const char* tag) {
    return static_cast<Meter*>(user)->allocate(kind, bytes, alignment, tag);
  };
  table_.release = [](void* user, void* pointer, std::int32_t kind, std::uint64_t bytes, sq_stream_handle) {
    static_cast<Meter*>(user)->release(pointer, kind, bytes);
  };
}

Meter::~Meter() {
  for (const auto& [pointer, base] : bases_) raw_release(home_of(blocks_.at(pointer).kind), base);
}

Meter::Home Meter::home_of(int kind) const {
  if (!device_ || kind == SQ_MEM_HOST) return Home::host;
  return kind == SQ_MEM_HOST_PINNED ? Home::pinned : Home::device;
}

void* Meter::raw_allocate(Home home, std::uint64_t bytes) {
  switch (home) {
    case Home::pinned: return device_->allocate_pinned(bytes);
    case Home::device: return device_->allocate(bytes);
    default: return std::malloc(bytes);
  }
}

void Meter::raw_release(Home home, void* base) {
  switch (home) {
    case Home::pinned: return device_->release_pinned(base);
    case Home::device: return device_->release(base);
    default: return std::free(base);
  }
}

void Meter::write(Home home, unsigned char* to, unsigned char value, std::uint64_t bytes) {
  if (home == Home::device) device_->fill(to, value, bytes);
  else std::memset(to, value, bytes);
}

bool Meter::intact(Home home, const unsigned char* start) const {
  std::array<unsigned char, fence> copy;
  if (home == Home::device) device_->to_host(copy.data(), start, fence);
  else std::memcpy(copy.data(), start, fence);
  return std::all_of(copy.begin(), copy.end(), [](unsigned char b) { return b == fence_byte; });
}

void Meter::complain(const std::string& text) {
  if (misuse_.empty()) misuse_ = text;
}

void* Meter::allocate(int kind, std::uint64_t bytes, std::uint64_t alignment, const char* tag) {
  const std::lock_guard lock(mutex_);
  const std::string name = tag ? tag : "untagged";
  if (kind < 0 || kind >= kinds) {
    complain("allocate('" + name + "'): unknown memory kind " + std::to_string(kind));
    return nullptr;
  }
  if (!std::has_single_bit(alignment)) {
    complain("allocate('" + name + "'): alignment " + std::to_string(alignment) + " is no power of two");
    return nullptr;
  }
  if (refuse_from_ == 0) return nullptr;
  if (refuse_from_ > 0) --refuse_from_;
  const std::uint64_t align = std::max<std::uint64_t>(alignment, 64);
  const Home home = home_of(kind);
  auto* base = static_cast<unsigned char*>(raw_allocate(home, bytes + 2 * fence + align));
  if (!base) return nullptr;
  const auto address = (reinterpret_cast<std::uintptr_t>(base) + fence + align - 1) / align * align;
  auto* block = base + (address - reinterpret_cast<std::uintptr_t>(base));
  write(home, block - fence, fence_byte, fence);
  write(home, block, fresh_byte, bytes);
  write(home, block + bytes, fence_byte, fence);
  blocks_[block] = {bytes, kind, name};
  bases_[block] = base;
  ++allocations_;
  const auto k = static_cast<std::size_t>(kind);
  held_[k] += bytes;
  peak_[k] = std::max(peak_[k], held_[k]);
  total_ += bytes;
  total_peak_ = std::max(total_peak_, total_);
  return block;
}

void Meter::release(void* pointer, int kind, std::uint64_t bytes) {
  if (!pointer) return;
  const std::lock_guard lock(mutex_);
  const auto found = blocks_.find(pointer);
  if (found == blocks_.end()) return complain("release of memory that is not held");
  const Block& block = found->second;
  if (block.kind != kind || block.bytes != bytes)
    complain("release('" + block.tag + "'): kind " + std::to_string(kind) + " and " + std::to_string(bytes) + " bytes, allocated as kind " +
             std::to_string(block.kind) + " with " + std::to_string(block.bytes));
  const auto* start = static_cast<const unsigned char*>(pointer);
  const Home home = home_of(block.kind);
  if (home != Home::host) device_->synchronize();  // work that is queued may still use the block
  if (!intact(home, start - fence) || !intact(home, start + block.bytes)) complain("'" + block.tag + "': wrote outside its allocation");
  held_[static_cast<std::size_t>(block.kind)] -= block.bytes;
  total_ -= block.bytes;
  raw_release(home, bases_.at(pointer));
  bases_.erase(pointer);
  blocks_.erase(found);
}

std::uint64_t Meter::held(int kind) const {
  const std::lock_guard lock(mutex_);
  return held_.at(static_cast<std::size_t>(kind));
}
std::uint64_t Meter::peak(int kind) const {
  const std::lock_guard lock(mutex_);
  return peak_.at(static_cast<std::size_t>(kind));
}
std::uint64_t Meter::held() const {
  const std::lock_guard lock(mutex_);
  return total_;
}
std::uint64_t Meter::peak() const {
  const std::lock_guard lock(mutex_);
  return total_peak_;
}
std::uint64_t Meter::allocations() const {
  const std::lock_guard lock(mutex_);
  return allocations_;
}
void Meter::reset_peaks() {
  const std::lock_guard lock(mutex_);
  peak_ = held_;
  total_peak_ = total_;
}
void Meter::refuse_from(std::int64_t index) {
  const std::lock_guard lock(mutex_);
  refuse_from_ = index;
}
std::string Meter::misuse() const {
  const std::lock_guard lock(mutex_);
  return misuse_;
}

#if defined(__SANITIZE_ADDRESS__)

ResidentPeak::ResidentPeak() : start_(heap_bytes()), device_free_(free_on_device()) {
  heap_peak = start_;
  watch_heap();
}

std::uint64_t ResidentPeak::host_growth() const { return heap_peak - start_; }

#else

ResidentPeak::ResidentPeak() : device_free_(free_on_device()) {
  std::ofstream("/proc/self/clear_refs") << "5";  // resets VmHWM to VmRSS
  start_ = status_kib("VmHWM:");
}

std::uint64_t ResidentPeak::host_growth() const {
  const std::uint64_t now = status_kib("VmHWM:");
  return now > start_ ? now - start_ : 0;
}

#endif

std::uint64_t ResidentPeak::growth() const {
  const std::uint64_t host = host_growth(), free = free_on_device();
  return host + (device_free_ > free ? device_free_ - free : 0);
}

}  // namespace squareq::gates
