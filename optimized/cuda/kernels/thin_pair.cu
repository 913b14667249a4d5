// Both products of the branch with the gradients G in one pass over them: D = G B^T sums over columns, dB = G^T H over rows, and a tile of G that lies
// in shared memory serves both. A block of four warps takes tiles of 64 x 64, kRowTiles of them in a column, column after column: the sums of D stay in
// registers to its end, those of dB to the end of a column.
#include "optimized/cuda/kernels/fragment.cuh"
#include "optimized/cuda/kernels/launch.cuh"
#include "optimized/cuda/kernels/thin_product.hpp"

namespace squareq::cuda {
namespace {

constexpr int kThinThreads = 128, kSide = 64, kPairStages = 6, kGradientTile = kSide * 128;
constexpr int kAdapterStages = 4;  // columns of tiles that the stages reach over, and the one at work

template <int kRanks, int kRowTiles>
struct PairShared {
  static_assert((kPairStages - 2) / kRowTiles + 2 <= kAdapterStages, "a tile of B is overwritten behind its last use");
  static constexpr int kAdapters = kPairStages * kGradientTile;          // B: [kRanks, 64] per column of tiles, 128 bytes per row
  static constexpr int kH = kAdapters + kAdapterStages * kRanks * 128;  // H: [64 kRowTiles, kRanks]
  static constexpr int kBytes = kH + kRowTiles * kSide * kRanks * 2;

