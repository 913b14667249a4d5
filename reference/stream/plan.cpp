#include "reference/stream/plan.hpp"

#include "reference/arguments.hpp"
#include "reference/weight.hpp"
#include "squareq/text.hpp"

namespace squareq::reference {
namespace {

constexpr std::uint64_t extent_alignment = 256;

[[noreturn]] void bad_block(Code code, const std::string& block, const std::string& message) {
  throw Error(code, "block '" + printable(block) + "': " + message);
}

std::string text(std::uint64_t n) { return std::to_string(n); }

/// Bytes of a part, with every product checked.
std::uint64_t part_bytes(const sq_part_desc& part, const std::string& block) {
  if (part.rank < 0 || part.rank > SQ_MAX_RANK) bad_block(Code::CALL_SHAPE, block, "part '" + printable(part.name) + "' has rank " + std::to_string(part.rank));
  std::uint64_t bytes = dtype_bytes(part.dtype);
  for (std::int32_t i = 0; i < part.rank; ++i)
    if (part.shape[i] < 0 || __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(part.shape[i]), &bytes))
      bad_block(Code::CALL_SHAPE, block, "part '" + printable(part.name) + "' has a dimension that is negative or overflows: " + std::to_string(part.shape[i]));
  return bytes;
}

LayerPlan copy_layer(const sq_layer_desc& given, const BlockPlan& block) {
  if (!given.name || !given.format || (!given.parts && given.part_count)) bad_block(Code::CALL_NULL, block.name, "a layer's name, format and parts are required");
  LayerPlan layer{given.name, given.format, given.out_features, given.in_features, {}};
  for (std::uint32_t i = 0; i < given.part_count; ++i) {
    const sq_part_desc& part = given.parts[i];
    if (!part.name) bad_block(Code::CALL_NULL, block.name, "a part of layer '" + printable(layer.name) + "' has no name");
    const std::string what = "layer '" + printable(layer.name) + "', part '" + printable(part.name) + "': ";
    const std::uint64_t bytes = part_bytes(part, block.name);
    if (part.offset % extent_alignment) bad_block(Code::CALL_ALIGN, block.name, what + "offset is " + text(part.offset) + ", must be a multiple of " + text(extent_alignment));
    if (part.offset > block.extent_bytes || bytes > block.extent_bytes - part.offset)
      bad_block(Code::CALL_SHAPE, block.name, what + text(bytes) + " bytes at offset " + text(part.offset) + " reach past the extent of " + text(block.extent_bytes));
    layer.parts.push_back({part.name, part.offset, make_tensor(nullptr, part.dtype, std::span(part.shape, static_cast<std::size_t>(part.rank)))});
  }
  // The address is never followed: only names, dtypes and shapes are looked at.
  const auto bound = layer.bind(reinterpret_cast<std::byte*>(extent_alignment));
  check_weight(layer.weight(bound), Values::skip);
  return layer;
}

BlockPlan copy_block(const sq_block_desc& given, std::uint32_t index, std::uint64_t slot_bytes) {
  if (!given.name || (!given.layers && given.layer_count)) throw Error(Code::CALL_NULL, "block " + text(index) + ": name and layers are required");
  BlockPlan block{given.name, given.extent_bytes, (given.flags & SQ_BLOCK_RESIDENT) != 0, {}};
  if (given.flags & ~SQ_BLOCK_RESIDENT) bad_block(Code::CALL_VALUE, block.name, "flags are " + text(given.flags) + ", only " + text(SQ_BLOCK_RESIDENT) + " is known");
  if (block.extent_bytes == 0 || block.extent_bytes % extent_alignment)
    bad_block(Code::CALL_ALIGN, block.name, "extent is " + text(block.extent_bytes) + " bytes, must be a positive multiple of " + text(extent_alignment));
  if (!block.resident && block.extent_bytes > slot_bytes)
    bad_block(Code::CALL_SHAPE, block.name, "extent of " + text(block.extent_bytes) + " bytes does not fit a slot of " + text(slot_bytes));
  for (std::uint32_t i = 0; i < given.layer_count; ++i) block.layers.push_back(copy_layer(given.layers[i], block));
  return block;
}

SchedulePlan copy_schedule(const sq_schedule& given, const StreamPlan& plan) {
  if (!given.name || (!given.visits && given.visit_count)) throw Error(Code::CALL_NULL, "schedule: name and visits are required");
  SchedulePlan schedule{given.name, given.lookahead, {given.visits, given.visits + given.visit_count}};
  for (std::size_t i = 0; i < schedule.visits.size(); ++i) {
    const auto [block, slot] = schedule.visits[i];
    const std::string where = "schedule '" + printable(schedule.name) + "', visit " + text(i) + ": ";
    if (block >= plan.blocks.size()) throw Error(Code::CALL_VALUE, where + "block is " + text(block) + ", there are " + text(plan.blocks.size()));
    if (plan.blocks[block].resident) throw Error(Code::CALL_VALUE, where + "block '" + printable(plan.blocks[block].name) + "' is resident and takes no slot");
    if (slot >= plan.slot_count) throw Error(Code::CALL_VALUE, where + "slot is " + text(slot) + ", there are " + text(plan.slot_count));
  }
  return schedule;
}

}  // namespace

