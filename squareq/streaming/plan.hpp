// The memory plan: which blocks stay, how many slots stream the others, and what that costs, known before anything is loaded.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "squareq/streaming/schedule.hpp"

namespace squareq::streaming {

/// Device memory that is not streamed weights, by what uses it ("adapters", "activations", ...).
struct Consumer {
  std::string name;
  std::uint64_t bytes = 0;
};

/// What link and device do; all times in seconds. Vectors have one entry per block.
struct Rates {
  double link_bytes_per_second = 0;
  std::vector<double> forward_seconds;   // compute of one forward visit
  std::vector<double> backward_seconds;  // recompute + dX of one backward visit
};

struct PlanRequest {
  std::vector<std::uint64_t> block_bytes;  // extents (BlockTable::extents)
  std::uint64_t outside_bytes = 0;         // quantized linears outside blocks: always on the device
  std::vector<Consumer> others;            // everything else on the device; bounded by `vram` only
  std::uint64_t budget = 0;                // bounds slots + residents + outside_bytes; 0: no bound
  std::uint64_t vram = 0;                  // bounds that and `others`, the CUDA context excluded; 0: no bound
  std::uint32_t resident_blocks = 0;       // C: exactly C slots of the largest block's size; 0: chosen from the bounds
  bool training = true;                    // false: forward passes only
  bool keep_host_master = true;            // streamed extents are kept in host memory
  std::optional<Rates> rates;              // without them the plan minimizes bytes per pass
};

/// Times of one pass. compute + exposed = pass.
struct Prediction {
  double compute_seconds = 0;
  double transfer_seconds = 0;  // all loads end to end on the link
  double exposed_seconds = 0;   // compute waiting for a block
  double pass_seconds = 0;
};

struct Plan {
  std::uint32_t slots = 0;
  std::uint64_t slot_bytes = 0;          // extent of the largest streamed block
  std::vector<std::uint32_t> residents;  // blocks with SQ_BLOCK_RESIDENT, ascending
  std::vector<std::uint32_t> streamed;   // the others, ascending
  std::uint64_t resident_bytes = 0;
  std::uint64_t outside_bytes = 0;
  std::uint64_t other_bytes = 0;
  std::uint64_t host_bytes = 0;          // host master of the streamed blocks
  Schedule train, forward;
  PassTraffic train_traffic, forward_traffic;  // steady state
  std::optional<Prediction> train_time, forward_time;

  std::uint64_t slot_total() const { return slots * slot_bytes; }
  /// What a stream session allocates on the device, to the byte.
  std::uint64_t session_bytes() const { return slot_total() + resident_bytes; }
  /// What `budget` bounds.
  std::uint64_t weight_bytes() const { return session_bytes() + outside_bytes; }
  /// What `vram` bounds.
  std::uint64_t device_bytes() const { return weight_bytes() + other_bytes; }
  /// {train, forward}, in the order of kTrainSchedule and kForwardSchedule; valid as long as the plan.
  std::vector<sq_schedule> schedules() const { return {train.view(), forward.view()}; }
};

/// Bytes of weights that the smallest possible plan needs: two slots (one for a model of one block) of the largest block, or every
/// block where that is less, and the linears outside.
std::uint64_t minimum_weight_bytes(const PlanRequest& request);

/// Chooses the plan with the shortest predicted pass (without rates: the fewest bytes per pass) among those that fit. Everything
/// stays resident where it fits. Throws CFG_BUDGET naming the bound, what was given and the least that works; CFG_VALUE where rates
/// do not match the blocks.
Plan make_plan(const PlanRequest& request);

/// Event simulation of a steady-state pass: one link, loads in visit order, each beginning when the link and its slot are free.
/// `seconds` has one entry per visit of `order`, which lists every block of the pass, resident ones included.
struct TimedVisit {
  std::uint32_t block = 0;
  double seconds = 0;
};
Prediction predict(const Schedule& schedule, std::span<const std::uint64_t> block_bytes, std::span<const TimedVisit> order,
                   double link_bytes_per_second);

}  // namespace squareq::streaming