  /// Eight rows of one chunk of H lie in different banks.
  __device__ static int h(int row, int chunk) { return row * kRanks * 2 + ((chunk ^ (row / (64 / kRanks) % (kRanks / 8))) << 4); }
};

/// A warp's sums, 16 of the outer index by kRanks, into a matrix of partial sums [outer_size, kRanks].
template <int kRanks>
__device__ void store_partial(float* partial, const float (&sums)[kRanks / 8][4], int outer, int outer_size, int lane) {
#pragma unroll
  for (int j = 0; j < kRanks / 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = outer + 8 * half + (lane >> 2);
      if (row < outer_size)
        *reinterpret_cast<float2*>(partial + static_cast<std::int64_t>(row) * kRanks + 8 * j + 2 * (lane & 3)) = make_float2(sums[j][2 * half], sums[j][2 * half + 1]);
    }
}

template <class T, int kRanks, int kRowTiles>
__global__ void __launch_bounds__(kThinThreads) pair_kernel(const __grid_constant__ ThinPair p, int piece_columns, bool wide_aligned, bool adapter_aligned) {
  using Shared = PairShared<kRanks, kRowTiles>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_row = blockIdx.x * kRowTiles * kSide, first_column = blockIdx.y * piece_columns;
  const int column_tiles = (min(piece_columns, p.columns - first_column) + kSide - 1) / kSide, tiles = column_tiles * kRowTiles;
  const unsigned base = shared_address(shared);

  using Wide = TileCopy<kThinThreads, 8, kSide>;
  using Adapter = TileCopy<kThinThreads, 8, kRanks>;
  using H = TileCopy<kThinThreads, kRanks / 8, kRowTiles * kSide>;
  const Wide wide_copy(p.wide, p.wide_stride * 2, p.rows, 2 * p.columns, wide_aligned);
  const Adapter adapter_copy(p.adapter, p.adapter_stride * 2, kRanks, 2 * p.columns, adapter_aligned);
  const unsigned wide_to = base + swizzled_128(Wide::first_row(), Wide::chunk());  // so do the chunks of an adapter lie
  const auto adapter_at = [&](int column) { return Shared::kAdapters + column % kAdapterStages * kRanks * 128; };
  const auto fetch_wide = [&](int tile, int stage) {
    if (tile < tiles) wide_copy.copy(wide_to + stage * kGradientTile, first_row + tile % kRowTiles * kSide, 2 * (first_column + tile / kRowTiles * kSide), 128);
  };
  /// Behind fetch_wide() of the same tile.
  const auto fetch_adapter = [&](int tile) {
    const int column = tile / kRowTiles;
    if (tile < tiles && tile % kRowTiles == 0) adapter_copy.copy(wide_to + adapter_at(column), 0, 2 * (first_column + column * kSide), 128);
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  // Where a lane's rows lie: of G as it is and transposed, (outer, depth) halves (0,0), (1,0), (0,1), (1,1); of B and H, (rank, depth) halves (0,0),
  // (0,1), (1,0), (1,1). Depth runs along the rows of G and B, whose chunks are exclusive-ored, and down those of the transposed ones.
  const int low = lane & 7, second = lane >> 3 & 1, fourth = lane >> 4;
  const unsigned along = base + swizzled_128(16 * warp + second * 8 + low, fourth), down = base + swizzled_128(fourth * 8 + low, 2 * warp + second);
  const unsigned in_b = base + swizzled_128(fourth * 8 + low, second), in_h = base + Shared::kH + Shared::h(second * 8 + low, fourth);

  if (!p.wide_brought) wait_for_former();
  for (int tile = 0; tile < kPairStages - 1; ++tile) fetch_wide(tile, tile);
  wait_for_former();
  let_next_start();
  H(p.h, 2 * kRanks, p.rows, 2 * kRanks, true).copy(base + Shared::kH + Shared::h(H::first_row(), H::chunk()), first_row, 0, kRanks * 2);
  for (int tile = 0; tile < kPairStages - 1; ++tile) fetch_adapter(tile);

  float d[kRowTiles][kRanks / 8][4] = {};
  float* const partial_b = p.partial_b + static_cast<std::int64_t>(blockIdx.x) * p.columns * kRanks;
  float* const partial_d = p.partial_d + static_cast<std::int64_t>(blockIdx.y) * p.rows * kRanks;
  int stage = 0, filled = kPairStages - 1;  // the tile at work, and the one that is filled next
  for (int column = 0; column < column_tiles; ++column) {
    float b[kRanks / 8][4] = {};
    const unsigned adapter = in_b + adapter_at(column);
#pragma unroll
    for (int row = 0; row < kRowTiles; ++row) {
      asm volatile("cp.async.wait_group %0;" ::"n"(kPairStages - 2) : "memory");
      __syncthreads();
      const int tile = column * kRowTiles + row;
      fetch_wide(tile + kPairStages - 1, filled);
      fetch_adapter(tile + kPairStages - 1);
      const unsigned g = stage * kGradientTile;
      filled = stage;
      stage = stage + 1 == kPairStages ? 0 : stage + 1;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        unsigned rows[4], columns[4];
        load_matrices(rows, (along + g) ^ (32 * step));
        load_matrices_transposed(columns, down + g + 16 * step * 128);
#pragma unroll
        for (int j = 0; j < kRanks / 16; ++j) {
          unsigned of_b[4], of_h[4];
          load_matrices(of_b, (adapter ^ (32 * step)) + 16 * j * 128);
          load_matrices_transposed(of_h, (in_h ^ (32 * j)) + (row * kSide + 16 * step) * kRanks * 2);
          Multiply<T>::step(d[row][2 * j], rows, of_b[0], of_b[1]);
          Multiply<T>::step(d[row][2 * j + 1], rows, of_b[2], of_b[3]);
          Multiply<T>::step(b[2 * j], columns, of_h[0], of_h[1]);
          Multiply<T>::step(b[2 * j + 1], columns, of_h[2], of_h[3]);
        }
      }
    }
    store_partial<kRanks>(partial_b, b, first_column + column * kSide + 16 * warp, p.columns, lane);
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
#pragma unroll
  for (int row = 0; row < kRowTiles; ++row) store_partial<kRanks>(partial_d, d[row], first_row + row * kSide + 16 * warp, p.rows, lane);
}

template <class T, int kRanks, int kRowTiles>
cudaError_t launch_pair(const ThinPair& p, Queue queue) {
  constexpr int kShared = PairShared<kRanks, kRowTiles>::kBytes;
  const auto kernel = pair_kernel<T, kRanks, kRowTiles>;
  if (const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared); status != cudaSuccess) return status;
  const auto columns = static_cast<int>(pair_columns(p.rank, p.rows, p.columns));
  const dim3 grid(static_cast<unsigned>(pair_row_pieces(p.rank, p.rows)), static_cast<unsigned>(pair_column_pieces(p.rank, p.rows, p.columns)));
  return launch(kernel, grid, kThinThreads, kShared, 1, queue, p, columns, chunks_aligned(p.wide, p.wide_stride * 2), chunks_aligned(p.adapter, p.adapter_stride * 2));
}

template <class T>
cudaError_t launch_pair(const ThinPair& p, Queue queue) {
  const bool few = pair_rows(p.rank, p.rows) == kFewPairRows;
  if (p.rank == 16) return few ? launch_pair<T, 16, kFewPairRows / kSide>(p, queue) : launch_pair<T, 16, 8>(p, queue);
  if (p.rank == 32) return few ? launch_pair<T, 32, kFewPairRows / kSide>(p, queue) : launch_pair<T, 32, 4>(p, queue);
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t thin_pair(const ThinPair& p, Queue queue) {
  if (p.rows == 0 || p.columns == 0) return cudaSuccess;
  if (p.dtype == SQ_BF16) return launch_pair<__nv_bfloat16>(p, queue);
  if (p.dtype == SQ_F16) return launch_pair<__half>(p, queue);
  return cudaErrorInvalidValue;
}

}  // namespace squareq::cuda