std::vector<sq_part> LayerPlan::bind(std::byte* extent) const {
  std::vector<sq_part> bound;
  for (const PartPlan& part : parts) {
    bound.push_back({part.name.c_str(), part.tensor});
    bound.back().tensor.data = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(extent) + part.offset);
  }
  return bound;
}

sq_weight LayerPlan::weight(const std::vector<sq_part>& bound) const {
  return {sizeof(sq_weight), static_cast<std::uint32_t>(bound.size()), format.c_str(), name.c_str(), out_features, in_features, bound.data()};
}

StreamPlan check_plan(const sq_stream_open_args* given) {
  const sq_stream_open_args args = read_struct(given, "sq_stream_open_args");
  if (!args.read) throw Error(Code::CALL_NULL, "sq_stream_open_args: read is required");
  if ((!args.blocks && args.block_count) || (!args.schedules && args.schedule_count)) throw Error(Code::CALL_NULL, "sq_stream_open_args: blocks and schedules are required");
  StreamPlan plan;
  plan.slot_count = args.slot_count;
  plan.slot_bytes = args.slot_bytes;
  plan.read = args.read;
  plan.read_user = args.read_user;
  plan.poison_slots = args.poison_slots != 0;
  plan.keep_host_master = args.keep_host_master != 0;
  if (plan.slot_count && (plan.slot_bytes == 0 || plan.slot_bytes % extent_alignment))
    throw Error(Code::CALL_ALIGN, "slot_bytes is " + text(plan.slot_bytes) + ", must be a positive multiple of " + text(extent_alignment));
  for (std::uint32_t i = 0; i < args.block_count; ++i) plan.blocks.push_back(copy_block(args.blocks[i], i, plan.slot_bytes));
  for (std::uint32_t i = 0; i < args.schedule_count; ++i) plan.schedules.push_back(copy_schedule(args.schedules[i], plan));

  std::uint64_t slots = 0, residents = 0;
  bool overflow = __builtin_mul_overflow(plan.slot_bytes, static_cast<std::uint64_t>(plan.slot_count), &slots);
  for (const BlockPlan& block : plan.blocks)
    if (block.resident) overflow |= __builtin_add_overflow(residents, block.extent_bytes, &residents);
  overflow |= __builtin_add_overflow(slots, residents, &plan.device_bytes);
  if (overflow || (args.budget_bytes && plan.device_bytes > args.budget_bytes))
    throw Error(Code::GPU_OOM, text(plan.slot_count) + " slots of " + text(plan.slot_bytes) + " bytes and " + text(residents) + " bytes of residents need " +
                                   (overflow ? "more than 2^64" : text(plan.device_bytes)) + " bytes; the budget is " + text(args.budget_bytes));
  return plan;
}

}  // namespace squareq::reference
