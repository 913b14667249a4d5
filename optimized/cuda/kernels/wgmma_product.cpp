#include "optimized/cuda/kernels/wgmma_product.hpp"

#include <algorithm>

#include "squareq/contract.h"
#include "squareq/tensor.hpp"

namespace squareq::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// The driver's function, found at run time: the backend links no driver library, so that it loads where there is none.
Encode encode_function() {
  static const Encode function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return status == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  return function;
}

/// A row-major matrix [rows, columns]; boxes reach past its ends, where they read 0.
bool encode(CUtensorMap* map, CUtensorMapDataType type, const void* data, std::int64_t columns, std::int64_t rows, std::int64_t row_bytes,
            int box_columns, int box_rows, CUtensorMapSwizzle swizzle) {
  const cuuint64_t dimensions[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)}, strides[] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  return encode_function()(map, type, 2, const_cast<void*>(data), dimensions, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool encode_output(CUtensorMap* map, const Output& out, const WeightProduct& p) {
  if (out.dtype == SQ_F32 || out.stride < p.columns) return false;
  if ((reinterpret_cast<std::uintptr_t>(out.data) | static_cast<std::uintptr_t>(out.stride * 2)) % 16 != 0) return false;
  const int rows = p.dtype == SQ_I8 ? std::min(p.split.rows, 128) : p.split.rows;  // that go out at a time
  return encode(map, out.dtype == SQ_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, out.data, p.columns, p.rows, out.stride * 2, 64,
                rows, CU_TENSOR_MAP_SWIZZLE_128B);
}

/// Whether values can be finished in registers and written by the copy engine: outputs of 16 bits at multiples of 16 bytes, an activation that is cheap
/// enough there, a branch whose factors fit where the values go out.
bool encode_outputs(ProductMaps* maps, const WeightProduct& p) {
  const Finish& f = p.finish;
  const int rows = p.dtype == SQ_I8 ? std::min(p.split.rows, 128) : p.split.rows;
  if (f.activation != SQ_ACT_NONE && f.activation != SQ_ACT_GELU_TANH && f.activation != SQ_ACT_SILU) return false;
  if (f.rank && (f.low_dtype == SQ_F32 || f.rank * 2 * (p.split.rows + 64) > rows * 128)) return false;
  return encode_output(&maps->y, f.y, p) && (!f.preactivation.data || encode_output(&maps->preactivation, f.preactivation, p));
}

}  // namespace

cudaError_t wgmma_product(const WeightProduct& p, Queue queue) {
  if (!encode_function()) return cudaErrorNotSupported;
  const int width = static_cast<int>(dtype_bytes(p.dtype)), depth = 128 / width;
  const CUtensorMapDataType type = p.dtype == SQ_BF16  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                   : p.dtype == SQ_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                       : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  ProductMaps maps{};
  const CUtensorMapSwizzle weight_swizzle = !p.transposed && width == 2 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B;
  const bool encoded =
      encode(&maps.activations, type, p.activations, p.activation_depth, p.rows, p.activation_stride * width, depth,
             p.split.rows / kClusterSize, CU_TENSOR_MAP_SWIZZLE_128B) &&
      encode(&maps.weight, CU_TENSOR_MAP_DATA_TYPE_UINT8, p.weight, p.transposed ? p.columns : p.depth, p.transposed ? p.depth : p.columns,
             p.weight_stride, p.transposed ? 128 : depth, p.transposed ? depth : 128, weight_swizzle);
  if (!encoded) return cudaErrorInvalidValue;
  maps.mapped = encode_outputs(&maps, p);
  switch (p.dtype) {
    case SQ_BF16: return wgmma_product_bf16(p, maps, queue);
    case SQ_F16: return wgmma_product_f16(p, maps, queue);
    default: return wgmma_product_i8(p, maps, queue);
  }
}

}  // namespace squareq::cuda
