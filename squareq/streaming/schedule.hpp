// Visit orders and slot assignments of a pass: which block is used when, and in which slot it lies (spec/60-streaming.md).
//
// A training step visits the streamed blocks 0..N-1 and then N-1..0 (a checkpointed block is recomputed and differentiated in one
// visit). Block i always lies in slot i mod C. The last C blocks of the forward therefore serve the start of the backward, and the
// first C serve the next forward: 2N - 2C loads per step, which is Belady's bound, and the slot of the block just released is the
// one that the next load needs, so a copy overlaps compute from C = 2 on.
//
// A forward-only pass repeats cyclically, where that ring would never hit. It keeps C - 2 blocks, spread evenly, in slots of their
// own and rotates the others through two slots: N - C + 2 loads per pass. The optimum over all policies is N (N - C) / (N - 1) on
// average; it needs another visit list in every pass and saves less than 2 loads, so it is not used.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "squareq/contract.h"

namespace squareq::streaming {

/// A schedule with the storage behind sq_schedule.
struct Schedule {
  std::string name;
  std::vector<sq_visit> visits;
  std::uint32_t lookahead = 0;

  /// Points into this object.
  sq_schedule view() const { return {visits.data(), static_cast<std::uint32_t>(visits.size()), lookahead, name.c_str()}; }
};

/// Indices in sq_stream_open_args::schedules of a session that offers both.
inline constexpr std::uint32_t kTrainSchedule = 0;
inline constexpr std::uint32_t kForwardSchedule = 1;

/// Lookahead that lets a load start as soon as its slot is free.
inline constexpr std::uint32_t kUnboundedLookahead = 0xFFFFFFFFu;

/// The training step over the streamed blocks, given in the model's order. `slots` >= 1 unless `streamed` is empty (CALL_VALUE).
Schedule train_schedule(std::span<const std::uint32_t> streamed, std::uint32_t slots, std::uint32_t lookahead = kUnboundedLookahead);

/// One forward pass over the streamed blocks (sampling, validation).
Schedule forward_schedule(std::span<const std::uint32_t> streamed, std::uint32_t slots, std::uint32_t lookahead = kUnboundedLookahead);

/// Loads of one pass in steady state, from N streamed blocks and C slots: the closed forms that SQ-STR requires.
std::uint64_t train_loads(std::uint64_t blocks, std::uint64_t slots);
std::uint64_t forward_loads(std::uint64_t blocks, std::uint64_t slots);

/// What the slots hold: a block index, or -1.
using SlotTags = std::vector<std::int64_t>;

struct PassTraffic {
  std::uint64_t loads = 0;
  std::uint64_t bytes = 0;
  std::uint64_t hits = 0;  // visits that load nothing
};

/// Replays a pass on `tags` (updated) and counts what it loads; `block_bytes` are the extents by block index. The only input of the
/// result besides the visits is what the slots hold, so it is exact for any sequence of passes.
PassTraffic replay(const Schedule& schedule, std::span<const std::uint64_t> block_bytes, SlotTags& tags);

/// Chooses which blocks to stream so that about `streamed_bytes` of all bytes are streamed, spread evenly over the model by bytes:
/// walking the blocks in order, one is streamed when the bytes due exceed those already streamed by more than half of it. For S of
/// N equal blocks these are the indices ((2i + 1) N) div (2S). Blocks larger than `largest` are never chosen.
std::vector<std::uint32_t> spread_streamed(std::span<const std::uint64_t> block_bytes, std::uint64_t streamed_bytes, std::uint64_t largest);

}  // namespace squareq::streaming
