#include "optimized/cpu/linear/tiles.hpp"

#include <algorithm>
#include <cstring>

namespace squareq::cpu {

std::int64_t grain_for(std::int64_t cost) { return std::max<std::int64_t>(1, 65536 / std::max<std::int64_t>(1, cost)); }

std::int64_t even_tile(std::int64_t extent, std::int64_t limit) {
  if (extent <= limit) return std::max<std::int64_t>(1, extent);
  if (limit < 16) return std::max<std::int64_t>(1, limit);
  const std::int64_t pieces = (extent + limit - 1) / limit;
  const std::int64_t even = ((extent + pieces - 1) / pieces + 15) / 16 * 16;
  return std::min(even, limit / 16 * 16);
}

void to_f32(const Kernels& k, std::int32_t dtype, const void* x, std::int64_t n, float* out) {
  switch (dtype) {
    case SQ_BF16: k.bf16_to_f32(static_cast<const std::uint16_t*>(x), n, out); return;
    case SQ_F16: k.f16_to_f32(static_cast<const std::uint16_t*>(x), n, out); return;
    default: std::memcpy(out, x, static_cast<std::size_t>(n) * sizeof(float)); return;
  }
}

void from_f32(const Kernels& k, std::int32_t dtype, const float* x, std::int64_t n, void* out) {
  switch (dtype) {
    case SQ_BF16: k.f32_to_bf16(x, n, static_cast<std::uint16_t*>(out)); return;
    case SQ_F16: k.f32_to_f16(x, n, static_cast<std::uint16_t*>(out)); return;
    default: std::memcpy(out, x, static_cast<std::size_t>(n) * sizeof(float)); return;
  }
}

namespace {

std::byte* address(const Matrix& m, std::int64_t row, std::int64_t col) {
  return m.data + (row * m.stride + col) * static_cast<std::int64_t>(dtype_bytes(m.dtype));
}

}  // namespace

Block32 read_block(Context& context, const Matrix& m, Span rows, Span cols, float* buffer) {
  if (m.direct()) return {reinterpret_cast<float*>(address(m, rows.begin, cols.begin)), m.stride};
  context.pool.parallel_for(rows.size, grain_for(cols.size), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      to_f32(context.kernels, m.dtype, address(m, rows.begin + r, cols.begin), cols.size, buffer + r * cols.size);
  });
  return {buffer, cols.size};
}

Block32 write_block(const Matrix& m, Span rows, Span cols, float* buffer) {
  if (m.direct()) return {reinterpret_cast<float*>(address(m, rows.begin, cols.begin)), m.stride};
  return {buffer, cols.size};
}

void store_block(Context& context, const Block32& from, const Matrix& m, Span rows, Span cols) {
  if (reinterpret_cast<std::byte*>(from.data) == address(m, rows.begin, cols.begin)) return;
  context.pool.parallel_for(rows.size, grain_for(cols.size), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      from_f32(context.kernels, m.dtype, from.data + r * from.stride, cols.size, address(m, rows.begin + r, cols.begin));
  });
}

void dequantize_block(Context& context, const Weight& w, Span rows, Span cols, bool unit, float* out) {
  context.pool.parallel_for(rows.size, grain_for(cols.size), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t n = rows.begin + r;
      context.kernels.dequantize(w.q + n * w.stride + cols.begin, cols.size, unit ? 1.0f : w.scale[n], out + r * cols.size);
    }
  });
}

void widen_block(Context& context, const std::int8_t* q, std::int64_t stride, std::int64_t rows, std::int64_t cols, float* out) {
  context.pool.parallel_for(rows, grain_for(cols), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) context.kernels.dequantize(q + r * stride, cols, 1.0f, out + r * cols);
  });
}

void round_block(Context& context, std::int32_t dtype, float* values, std::int64_t count) {
  constexpr std::int64_t piece = 512;
  context.pool.parallel_for((count + piece - 1) / piece, grain_for(piece), [&](std::int64_t begin, std::int64_t end) {
    std::uint16_t rounded[piece];
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t n = std::min(piece, count - p * piece);
      from_f32(context.kernels, dtype, values + p * piece, n, rounded);
      to_f32(context.kernels, dtype, rounded, n, values + p * piece);
    }
  });
}

}  // namespace squareq::cpu
