// A bf16 product through cuBLASLt, the best of its own proposals.
#pragma once

#include <cublasLt.h>

#include "bench/cuda/device.hpp"

namespace squareq::bench {

/// C [rows, columns] = A [rows, depth] B, with B given as [columns, depth] (`transposed` true: the forward) or [depth, columns] (dX). All bf16,
/// row-major, fp32 sums. The algorithm is the fastest of eight proposals, timed on the operands handed to choose().
class CublasProduct {
 public:
  CublasProduct(std::int64_t rows, std::int64_t columns, std::int64_t depth, bool transposed, cudaStream_t stream);
  ~CublasProduct();
  CublasProduct(const CublasProduct&) = delete;
  CublasProduct& operator=(const CublasProduct&) = delete;

  void choose(const void* a, const void* b, void* c);
  void queue(const void* a, const void* b, void* c) const;

 private:
  cublasStatus_t run(const cublasLtMatmulAlgo_t& algorithm, const void* a, const void* b, void* c) const;
  static constexpr std::size_t kWorkspace = std::size_t{64} << 20;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, c_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_{};
  Buffer workspace_{kWorkspace};
  cudaStream_t stream_;
};

}  // namespace squareq::bench
