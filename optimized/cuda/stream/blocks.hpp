// The block table and schedules of a session, checked and copied: nothing of the caller's is kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <string>
#include <vector>

#include "squareq/contract.h"

namespace squareq::cuda {

struct PartCopy {
  std::string name;
  sq_tensor tensor{};  // data: null, filled per place
  std::uint64_t offset = 0;
};

struct LayerCopy {
  std::string name;
  std::string format;
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  std::vector<PartCopy> parts;
};

struct BlockCopy {
  std::string name;
  std::uint64_t bytes = 0;
  bool resident = false;
  std::vector<LayerCopy> layers;
};

struct ScheduleCopy {
  std::string name;
  std::vector<sq_visit> visits;
  std::uint32_t lookahead = 0;
};

/// The weights of one block at one address, ready to be handed out; points into the BlockCopy it was made from.
class BlockView {
 public:
  BlockView(const BlockCopy& block, std::byte* base);
  const sq_weight& layer(std::uint32_t index) const;  // throws CALL_VALUE

 private:
  const BlockCopy* block_;
  std::vector<sq_weight> weights_;
  std::list<std::vector<sq_part>> parts_;
};

/// Throws CALL_NULL, CALL_VALUE, CALL_ALIGN, CALL_SHAPE, CALL_DTYPE, CALL_UNSUPPORTED, naming block, layer and both values. The tensors lie
/// on `device`.
std::vector<BlockCopy> copy_blocks(const sq_stream_open_args& args, sq_device device);
std::vector<ScheduleCopy> copy_schedules(const sq_stream_open_args& args, const std::vector<BlockCopy>& blocks);

}  // namespace squareq::cuda
