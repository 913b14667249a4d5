// Blocks whose bytes live in the suite, delivered through the read callback: short, late or failing on request.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <mutex>
#include <string>
#include <vector>

#include "gates/harness/linear.hpp"

namespace squareq::gates {

/// One call of the read callback.
struct Read {
  std::uint32_t block = 0;
  std::uint64_t offset = 0, bytes = 0;
};

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
  std::atomic<std::uint32_t> read_takes_us{0};  ///< each read takes at least this long
  std::atomic<std::int64_t> permits{-1};        ///< not negative: each read waits until it can take one of these
  std::atomic<std::int64_t> failing_block{-1};  ///< reads of it return fail_code and deliver nothing
  std::atomic<std::int64_t> failing_read{-1};   ///< counts down; the read that finds 0 fails in the same way
  std::atomic<sq_status> fail_code{SQ_IO_ERROR};
  /// Every call so far, in order.
  std::vector<Read> reads() const;

 private:
  std::vector<std::vector<Layer>> layers_;
  std::vector<std::vector<std::byte>> extents_;
  std::deque<std::vector<sq_part_desc>> parts_;
  std::deque<std::vector<sq_layer_desc>> layer_descriptions_;
  std::deque<std::string> names_;
  std::vector<sq_block_desc> descriptions_;
  std::atomic<std::uint32_t> reads_{0};
  mutable std::mutex log_mutex_;
  std::vector<Read> log_;
};

/// [out, in] of every layer of every block.
using BlockShapes = std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>>;

/// One block per entry, one layer per inner entry, with random codes, scales and biases (every second layer has one).
std::vector<std::vector<Layer>> random_blocks(Random& random, const BlockShapes& shapes);

/// Everything of a leased block equals what was delivered, judged through operations only: codes and scales by dequantize, the bias by a
/// forward of zeros.
void check_leased(Instance& instance, const Lease& lease, Blocks& blocks, std::uint32_t block);

/// Visits 0..N-1, then N-1..0, streamed block i in slot i mod C: the training schedule of spec/60-streaming.md.
std::vector<sq_visit> ring(const Blocks& blocks, std::uint32_t slots);
/// Visits 0..N-1 as spec/60-streaming.md has them for forward passes: C - 2 blocks, evenly spread, keep slots of their own and the others
/// take turns in two.
std::vector<sq_visit> forward_ring(const Blocks& blocks, std::uint32_t slots);

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
  bool host_master = false;
};
sq_stream_open_args open_args(Blocks& blocks, const sq_schedule& schedule, const SessionSpec& spec);
sq_schedule schedule_of(const std::vector<sq_visit>& visits, std::uint32_t lookahead);

/// What a case that streams random blocks starts with. Data come from the case's random stream "blocks". Must outlive its sessions.
struct Streamed {
  using Order = std::vector<sq_visit> (*)(const Blocks& blocks, std::uint32_t slots);

  Random random;
  Blocks blocks;
  SessionSpec spec;
  std::vector<sq_visit> visits;
  sq_schedule schedule{};  ///< of `visits`, with the lookahead of `spec`

  Streamed(Trial& trial, const BlockShapes& shapes, const SessionSpec& session, std::initializer_list<std::uint32_t> residents = {}, Order order = ring);
  Streamed(const Streamed&) = delete;
  Streamed& operator=(const Streamed&) = delete;
  sq_stream_open_args args() { return open_args(blocks, schedule, spec); }
};

/// One pass: every visit's block is leased, `use(lease, block)` called, and the lease given back.
template <class Use>
void pass_over(StreamSession& session, const std::vector<sq_visit>& visits, Use&& use) {
  session.begin_step(0);
  for (const sq_visit& v : visits) {
    const Lease lease(session, v.block);
    use(lease, v.block);
  }
  session.end_step();
}

}  // namespace squareq::gates
