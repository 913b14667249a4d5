// Delivers parts of slab layers to a stream session, and checks each tensor when its bytes are first read.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "squareq/contract.hpp"
#include "squareq/slab/slab.hpp"
#include "squareq/training/model.hpp"

namespace squareq::training {

/// Runs `work` and turns what it throws into a status and its error record: exceptions must not cross the C ABI.
sq_status guarded(sq_error* error, const std::function<void()>& work);

class SlabReader {
 public:
  /// `layers[b]` lists the slab layers of block b of the session's table.
  SlabReader(std::shared_ptr<const Slab> slab, std::vector<std::vector<std::size_t>> layers, bool verify, Progress progress);

  /// Bytes [offset, offset + bytes) of part `part` (qweight, scale, zero_point, bias). The first read of a tensor compares its checksum
  /// and checks its codes: DT_CHECKSUM, DT_Q_MIN128, DT_PAD_NONZERO, naming the tensor. Thread-safe.
  void read(std::uint32_t block, std::uint32_t layer, std::uint32_t part, std::uint64_t offset, void* destination, std::uint64_t bytes);

 private:
  void verify(std::size_t layer, std::uint32_t part, const TensorRecord& record, const std::byte* data) const;

  std::shared_ptr<const Slab> slab_;
  std::vector<std::vector<std::size_t>> layers_;
  bool verify_;
  Progress progress_;
  std::vector<std::atomic<bool>> verified_;  ///< by slab layer and part
  std::atomic<std::uint64_t> read_bytes_{0};
  std::uint64_t total_bytes_ = 0;
};

}  // namespace squareq::training
