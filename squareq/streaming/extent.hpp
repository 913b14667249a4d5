// How the parts of a block's linear layers lie in one extent: the layout shared by the host master, the slots and the residents.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "squareq/contract.h"

namespace squareq::streaming {

inline constexpr std::uint64_t kPartAlignment = 256;  // SQ-STR-002

/// One tensor of a weight: `name` is the part's ("qweight"), `dtype` an sq_dtype.
struct Part {
  std::string name;
  std::int32_t dtype = SQ_I8;
  std::vector<std::int64_t> shape;
};

struct Layer {
  std::string name;
  std::string format;  // "bp8_v2"
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  std::vector<Part> parts;
};

struct Block {
  std::string name;
  std::vector<Layer> layers;
};

/// Bytes of one part: product of the shape times the dtype's size. Throws CALL_SHAPE (naming `layer` and the part) on a negative
/// dimension, a rank over SQ_MAX_RANK or a product that overflows.
std::uint64_t part_bytes(const Part& part, const std::string& layer);

/// Delivers `bytes` bytes, starting at byte `offset` of the tensor, of part `part` of layer `layer` (indices into the block).
/// Throws on failure.
using PartReader = std::function<void(std::uint32_t layer, std::uint32_t part, std::uint64_t offset, void* destination, std::uint64_t bytes)>;

/// The block table of a stream session, with the storage behind every pointer in it. Movable; moving keeps all pointers valid.
/// Const members are thread-safe.
class BlockTable {
 public:
  /// Lays out every block: parts in the given order, each at the next multiple of 256; an extent is a multiple of 256.
  /// Throws CALL_SHAPE / CALL_VALUE for a part that cannot be laid out, an empty name, or a name given twice.
  explicit BlockTable(std::vector<Block> blocks);
  BlockTable(BlockTable&&) noexcept;
  BlockTable& operator=(BlockTable&&) noexcept;
  ~BlockTable();

  std::uint32_t size() const;
  const Block& block(std::uint32_t index) const;
  std::uint64_t extent_bytes(std::uint32_t index) const;
  std::vector<std::uint64_t> extents() const;

  /// What sq_stream_open_args::blocks wants; valid as long as the table.
  std::span<const sq_block_desc> descs() const;

  /// Sets SQ_BLOCK_RESIDENT on exactly these blocks.
  void set_residents(std::span<const std::uint32_t> blocks);

  /// Serves sq_read_extent: fills destination with bytes [offset, offset + bytes) of the block's extent, asking `read` for the parts
  /// and writing zeros between them. Throws CALL_VALUE where the range leaves the extent, and what `read` throws.
  void read(std::uint32_t block, std::uint64_t offset, void* destination, std::uint64_t bytes, const PartReader& read) const;

 private:
  struct Storage;
  std::unique_ptr<Storage> storage_;
};

}  // namespace squareq::streaming
