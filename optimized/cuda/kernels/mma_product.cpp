#include "optimized/cuda/kernels/product.hpp"
#include "squareq/contract.h"

namespace squareq::cuda {

// One file each: they compile side by side.
cudaError_t mma_product_bf16(const WeightProduct& p, int token_tile, cudaStream_t stream);
cudaError_t mma_product_f16(const WeightProduct& p, int token_tile, cudaStream_t stream);
cudaError_t mma_product_i8(const WeightProduct& p, int token_tile, cudaStream_t stream);

cudaError_t mma_product(const WeightProduct& p, int token_tile, cudaStream_t stream) {
  switch (p.dtype) {
    case SQ_BF16: return mma_product_bf16(p, token_tile, stream);
    case SQ_F16: return mma_product_f16(p, token_tile, stream);
    case SQ_I8: return mma_product_i8(p, token_tile, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace squareq::cuda
