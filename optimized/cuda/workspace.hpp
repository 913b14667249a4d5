// All the scratch of a call in one allocation, taken before the first output is written: where it fails, nothing has changed.
#pragma once

#include <optional>
#include <vector>

#include "optimized/cuda/context.hpp"

namespace squareq::cuda {

class Workspace {
 public:
  Workspace(const sq_context& context, cudaStream_t stream, const char* tag) : context_(context), stream_(stream), tag_(tag) {}

  /// `*target` points at `count` elements once commit() has returned; stays as it is where count is 0.
  template <class T>
  void reserve(T** target, std::int64_t count) {
    if (count == 0) return;
    pieces_.push_back({reinterpret_cast<void**>(target), bytes_});
    bytes_ += (static_cast<std::uint64_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }
  /// Bytes, for elements whose dtype is known at run time.
  void reserve_bytes(void** target, std::int64_t bytes) { reserve(reinterpret_cast<unsigned char**>(target), bytes); }

  void commit() {
    if (bytes_ == 0) return;
    memory_.emplace(context_, bytes_, stream_, tag_);
    for (const Piece& piece : pieces_) *piece.target = memory_->as<unsigned char>() + piece.offset;
  }

 private:
  static constexpr std::uint64_t kAlignment = 256;
  struct Piece {
    void** target;
    std::uint64_t offset;
  };
  const sq_context& context_;
  cudaStream_t stream_;
  const char* tag_;
  std::vector<Piece> pieces_;
  std::uint64_t bytes_ = 0;
  std::optional<Scratch> memory_;
};

}  // namespace squareq::cuda
