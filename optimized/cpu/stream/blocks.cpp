#include "optimized/cpu/stream/blocks.hpp"

#include "optimized/cpu/matrix.hpp"
#include "optimized/cpu/memory.hpp"
#include "optimized/cpu/parts.hpp"
#include "optimized/cpu/weight.hpp"
#include "squareq/text.hpp"

namespace squareq::cpu {
namespace {

std::string text_of(const char* text, const char* what, const std::string& where) {
  if (text == nullptr || *text == '\0') refuse(SQ_CALL_NULL, where, "", std::string(what) + " has no name");
  return text;
}

std::uint64_t part_bytes(const sq_part_desc& p, const std::string& layer) {
  if (p.rank < 0 || p.rank > SQ_MAX_RANK) refuse(SQ_CALL_SHAPE, layer, printable(p.name), "rank is " + std::to_string(p.rank) + ", expected 0 to 8");
  if (p.dtype < SQ_F32 || p.dtype > SQ_I64) refuse(SQ_CALL_DTYPE, layer, printable(p.name), "dtype is " + std::to_string(p.dtype) + ", expected 0 to 7");
  std::uint64_t bytes = dtype_bytes(p.dtype);
  for (std::int32_t d = 0; d < p.rank; ++d)
    if (p.shape[d] < 0 || __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(p.shape[d]), &bytes))
      refuse(SQ_CALL_SHAPE, layer, printable(p.name), "dimension " + std::to_string(d) + " is " + std::to_string(p.shape[d]) + ", not a size that fits 64 bits");
  return bytes;
}

PartCopy copy_part(const sq_part_desc& p, const BlockCopy& block, const std::string& layer) {
  PartCopy part;
  part.name = text_of(p.name, "a part", layer);
  const std::uint64_t bytes = part_bytes(p, layer);
  if (p.offset % kAlignment != 0)
    refuse(SQ_CALL_ALIGN, layer, printable(part.name), "offset " + std::to_string(p.offset) + " is not a multiple of " + std::to_string(kAlignment));
  std::uint64_t end = 0;
  if (__builtin_add_overflow(p.offset, bytes, &end) || end > block.bytes)
    refuse(SQ_CALL_SHAPE, layer, printable(part.name),
           "bytes [" + std::to_string(p.offset) + ", +" + std::to_string(bytes) + ") reach past the extent of " + std::to_string(block.bytes) + " bytes");
  part.tensor = make_tensor(nullptr, p.dtype, std::span<const std::int64_t>(p.shape, static_cast<std::size_t>(p.rank)));
  part.offset = p.offset;
  return part;
}

LayerCopy copy_layer(const sq_layer_desc& l, const BlockCopy& block) {
  LayerCopy layer;
  layer.name = text_of(l.name, "a layer", block.name);
  require_format(l.format, "bp8_v2", layer.name, "");
  layer.format = l.format;
  layer.out_features = l.out_features;
  layer.in_features = l.in_features;
  if (l.part_count > 0 && l.parts == nullptr) refuse(SQ_CALL_NULL, layer.name, "parts", "is null, part_count is " + std::to_string(l.part_count));
  for (std::uint32_t i = 0; i < l.part_count; ++i) layer.parts.push_back(copy_part(l.parts[i], block, layer.name));
  std::vector<sq_part> parts;
  for (const PartCopy& p : layer.parts) {
    parts.push_back({p.name.c_str(), p.tensor});
    parts.back().tensor.data = reinterpret_cast<void*>(kAlignment);  // never followed: only names, dtypes and shapes are looked at
  }
  check_weight_table({sizeof(sq_weight), static_cast<std::uint32_t>(parts.size()), layer.format.c_str(), layer.name.c_str(), layer.out_features, layer.in_features, parts.data()});
  return layer;
}

}  // namespace

