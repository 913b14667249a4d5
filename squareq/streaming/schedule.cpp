#include "squareq/streaming/schedule.hpp"

#include <algorithm>
#include <cstddef>

#include "squareq/error.hpp"

namespace squareq::streaming {
namespace {

__extension__ typedef unsigned __int128 Wide;  // byte counts times byte counts

/// Slots that a pass over `blocks` blocks can use. Throws where there is none.
std::uint32_t usable_slots(std::size_t blocks, std::uint32_t slots) {
  if (blocks > 0 && slots == 0) throw Error(Code::CALL_VALUE, "a schedule of " + std::to_string(blocks) + " streamed blocks needs at least 1 slot, got 0");
  return static_cast<std::uint32_t>(std::min<std::size_t>(blocks, slots));
}

// Without a bound, a load may begin as soon as its slot is free, however far ahead its visit is.
std::uint32_t bounded(std::uint32_t lookahead, std::size_t visits) { return std::min(lookahead, static_cast<std::uint32_t>(visits)); }

}  // namespace

Schedule train_schedule(std::span<const std::uint32_t> streamed, std::uint32_t slots, std::uint32_t lookahead) {
  const std::uint32_t c = usable_slots(streamed.size(), slots);
  Schedule schedule{"train", {}, 0};
  for (std::uint32_t i = 0; i < streamed.size(); ++i) schedule.visits.push_back({streamed[i], i % c});
  for (std::uint32_t i = static_cast<std::uint32_t>(streamed.size()); i-- > 0;) schedule.visits.push_back({streamed[i], i % c});
  schedule.lookahead = bounded(lookahead, schedule.visits.size());
  return schedule;
}

Schedule forward_schedule(std::span<const std::uint32_t> streamed, std::uint32_t slots, std::uint32_t lookahead) {
  const std::uint32_t n = static_cast<std::uint32_t>(streamed.size());
  const std::uint32_t c = usable_slots(n, slots);
  Schedule schedule{"forward", {}, 0};
  if (c == n || c <= 2) {
    for (std::uint32_t i = 0; i < n; ++i) schedule.visits.push_back({streamed[i], i % c});
  } else {
    const std::uint32_t rotating = n - c + 2;
    std::uint32_t next_rotating = 0, next_kept = 2;  // slots 0 and 1 rotate, 2..C-1 keep
    for (std::uint32_t i = 0; i < n; ++i) {
      const bool rotates = next_rotating < rotating && i == (2ull * next_rotating + 1) * n / (2ull * rotating);
      schedule.visits.push_back({streamed[i], rotates ? next_rotating++ % 2 : next_kept++});
    }
  }
  schedule.lookahead = bounded(lookahead, schedule.visits.size());
  return schedule;
}

std::uint64_t train_loads(std::uint64_t blocks, std::uint64_t slots) { return slots >= blocks ? 0 : 2 * (blocks - slots); }

std::uint64_t forward_loads(std::uint64_t blocks, std::uint64_t slots) {
  if (slots >= blocks) return 0;
  if (slots == 1) return blocks;
  // Three blocks in two rotating slots: one slot alternates, the other keeps its single block.
  const std::uint64_t rotating = blocks - slots + 2;
  return rotating == 3 ? 2 : rotating;
}

PassTraffic replay(const Schedule& schedule, std::span<const std::uint64_t> block_bytes, SlotTags& tags) {
  PassTraffic traffic;
  for (const sq_visit& visit : schedule.visits) {
    if (tags.size() <= visit.slot) tags.resize(visit.slot + 1, -1);
    if (tags[visit.slot] == static_cast<std::int64_t>(visit.block)) {
      ++traffic.hits;
      continue;
    }
    tags[visit.slot] = visit.block;
    ++traffic.loads;
    traffic.bytes += block_bytes[visit.block];
  }
  return traffic;
}

std::vector<std::uint32_t> spread_streamed(std::span<const std::uint64_t> block_bytes, std::uint64_t streamed_bytes, std::uint64_t largest) {
  Wide total = 0;
  for (const std::uint64_t bytes : block_bytes) total += bytes <= largest ? bytes : 0;
  std::vector<std::uint32_t> chosen;
  Wide passed = 0, taken = 0;
  for (std::uint32_t i = 0; i < block_bytes.size(); ++i) {
    const Wide bytes = block_bytes[i];
    if (bytes > largest || bytes == 0) continue;
    passed += bytes;
    // streamed_bytes * passed / total - taken > bytes / 2, in whole numbers
    const Wide due = 2 * Wide{streamed_bytes} * passed;
    if (due > total * (2 * taken + bytes)) {
      chosen.push_back(i);
      taken += bytes;
    }
  }
  return chosen;
}

}  // namespace squareq::streaming
