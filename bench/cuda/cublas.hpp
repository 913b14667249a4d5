// A bf16 product through cuBLASLt, the best of its own proposals.
#pragma once

#include <cublasLt.h>

#include <vector>

#include "bench/cuda/device.hpp"

namespace squareq::bench {

/// What follows the sums: nothing; bias and GELU (tanh); the same, with what the GELU saw kept.
enum class Epilogue { none, bias_gelu, bias_gelu_kept };

/// Device addresses. a [rows, depth], c [rows, columns], bias [columns], kept [rows, columns], all bf16; the last two only where the epilogue has them.
struct ProductOperands {
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  const void* bias = nullptr;
  void* kept = nullptr;
};

/// C [rows, columns] = A [rows, depth] B, with B given as [columns, depth] (`transposed` true: the forward) or [depth, columns] (dX). All bf16,
/// row-major, fp32 sums. The algorithm is the fastest of eight proposals, timed over all sets of operands handed to choose().
class CublasProduct {
 public:
  CublasProduct(std::int64_t rows, std::int64_t columns, std::int64_t depth, bool transposed, Epilogue epilogue, cudaStream_t stream);
  ~CublasProduct();
  CublasProduct(const CublasProduct&) = delete;
  CublasProduct& operator=(const CublasProduct&) = delete;

  void choose(const std::vector<ProductOperands>& sets);
  void queue(const ProductOperands& operands) const;

 private:
  cublasStatus_t run(const cublasLtMatmulAlgo_t& algorithm, const ProductOperands& operands) const;
  void point_epilogue(const ProductOperands& operands) const;
  static constexpr std::size_t kWorkspace = std::size_t{64} << 20;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, c_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_{};
  Epilogue epilogue_;
  Buffer workspace_{kWorkspace};
  cudaStream_t stream_;
};

}  // namespace squareq::bench
