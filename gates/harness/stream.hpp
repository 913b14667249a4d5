// Blocks whose bytes live in the suite, delivered through the read callback: short, late or failing on request.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "gates/harness/linear.hpp"

namespace squareq::gates {

/// Blocks of layers with their extents and descriptions. Address-stable; must outlive every session opened on it.
class Blocks {
 public:
  explicit Blocks(std::vector<std::vector<Layer>> blocks);
  Blocks(const Blocks&) = delete;
  Blocks& operator=(const Blocks&) = delete;

  std::uint32_t count() const { return static_cast<std::uint32_t>(layers_.size()); }
  Layer& layer(std::uint32_t block, std::uint32_t index) { return layers_[block][index]; }
  std::uint32_t layers(std::uint32_t block) const { return static_cast<std::uint32_t>(layers_[block].size()); }
  const std::vector<sq_block_desc>& descriptions() const { return descriptions_; }
  std::uint64_t largest_extent() const;

  /// Marks blocks as resident: loaded at open into memory of their own.
  void set_resident(std::uint32_t block, bool resident) { descriptions_[block].flags = resident ? static_cast<std::uint32_t>(SQ_BLOCK_RESIDENT) : 0u; }

  /// For sq_stream_open_args. Counts bytes; obeys the switches below.
  static sq_status read(void* user, std::uint32_t block, std::uint64_t offset, void* destination, std::uint64_t bytes, sq_error* error);

  std::atomic<std::uint64_t> bytes_read{0};
  std::atomic<std::uint32_t> delay_us{0};       ///< each read sleeps up to this long, by a hash of its place and count
  std::atomic<std::int64_t> failing_block{-1};  ///< reads of it return IO_ERROR and deliver nothing

 private:
  std::vector<std::vector<Layer>> layers_;
  std::vector<std::vector<std::byte>> extents_;
  std::deque<std::vector<sq_part_desc>> parts_;
  std::deque<std::vector<sq_layer_desc>> layer_descriptions_;
  std::deque<std::string> names_;
  std::vector<sq_block_desc> descriptions_;
  std::atomic<std::uint32_t> reads_{0};
};

/// Visits 0..N-1, then N-1..0 of the blocks that are not resident, with slots chosen as Belady would: the slot whose block is needed last.
std::vector<sq_visit> sawtooth(const Blocks& blocks, std::uint32_t slots);
/// Visits 0..N-1.
std::vector<sq_visit> forward_only(const Blocks& blocks, std::uint32_t slots);

/// Loads that `passes` runs of the visits make, starting with empty slots.
std::uint64_t loads_of(const std::vector<sq_visit>& visits, std::uint32_t slots, int passes);

/// An open session over one schedule (index 0).
struct SessionSpec {
  std::uint32_t slots = 2;
  std::uint32_t lookahead = 1;
  std::uint64_t budget = 0;
};
sq_stream_open_args open_args(Blocks& blocks, const sq_schedule& schedule, const SessionSpec& spec);
sq_schedule schedule_of(const std::vector<sq_visit>& visits, std::uint32_t lookahead);

}  // namespace squareq::gates
