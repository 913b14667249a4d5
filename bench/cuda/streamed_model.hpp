// FLUX.1-dev's blocks as a stream session wants them, in page-locked memory that all sessions of a run share.
#pragma once

#include <cstdint>
#include <list>
#include <mutex>
#include <string>
#include <vector>

#include "bench/cuda/device.hpp"

namespace squareq::bench {

/// Page-locked host memory.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(std::size_t bytes);
  ~PinnedBuffer() { cudaFreeHost(data_); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  unsigned char* data() const { return static_cast<unsigned char*>(data_); }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  void* data_ = nullptr;
};

/// 19 double and 38 single blocks: int8 codes, fp32 scales and fp32 biases of every linear in its real shape (facts: the public model), parts at
/// multiples of 256 bytes.
class StreamedModel {
 public:
  /// `blocks`: as many of them, spread over both kinds as the model has them (1 double to 2 single).
  explicit StreamedModel(std::uint32_t blocks);
  StreamedModel(const StreamedModel&) = delete;
  StreamedModel& operator=(const StreamedModel&) = delete;

  static constexpr std::uint32_t kBlocks = 57;
  std::uint32_t size() const { return static_cast<std::uint32_t>(descs_.size()); }
  std::uint64_t bytes(std::uint32_t block) const { return descs_[block].extent_bytes; }
  std::uint64_t largest() const;
  std::uint64_t total() const;
  /// Slots of the largest block, a host master, no budget; reads deliver nothing, because the master handed out by SharedMemory is the source.
  sq_stream_open_args open_args(std::uint32_t slots, const std::vector<sq_schedule>& schedules) const;

 private:
  struct Kind {
    std::list<std::vector<sq_part_desc>> parts;
    std::vector<sq_layer_desc> layers;
    std::uint64_t bytes = 0;
  };
  struct LinearShape {
    const char* name;
    std::int64_t in, out;
  };
  static Kind lay_out(const std::vector<LinearShape>& linears);

  Kind double_, single_;
  std::list<std::string> names_;
  std::vector<sq_block_desc> descs_;
};

/// The allocator of the sessions: page-locked requests get `master`, one at a time; the rest comes from the device. Thread-safe.
class SharedMemory {
 public:
  explicit SharedMemory(const PinnedBuffer& master) : master_(master) {}
  sq_allocator table();

 private:
  const PinnedBuffer& master_;
  std::mutex mutex_;
  bool lent_ = false;
};

/// Visits 0..N-1 (and back again for `train`), block i in slot i mod C.
std::vector<sq_visit> ring(std::uint32_t blocks, std::uint32_t slots, bool train);
/// Loads go as far ahead as slots allow, as the trainer's do.
sq_schedule schedule(const std::vector<sq_visit>& visits);

}  // namespace squareq::bench
