#include "optimized/cuda/linear/kernel_table.hpp"

#include "squareq/tensor.hpp"
#include "squareq/text.hpp"

namespace squareq::cuda {
namespace {

using Reason = std::string (*)(const sq_context&, const ProductShape&);  // empty: serves the call
using TokenTile = int (*)(const ProductShape&);

struct Line {
  Kernel kernel;
  const char* name;
  Reason reason;
  TokenTile token_tile;
};

std::string needs_16_bits(const ProductShape& s) { return s.dtype == SQ_F32 ? "its tensor cores would round f32 activations" : ""; }

std::string wgmma_reason(const sq_context& context, const ProductShape& s) {
  if (context.major != 9) return "needs compute capability 9.0, this device has " + std::to_string(context.major) + "." + std::to_string(context.minor);
  if (const std::string reason = needs_16_bits(s); !reason.empty()) return reason;
  if (s.weight_stride < s.weight_row)
    return "rows of qweight overlap: " + std::to_string(s.weight_row) + " codes, " + std::to_string(s.weight_stride) + " bytes apart";
  if (s.weight_stride % 16) return "rows of qweight are " + std::to_string(s.weight_stride) + " bytes apart, tensor maps need a multiple of 16";
  return "";
}

std::int64_t blocks(const ProductShape& s, int token_tile) { return (s.rows + token_tile - 1) / token_tile * ((s.columns + 127) / 128); }

/// The tile with the smallest estimate of time on a device of 132 multiprocessors. A slice of 128 bytes of depth takes 4 clocks per row on the tensor
/// cores; narrow tiles read more bytes of shared memory per product, so that they take longer (percent, fitted to bench/cuda on an H200, where the
/// estimate picks the fastest tile or one within 1 % of it for FLUX.1's and SDXL's shapes). `overhead` is a block's start and end in clocks; blocks of
/// fewer than 256 rows share a multiprocessor by two. On codes, 256 rows never won.
int wgmma_tile(const ProductShape& s) {
  constexpr struct { int tile, blocks, percent, overhead; } kTiles[] = {{256, 1, 100, 9000}, {128, 2, 140, 3000}, {64, 2, 180, 3000}};
  const std::int64_t slices = (s.depth * static_cast<std::int64_t>(dtype_bytes(s.dtype)) + 127) / 128;
  int best = 0;
  std::int64_t least = 0;
  for (const auto& [tile, blocks_there, percent, overhead] : kTiles) {
    if (s.dtype == SQ_I8 && tile == 256) continue;
    const std::int64_t made = (s.rows + tile - 1) / tile * ((s.columns + 255) / 256) * 2, per_processor = (made + 131) / 132;
    const std::int64_t clocks = per_processor * (slices * 4 * tile * percent / 100) + (per_processor + blocks_there - 1) / blocks_there * overhead;
    if (best == 0 || clocks < least) best = tile, least = clocks;
  }
  return best;
}

int mma_tile(const ProductShape& s) { return s.rows > 64 && blocks(s, 128) >= 108 ? 128 : 64; }

constexpr Line kTable[] = {
    {Kernel::wgmma, "wgmma_tma", wgmma_reason, wgmma_tile},
    {Kernel::mma, "mma_sync", [](const sq_context&, const ProductShape& s) { return needs_16_bits(s); }, mma_tile},
    {Kernel::plain, "plain_fp32",
     [](const sq_context&, const ProductShape& s) {
       return std::string(s.dtype == SQ_I8 ? "sums of codes in fp32 would not be exact integers" : "");
     },
     [](const ProductShape&) { return 64; }},
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

KernelChoice choose_kernel(const sq_context& context, const ProductShape& shape) {
  KernelChoice choice;
  bool allowed = context.first_kernel.empty();
  for (const Line& line : kTable) {
    const std::string name = line.name;
    allowed = allowed || name == context.first_kernel;
    if (!allowed) {
      choice.rejected.push_back({name, "SQUAREQ_CUDA_KERNEL asks for " + context.first_kernel});
      continue;
    }
    if (!choice.name.empty()) {
      choice.rejected.push_back({name, "slower than " + choice.name + ", which serves this call"});
      continue;
    }
    if (const std::string reason = line.reason(context, shape); !reason.empty()) {
      choice.rejected.push_back({name, reason});
      continue;
    }
    choice.kernel = line.kernel;
    choice.token_tile = line.token_tile(shape);
    choice.name = name + "_" + (shape.dtype == SQ_I8 ? "w8a8" : shape.dtype == SQ_F32 ? "w8" : std::string("w8_") + std::string(dtype_name(shape.dtype))) + "_128x" +
                  std::to_string(choice.token_tile);
  }
  if (choice.name.empty())
    throw Error(Code::CALL_UNSUPPORTED, "no kernel is left for " + std::string(dtype_name(shape.dtype)) +
                                            " activations: SQUAREQ_CUDA_KERNEL asks for " + context.first_kernel);
  return choice;
}

}  // namespace squareq::cuda
