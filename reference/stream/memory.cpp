#include "reference/stream/memory.hpp"

#include <cstring>

#include "squareq/text.hpp"

namespace squareq::reference {

StreamMemory::StreamMemory(const sq_context& context, const StreamPlan& plan) {
  for (std::uint32_t i = 0; i < plan.slot_count; ++i) slots.push_back({Memory(context, SQ_MEM_DEVICE, plan.slot_bytes, "slot " + std::to_string(i)), {}, 0});
  for (const BlockPlan& block : plan.blocks) {
    blocks.emplace_back();
    if (block.resident) blocks.back().resident = Memory(context, SQ_MEM_DEVICE, block.extent_bytes, "resident " + block.name);
    if (block.resident || !plan.keep_host_master) continue;
    blocks.back().master = Memory(context, SQ_MEM_HOST, block.extent_bytes, "master " + block.name);
    host_bytes += block.extent_bytes;
  }
}

namespace {

void read_extent(const StreamPlan& plan, std::uint32_t block, std::byte* destination) {
  sq_error e{};
  e.size = sizeof(sq_error);
  const std::uint64_t bytes = plan.blocks[block].extent_bytes;
  const sq_status status = plan.read(plan.read_user, block, 0, destination, bytes, &e);
  if (status == SQ_OK) return;
  const bool known = code_name(static_cast<Code>(status)) != "UNKNOWN";
  const Code code = known ? static_cast<Code>(status) : Code::IO_ERROR;
  const std::string reason = e.message[0] ? e.message : known ? std::string(code_meaning(code)) : "status " + std::to_string(status);
  throw Error(code, "block '" + printable(plan.blocks[block].name) + "': reading " + std::to_string(bytes) + " bytes failed: " + reason, e.file, e.layer, e.tensor);
}

}  // namespace

std::uint64_t fetch(const StreamPlan& plan, BlockMemory& memory, std::uint32_t block, std::byte* destination) {
  const std::uint64_t bytes = plan.blocks[block].extent_bytes;
  if (!memory.master.data()) {
    read_extent(plan, block, destination);
    return bytes;
  }
  const bool first = !memory.master_filled;
  if (first) read_extent(plan, block, memory.master.data());
  memory.master_filled = true;
  std::memcpy(destination, memory.master.data(), bytes);
  return first ? bytes : 0;
}

}  // namespace squareq::reference
