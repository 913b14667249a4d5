// The allocator table that the harness hands to an implementation: memory claims are measured, not believed.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "gates/harness/device_memory.hpp"
#include "squareq/contract.h"

namespace squareq::gates {

/// Counts bytes per kind, remembers peaks, can refuse. Every block lies between sentinels that release() checks and is filled with 0xA5, so that
/// nobody relies on zeroed memory. With a device, the kinds SQ_MEM_DEVICE and SQ_MEM_SCRATCH lie in its memory and SQ_MEM_HOST_PINNED is
/// page-locked; then release() waits for the device. Thread-safe. Must outlive every context that uses it.
class Meter {
 public:
  static constexpr int kinds = 4;  // sq_memory_kind

  explicit Meter(DeviceMemory* device = nullptr);
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;
  ~Meter();

  const sq_allocator* table() const { return &table_; }

  std::uint64_t held(int kind) const;
  std::uint64_t peak(int kind) const;
  /// Sum over all kinds now, and its peak.
  std::uint64_t held() const;
  std::uint64_t peak() const;
  std::uint64_t allocations() const;
  /// Peaks restart from what is held now.
  void reset_peaks();
  /// The allocation with this index, counted from now (0 = the next one), returns NULL; and all later ones. Negative: none.
  void refuse_from(std::int64_t index);

  /// First misuse seen: a release of something not held, with another size or kind, an overrun, or an alignment that is no power of two.
  std::string misuse() const;

 private:
  struct Block {
    std::uint64_t bytes = 0;
    int kind = 0;
    std::string tag;
  };

  void* allocate(int kind, std::uint64_t bytes, std::uint64_t alignment, const char* tag);
  void release(void* pointer, int kind, std::uint64_t bytes);
  void complain(const std::string& text);
  enum class Home { host, pinned, device };
  Home home_of(int kind) const;
  void* raw_allocate(Home home, std::uint64_t bytes);
  void raw_release(Home home, void* base);
  void write(Home home, unsigned char* to, unsigned char value, std::uint64_t bytes);
  bool intact(Home home, const unsigned char* fence) const;

  DeviceMemory* device_;
  sq_allocator table_{};
  mutable std::mutex mutex_;
  std::map<void*, Block> blocks_;
  std::map<void*, void*> bases_;
  std::array<std::uint64_t, kinds> held_{};
  std::array<std::uint64_t, kinds> peak_{};
  std::uint64_t total_ = 0;
  std::uint64_t total_peak_ = 0;
  std::uint64_t allocations_ = 0;
  std::int64_t refuse_from_ = -1;
  std::string misuse_;
};

/// Peak memory of this process since construction, above what it had then: finds allocations that bypass the table. Resident pages, or, where
/// AddressSanitizer keeps freed pages resident, bytes of the heap; where a device is in use, its memory that is taken and still held counts too.
/// One at a time.
class ResidentPeak {
 public:
  ResidentPeak();
  /// Bytes; 0 where the system does not say.
  std::uint64_t growth() const;

 private:
  std::uint64_t host_growth() const;

  std::uint64_t start_ = 0;
  std::uint64_t device_free_ = 0;
};

}  // namespace squareq::gates
