#include "optimized/cuda/kernels/wgmma_product.cuh"

namespace squareq::cuda {

cudaError_t wgmma_product_i8(const WeightProduct& p, const ProductMaps& maps, Queue queue) {
  return launch_wgmma<signed char>(p, maps, queue);
}

}  // namespace squareq::cuda
