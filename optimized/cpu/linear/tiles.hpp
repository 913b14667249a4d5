// Blocks of matrices as contiguous F32, the currency of every GEMM here. Loops run on the context's pool.
#pragma once

#include <cstdint>

#include "optimized/cpu/context.hpp"
#include "optimized/cpu/matrix.hpp"
#include "optimized/cpu/weight.hpp"

namespace squareq::cpu {

/// Bounds of the scratch tiles, in elements. Together with LoRA's own blocks they bound the scratch of a call (README.md).
inline constexpr std::int64_t kWeightTile = std::int64_t{1} << 21;      // 8 MiB of dequantized weights
inline constexpr std::int64_t kActivationTile = std::int64_t{1} << 20;  // 4 MiB per activation buffer
inline constexpr std::int64_t kDirectRows = 4096;                       // rows per pass where nothing needs a buffer
inline constexpr std::int64_t kBufferedRows = 1024;
inline constexpr std::int64_t kBranchRows = 1024;                       // rows per pass of X A
inline constexpr std::int64_t kDirectDepth = 16384;
inline constexpr std::int64_t kBufferedDepth = 1024;  // also the depth up to which a sum of int8 products is exact in F32: 128 * 127 * 1024 < 2^24

/// A piece [begin, begin + size) of a dimension.
struct Span {
  std::int64_t begin = 0;
  std::int64_t size = 0;
};

/// An F32 block as BLAS wants it.
struct Block32 {
  float* data = nullptr;
  std::int64_t stride = 0;
};

/// Pieces of equal size (the last may be smaller), at most `limit` each, multiples of 16 where there is more than one.
std::int64_t even_tile(std::int64_t extent, std::int64_t limit);

/// Calls body(Span) for each piece of [0, extent).
template <class Body>
void for_tiles(std::int64_t extent, std::int64_t tile, const Body& body) {
  for (std::int64_t begin = 0; begin < extent; begin += tile) body(Span{begin, extent - begin < tile ? extent - begin : tile});
}

/// Where `m` is F32 and BLAS can read it as it lies, its address; otherwise the block converted into `buffer` [rows, cols].
Block32 read_block(Context& context, const Matrix& m, Span rows, Span cols, float* buffer);
/// Where F32 results may be written: in place, or `buffer`.
Block32 write_block(const Matrix& m, Span rows, Span cols, float* buffer);
/// Converts `from` into the matrix; does nothing where `from` already lies in it.
void store_block(Context& context, const Block32& from, const Matrix& m, Span rows, Span cols);

/// fp32(q * scale) of rows x cols into `out`, contiguous. `unit`: the codes themselves.
void dequantize_block(Context& context, const Weight& w, Span rows, Span cols, bool unit, float* out);
/// int8 codes as floats.
void widen_block(Context& context, const std::int8_t* q, std::int64_t stride, std::int64_t rows, std::int64_t cols, float* out);

/// Rounds every value to `dtype` (BF16 or F16) and back.
void round_block(Context& context, std::int32_t dtype, float* values, std::int64_t count);

void to_f32(const Kernels& k, std::int32_t dtype, const void* x, std::int64_t n, float* out);
void from_f32(const Kernels& k, std::int32_t dtype, const float* x, std::int64_t n, void* out);

/// Items of `cost` elements each such that a piece is worth another thread.
std::int64_t grain_for(std::int64_t cost);

}  // namespace squareq::cpu
