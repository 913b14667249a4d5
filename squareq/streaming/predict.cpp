// Event simulation of a pass: where transfer hides behind compute and where it does not.

#include <algorithm>

#include "squareq/error.hpp"
#include "squareq/streaming/plan.hpp"

namespace squareq::streaming {

Prediction predict(const Schedule& schedule, std::span<const std::uint64_t> block_bytes, std::span<const TimedVisit> order,
                   double link_bytes_per_second) {
  if (!(link_bytes_per_second > 0)) throw Error(Code::CFG_VALUE, "link rate must be positive, got " + std::to_string(link_bytes_per_second) + " bytes/s");
  const std::vector<sq_visit>& visits = schedule.visits;
  SlotTags tags;
  replay(schedule, block_bytes, tags);  // what an earlier pass left in the slots

  Prediction result;
  std::vector<double> released(visits.size());
  std::vector<double> slot_free(tags.size(), 0.0);
  double now = 0, link_free = 0;
  std::size_t j = 0;  // next streamed visit
  for (const TimedVisit& step : order) {
    const bool streamed = j < visits.size() && visits[j].block == step.block;
    if (streamed) {
      const sq_visit& visit = visits[j];
      if (tags[visit.slot] != static_cast<std::int64_t>(visit.block)) {
        tags[visit.slot] = visit.block;
        const double seconds = static_cast<double>(block_bytes[visit.block]) / link_bytes_per_second;
        const double in_reach = j > schedule.lookahead ? released[j - schedule.lookahead - 1] : 0.0;
        link_free = std::max({link_free, slot_free[visit.slot], in_reach}) + seconds;
        result.transfer_seconds += seconds;
        result.exposed_seconds += std::max(0.0, link_free - now);
        now = std::max(now, link_free);
      }
    }
    now += step.seconds;
    result.compute_seconds += step.seconds;
    if (streamed) {
      slot_free[visits[j].slot] = now;
      released[j++] = now;
    }
  }
  if (j != visits.size())
    throw Error(Code::CFG_VALUE, "schedule '" + schedule.name + "' has " + std::to_string(visits.size()) + " visits, the timed order reaches only " + std::to_string(j));
  result.pass_seconds = now;
  return result;
}

}  // namespace squareq::streaming
