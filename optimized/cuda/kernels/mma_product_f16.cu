#include "optimized/cuda/kernels/mma_product.cuh"

namespace squareq::cuda {

cudaError_t mma_product_f16(const WeightProduct& p, int token_tile, cudaStream_t stream) { return launch_mma<__half>(p, token_tile, stream); }

}  // namespace squareq::cuda
