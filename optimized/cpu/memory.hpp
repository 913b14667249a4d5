// Memory from the host's allocator table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "squareq/contract.h"

namespace squareq::cpu {

/// The caller's allocator, or aligned operator new where it gave none. Thread-safe as the table is.
class Allocator {
 public:
  explicit Allocator(const sq_allocator* table);

  /// Throws `failure` (HOST_OOM or GPU_OOM) naming tag and bytes where the table returns NULL.
  void* allocate(std::int32_t kind, std::uint64_t bytes, const char* tag, sq_status failure) const;
  void release(void* pointer, std::int32_t kind, std::uint64_t bytes) const;

 private:
  sq_allocator table_{};
};

inline constexpr std::uint64_t kAlignment = 256;

/// One block of the host's memory; released by the destructor.
class Block {
 public:
  Block() = default;
  Block(const Allocator& allocator, std::int32_t kind, std::uint64_t bytes, const char* tag, sq_status failure);
  Block(Block&& other) noexcept;
  Block& operator=(Block&& other) noexcept;
  ~Block() { reset(); }
  void reset();

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  std::uint64_t bytes() const { return bytes_; }

 private:
  const Allocator* allocator_ = nullptr;
  void* data_ = nullptr;
  std::int32_t kind_ = 0;
  std::uint64_t bytes_ = 0;
};

/// The scratch of one call, kind SQ_MEM_SCRATCH: parts are reserved first, then one block is allocated and the parts get their
/// addresses. It goes back to the host with the destructor, before the call returns (SQ-LIN-047).
class Scratch {
 public:
  explicit Scratch(const Allocator& allocator) : allocator_(allocator) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  /// `*pointer` is set by commit(); null where count is 0.
  template <class T>
  void reserve(T** pointer, std::int64_t count) {
    *pointer = nullptr;
    add(reinterpret_cast<void**>(pointer), static_cast<std::uint64_t>(count) * sizeof(T));
  }
  void commit();  // throws HOST_OOM

 private:
  struct Part {
    void** pointer;
    std::uint64_t offset;
  };
  void add(void** pointer, std::uint64_t bytes);

  const Allocator& allocator_;
  std::vector<Part> parts_;
  std::uint64_t total_ = 0;
  Block block_;
};

}  // namespace squareq::cpu