BlockView::BlockView(const BlockCopy& block, std::byte* base) : block_(&block) {
  for (const LayerCopy& layer : block.layers) {
    std::vector<sq_part>& parts = parts_.emplace_back();
    for (const PartCopy& p : layer.parts) {
      parts.push_back({p.name.c_str(), p.tensor});
      parts.back().tensor.data = base + p.offset;
    }
    weights_.push_back({sizeof(sq_weight), static_cast<std::uint32_t>(parts.size()), layer.format.c_str(), layer.name.c_str(), layer.out_features,
                        layer.in_features, parts.data()});
  }
}

const sq_weight& BlockView::layer(std::uint32_t index) const {
  if (index >= weights_.size())
    refuse(SQ_CALL_VALUE, "", "layer", "is " + std::to_string(index) + ", block " + printable(block_->name) + " has " + std::to_string(weights_.size()) + " layers");
  return weights_[index];
}

std::vector<BlockCopy> copy_blocks(const sq_stream_open_args& args) {
  if (args.block_count > 0 && args.blocks == nullptr) refuse(SQ_CALL_NULL, "", "blocks", "is null, block_count is " + std::to_string(args.block_count));
  std::vector<BlockCopy> blocks;
  for (std::uint32_t i = 0; i < args.block_count; ++i) {
    const sq_block_desc& b = args.blocks[i];
    BlockCopy block;
    block.name = text_of(b.name, "a block", "");
    block.bytes = b.extent_bytes;
    block.resident = (b.flags & SQ_BLOCK_RESIDENT) != 0;
    if (b.extent_bytes == 0 || b.extent_bytes % kAlignment != 0)
      refuse(SQ_CALL_ALIGN, block.name, "extent_bytes", "is " + std::to_string(b.extent_bytes) + ", expected a multiple of " + std::to_string(kAlignment));
    if (b.layer_count > 0 && b.layers == nullptr) refuse(SQ_CALL_NULL, block.name, "layers", "is null, layer_count is " + std::to_string(b.layer_count));
    for (std::uint32_t l = 0; l < b.layer_count; ++l) block.layers.push_back(copy_layer(b.layers[l], block));
    blocks.push_back(std::move(block));
  }
  return blocks;
}

std::vector<ScheduleCopy> copy_schedules(const sq_stream_open_args& args, const std::vector<BlockCopy>& blocks) {
  if (args.schedule_count > 0 && args.schedules == nullptr)
    refuse(SQ_CALL_NULL, "", "schedules", "is null, schedule_count is " + std::to_string(args.schedule_count));
  std::vector<ScheduleCopy> schedules;
  for (std::uint32_t i = 0; i < args.schedule_count; ++i) {
    const sq_schedule& s = args.schedules[i];
    const std::string name = "schedule " + (s.name == nullptr ? std::to_string(i) : printable(s.name));
    if (s.visit_count > 0 && s.visits == nullptr) refuse(SQ_CALL_NULL, "", name, "visits is null, visit_count is " + std::to_string(s.visit_count));
    for (std::uint32_t v = 0; v < s.visit_count; ++v) {
      const sq_visit visit = s.visits[v];
      const std::string at = "visit " + std::to_string(v) + " names ";
      if (visit.block >= blocks.size())
        refuse(SQ_CALL_VALUE, "", name, at + "block " + std::to_string(visit.block) + " of " + std::to_string(blocks.size()));
      if (visit.slot >= args.slot_count) refuse(SQ_CALL_VALUE, "", name, at + "slot " + std::to_string(visit.slot) + " of " + std::to_string(args.slot_count));
      const BlockCopy& block = blocks[visit.block];
      if (block.resident) refuse(SQ_CALL_VALUE, "", name, at + "block " + std::to_string(visit.block) + " (" + printable(block.name) + "), which is resident");
      if (block.bytes > args.slot_bytes)
        refuse(SQ_CALL_VALUE, "", name, at + "block " + printable(block.name) + " of " + std::to_string(block.bytes) + " bytes, a slot has " + std::to_string(args.slot_bytes));
    }
    schedules.push_back({s.name == nullptr ? "" : s.name, {s.visits, s.visits + s.visit_count}, s.lookahead});
  }
  return schedules;
}

}  // namespace squareq::cpu
