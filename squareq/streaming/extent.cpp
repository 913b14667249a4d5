#include "squareq/streaming/extent.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "squareq/error.hpp"
#include "squareq/tensor.hpp"
#include "squareq/text.hpp"

namespace squareq::streaming {
namespace {

constexpr std::uint64_t kLargestExtent = 1ull << 62;  // leaves room for rounding up and for sums of a few extents

std::uint64_t round_up(std::uint64_t bytes) { return (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment; }

void require_name(const std::string& name, const std::string& what, std::set<std::string>& seen) {
  if (name.empty()) throw Error(Code::CALL_VALUE, what + " without a name");
  if (!seen.insert(name).second) throw Error(Code::CALL_VALUE, what + " '" + printable(name) + "' given twice");
}

}  // namespace

std::uint64_t part_bytes(const Part& part, const std::string& layer) {
  const auto refuse = [&](const std::string& why) {
    return Error(Code::CALL_SHAPE, "layer '" + printable(layer) + "', part '" + printable(part.name) + "': shape " + shape_text(part.shape) + " " + why, {},
                 printable(layer), printable(part.name));
  };
  if (part.shape.size() > SQ_MAX_RANK) throw refuse("has more than " + std::to_string(SQ_MAX_RANK) + " dimensions");
  std::uint64_t bytes = dtype_bytes(part.dtype);
  for (const std::int64_t dimension : part.shape) {
    if (dimension < 0) throw refuse("has a negative dimension");
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(dimension), &bytes) || bytes > kLargestExtent) throw refuse("is too large");
  }
  return bytes;
}

struct BlockTable::Storage {
  std::vector<Block> blocks;
  std::vector<std::vector<std::vector<sq_part_desc>>> parts;  // [block][layer][part]
  std::vector<std::vector<sq_layer_desc>> layers;             // [block][layer]
  std::vector<sq_block_desc> descs;
};

BlockTable::BlockTable(std::vector<Block> blocks) : storage_(std::make_unique<Storage>()) {
  Storage& s = *storage_;
  s.blocks = std::move(blocks);
  s.parts.resize(s.blocks.size());
  s.layers.resize(s.blocks.size());
  std::set<std::string> block_names, layer_names;
  for (std::size_t b = 0; b < s.blocks.size(); ++b) {
    const Block& block = s.blocks[b];
    require_name(block.name, "block", block_names);
    std::uint64_t offset = 0;
    s.parts[b].resize(block.layers.size());
    for (std::size_t l = 0; l < block.layers.size(); ++l) {
      const Layer& layer = block.layers[l];
      require_name(layer.name, "layer", layer_names);
      std::set<std::string> part_names;
      for (const Part& part : layer.parts) {
        require_name(part.name, "part of layer '" + printable(layer.name) + "'", part_names);
        const std::uint64_t bytes = part_bytes(part, layer.name);
        sq_part_desc desc{};
        desc.name = part.name.c_str();
        desc.dtype = part.dtype;
        desc.rank = static_cast<std::int32_t>(part.shape.size());
        std::copy(part.shape.begin(), part.shape.end(), desc.shape);
        desc.offset = offset;
        s.parts[b][l].push_back(desc);
        if (kLargestExtent - offset < round_up(bytes))
          throw Error(Code::CALL_VALUE, "block '" + printable(block.name) + "' is too large: " + std::to_string(offset) + " + " + std::to_string(bytes) + " bytes");
        offset += round_up(bytes);
      }
      s.layers[b].push_back({layer.name.c_str(), layer.format.c_str(), layer.out_features, layer.in_features, s.parts[b][l].data(),
                             static_cast<std::uint32_t>(layer.parts.size()), 0});
    }
    s.descs.push_back({block.name.c_str(), offset, s.layers[b].data(), static_cast<std::uint32_t>(block.layers.size()), 0});
  }
}

BlockTable::BlockTable(BlockTable&&) noexcept = default;
BlockTable& BlockTable::operator=(BlockTable&&) noexcept = default;
BlockTable::~BlockTable() = default;

std::uint32_t BlockTable::size() const { return static_cast<std::uint32_t>(storage_->blocks.size()); }
const Block& BlockTable::block(std::uint32_t index) const { return storage_->blocks.at(index); }
std::uint64_t BlockTable::extent_bytes(std::uint32_t index) const { return storage_->descs.at(index).extent_bytes; }
std::span<const sq_block_desc> BlockTable::descs() const { return storage_->descs; }

std::vector<std::uint64_t> BlockTable::extents() const {
  std::vector<std::uint64_t> bytes;
  for (const sq_block_desc& desc : storage_->descs) bytes.push_back(desc.extent_bytes);
  return bytes;
}

void BlockTable::set_residents(std::span<const std::uint32_t> blocks) {
  for (const std::uint32_t block : blocks)
    if (block >= size()) throw Error(Code::CALL_VALUE, "resident block " + std::to_string(block) + " of " + std::to_string(size()) + " blocks");
  for (sq_block_desc& desc : storage_->descs) desc.flags &= ~std::uint32_t{SQ_BLOCK_RESIDENT};
  for (const std::uint32_t block : blocks) storage_->descs[block].flags |= SQ_BLOCK_RESIDENT;
}

void BlockTable::read(std::uint32_t block, std::uint64_t offset, void* destination, std::uint64_t bytes, const PartReader& read) const {
  const std::uint64_t extent = extent_bytes(block);
  if (offset > extent || bytes > extent - offset)
    throw Error(Code::CALL_VALUE, "block '" + printable(storage_->blocks[block].name) + "': bytes [" + std::to_string(offset) + ", " + std::to_string(offset) +
                                      " + " + std::to_string(bytes) + ") of an extent of " + std::to_string(extent));
  auto* const out = static_cast<unsigned char*>(destination);
  const std::uint64_t end = offset + bytes;
  std::uint64_t done = offset;  // extent bytes [offset, done) are delivered
  const auto& layers = storage_->blocks[block].layers;
  for (std::uint32_t l = 0; l < layers.size(); ++l) {
    for (std::uint32_t p = 0; p < layers[l].parts.size(); ++p) {
      const std::uint64_t begin = storage_->parts[block][l][p].offset;
      const std::uint64_t from = std::max(begin, offset);
      const std::uint64_t to = std::min(begin + part_bytes(layers[l].parts[p], layers[l].name), end);
      if (from >= to) continue;
      std::memset(out + (done - offset), 0, from - done);
      read(l, p, from - begin, out + (from - offset), to - from);
      done = to;
    }
  }
  if (done < end) std::memset(out + (done - offset), 0, end - done);
}

}  // namespace squareq::streaming
