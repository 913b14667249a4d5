#include "optimized/cuda/kernels/wgmma_product.cuh"

namespace squareq::cuda {

cudaError_t wgmma_product_f16(const WeightProduct& p, const ProductMaps& maps, Queue queue) {
  return launch_wgmma<__half>(p, maps, queue);
}

}  // namespace squareq::cuda
