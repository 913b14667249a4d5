#include "optimized/cuda/linear/kernel_table.hpp"

#include <algorithm>

#include "optimized/cuda/kernels/few_rows_product.hpp"
#include "optimized/cuda/linear/work_split.hpp"
#include "squareq/error.hpp"
#include "squareq/tensor.hpp"
#include "squareq/text.hpp"

namespace squareq::cuda {
namespace {

using Reason = std::string (*)(const KernelDevice&, const ProductShape&);  // empty: serves the call
using Tile = void (*)(const KernelDevice&, const ProductShape&, KernelChoice&);  // fills in token_tile, and split where it has one

struct Line {
  Kernel kernel;
  const char* name;
  Reason reason;
  Tile tile;
};

std::string needs_16_bits(const ProductShape& s) { return s.dtype == SQ_F32 ? "its tensor cores would round f32 activations" : ""; }

std::string few_rows_reason(const KernelDevice& device, const ProductShape& s) {
  // 12.0 has clusters too, but 99 KiB of shared memory per block, and was not tried.
  if (device.major != 9) return "needs compute capability 9.0, this device has " + std::to_string(device.major) + "." + std::to_string(device.minor);
  if (s.transposed) return "multiplies a weight as it lies, dX needs it transposed";
  if (s.dtype == SQ_I8) return "multiplies activations of 16 bits, these are codes";
  if (const std::string reason = needs_16_bits(s); !reason.empty()) return reason;
  if (s.weight_stride % 16) return "rows of qweight are " + std::to_string(s.weight_stride) + " bytes apart, copies of 16 bytes need a multiple of 16";
  return s.rows > kMostFewRows ? "serves up to " + std::to_string(kMostFewRows) + " rows, this call has " + std::to_string(s.rows) : "";
}

/// Enough blocks that every multiprocessor holds two, as far as there are slices to share out.
void few_rows_tile(const KernelDevice& device, const ProductShape& s, KernelChoice& choice) {
  choice.token_tile = s.rows <= 16 ? 16 : 32;
  const std::int64_t tiles = (s.columns + 127) / 128, slices = (s.depth + 127) / 128;
  choice.depth_parts = static_cast<int>(std::clamp<std::int64_t>(2 * device.multiprocessors / tiles, 1, std::min<std::int64_t>(8, slices)));
}

std::string wgmma_reason(const KernelDevice& device, const ProductShape& s) {
  if (device.major != 9) return "needs compute capability 9.0, this device has " + std::to_string(device.major) + "." + std::to_string(device.minor);
  if (const std::string reason = needs_16_bits(s); !reason.empty()) return reason;
  if (s.weight_stride < s.weight_row)
    return "rows of qweight overlap: " + std::to_string(s.weight_row) + " codes, " + std::to_string(s.weight_stride) + " bytes apart";
  if (s.weight_stride % 16) return "rows of qweight are " + std::to_string(s.weight_stride) + " bytes apart, tensor maps need a multiple of 16";
  return "";
}

std::int64_t blocks(const ProductShape& s, int token_tile) { return (s.rows + token_tile - 1) / token_tile * ((s.columns + 127) / 128); }

void wgmma_tile(const KernelDevice& device, const ProductShape& s, KernelChoice& choice) {
  choice.split = share_out({s.rows, s.columns, s.depth, static_cast<std::int64_t>(dtype_bytes(s.dtype)), s.transposed}, device.multiprocessors);
  choice.token_tile = choice.split.rows;
}

void mma_tile(const KernelDevice&, const ProductShape& s, KernelChoice& choice) { choice.token_tile = s.rows > 64 && blocks(s, 128) >= 108 ? 128 : 64; }

void plain_tile(const KernelDevice&, const ProductShape&, KernelChoice& choice) { choice.token_tile = 64; }

constexpr Line kTable[] = {
    {Kernel::few_rows, "mma_few_rows", few_rows_reason, few_rows_tile},
    {Kernel::wgmma, "wgmma_tma", wgmma_reason, wgmma_tile},
    {Kernel::mma, "mma_sync", [](const KernelDevice&, const ProductShape& s) { return needs_16_bits(s); }, mma_tile},
    {Kernel::plain, "plain_fp32",
     [](const KernelDevice&, const ProductShape& s) {
       return std::string(s.dtype == SQ_I8 ? "sums of codes in fp32 would not be exact integers" : "");
     },
     plain_tile},
};

}  // namespace

std::string check_kernel_name(const std::string& name) {
  std::string known;
  for (const Line& line : kTable) {
    if (name.empty() || name == line.name) return name;
    known += (known.empty() ? "" : ", ") + std::string(line.name);
  }
  throw Error(Code::CFG_BACKEND, "SQUAREQ_CUDA_KERNEL=" + printable(name) + " is none of " + known);
}

KernelChoice choose_kernel(const KernelDevice& device, const ProductShape& shape) {
  KernelChoice choice;
  bool allowed = device.first_kernel.empty();
  for (const Line& line : kTable) {
    const std::string name = line.name;
    allowed = allowed || name == device.first_kernel;
    if (!allowed) {
      choice.rejected.push_back({name, "SQUAREQ_CUDA_KERNEL asks for " + device.first_kernel});
      continue;
    }
    if (!choice.name.empty()) {
      choice.rejected.push_back({name, "slower than " + choice.name + ", which serves this call"});
      continue;
    }
    if (const std::string reason = line.reason(device, shape); !reason.empty()) {
      choice.rejected.push_back({name, reason});
      continue;
    }
    choice.kernel = line.kernel;
    line.tile(device, shape, choice);
    choice.name = name + "_" + (shape.dtype == SQ_I8 ? "w8a8" : shape.dtype == SQ_F32 ? "w8" : std::string("w8_") + std::string(dtype_name(shape.dtype))) + "_128x" +
                  std::to_string(choice.token_tile) + (choice.split.tiles ? "_split" : "") +
                  (choice.depth_parts > 1 ? "_by" + std::to_string(choice.depth_parts) : "");
  }
  if (choice.name.empty())
    throw Error(Code::CALL_UNSUPPORTED, "no kernel is left for " + std::string(dtype_name(shape.dtype)) +
                                            " activations: SQUAREQ_CUDA_KERNEL asks for " + device.first_kernel);
  return choice;
}

}  // namespace squareq::cuda
