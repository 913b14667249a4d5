// The kernels that can multiply by a weight, one line each, and which of them a call gets. The choice depends on the device's architecture and
// number of multiprocessors, dtypes and shapes alone: never on addresses, free memory or a budget, so that the same call gives the same bits wherever its tensors lie.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "optimized/cuda/kernels/product.hpp"
#include "squareq/contract.h"

namespace squareq::cuda {

/// What of a context the choice depends on.
struct KernelDevice {
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  std::string first_kernel;  // $SQUAREQ_CUDA_KERNEL: no kernel before it in the table is used
};

/// What a product with the weight is like. `rows` are tokens, `columns` the features of the result, `depth` what is summed over.
struct ProductShape {
  std::int32_t dtype = SQ_F32;  // of what meets the weight: F32, BF16, F16 or I8
  std::int64_t rows = 0, columns = 0, depth = 0;
  std::int64_t weight_row = 0, weight_stride = 0;  // codes in a row of the weight, bytes between rows
  bool transposed = false;  // dX
};

enum class Kernel { few_rows, wgmma, mma, plain };

struct Rejected {
  std::string kernel;
  std::string reason;
};

struct KernelChoice {
  Kernel kernel = Kernel::plain;
  int token_tile = 0;
  int depth_parts = 1;  // few_rows: blocks that share the depth of a tile
  WorkSplit split;  // wgmma
  std::string name;
  std::vector<Rejected> rejected;
};

/// The name itself, where it is empty or in the table. Throws CFG_BACKEND, naming the known ones.
std::string check_kernel_name(const std::string& name);

/// The first line of the table, from first_kernel on, that can serve the call. Throws CALL_UNSUPPORTED where none is left.
KernelChoice choose_kernel(const KernelDevice& device, const ProductShape& shape);

}  // namespace squareq::cuda
