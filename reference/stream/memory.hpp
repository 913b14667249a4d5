// Where blocks live: the ring of slots, memory of its own for each resident, and the optional host masters.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "reference/context.hpp"
#include "reference/stream/plan.hpp"

namespace squareq::reference {

struct Slot {
  Memory memory;
  std::optional<std::uint32_t> block;  // version tag: whose complete bytes lie here
  std::uint32_t users = 0;             // visits prepared here and not yet released
};

struct BlockMemory {
  Memory resident;
  Memory master;
  bool master_filled = false;
};

struct StreamMemory {
  /// Allocates everything that the session will ever hold. Throws GPU_OOM or HOST_OOM; what was allocated by then is freed.
  StreamMemory(const sq_context& context, const StreamPlan& plan);

  std::vector<Slot> slots;
  std::vector<BlockMemory> blocks;
  std::uint64_t host_bytes = 0;
};

/// Brings the whole extent of `block` to `destination`: from its master, or through the read callback. Returns the bytes that the
/// callback delivered (0 from a filled master). Throws the callback's code, naming the block.
std::uint64_t fetch(const StreamPlan& plan, BlockMemory& memory, std::uint32_t block, std::byte* destination);

}  // namespace squareq::reference
