// What stream_open was given, copied and checked, so that nothing points into the caller's memory afterwards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "squareq/contract.h"

namespace squareq::reference {

struct PartPlan {
  std::string name;
  std::uint64_t offset = 0;  // bytes from the start of the extent
  sq_tensor tensor{};        // data is null until a lease binds it
};

struct LayerPlan {
  std::string name;
  std::string format;
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  std::vector<PartPlan> parts;

  /// The parts as they lie at `extent`; names point into this plan.
  std::vector<sq_part> bind(std::byte* extent) const;
  sq_weight weight(const std::vector<sq_part>& bound) const;
};

struct BlockPlan {
  std::string name;
  std::uint64_t extent_bytes = 0;
  bool resident = false;
  std::vector<LayerPlan> layers;
};

struct SchedulePlan {
  std::string name;
  std::uint32_t lookahead = 0;
  std::vector<sq_visit> visits;
};

struct StreamPlan {
  std::uint32_t slot_count = 0;
  std::uint64_t slot_bytes = 0;
  std::uint64_t device_bytes = 0;  // slots + residents
  std::vector<BlockPlan> blocks;
  std::vector<SchedulePlan> schedules;
  sq_read_extent read = nullptr;
  void* read_user = nullptr;
  bool poison_slots = false;
  bool keep_host_master = false;
};

/// Throws CALL_NULL, CALL_VALUE, CALL_SHAPE, CALL_ALIGN, CALL_PART, CALL_DTYPE; GPU_OOM where slots + residents exceed the budget.
StreamPlan check_plan(const sq_stream_open_args* args);

}  // namespace squareq::reference
