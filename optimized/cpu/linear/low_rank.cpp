// The product X A of the low-rank branch.
#include <algorithm>

#include "optimized/cpu/blas.hpp"
#include "optimized/cpu/linear/linear_job.hpp"

namespace squareq::cpu {

BranchInput::BranchInput(const Lora& lora, std::int64_t rows, std::int64_t depth, std::int32_t activation_dtype)
    : lora_(lora), rows_(rows), depth_(depth), activation_dtype_(activation_dtype) {
  tiles_.m = even_tile(rows, kBranchRows);
  tiles_.k = even_tile(depth, kActivationTile / kBranchRows);
}

void BranchInput::reserve(Scratch& scratch) {
  scratch.reserve(&h_, rows_ * lora_.rank);
  scratch.reserve(&x_, lora_.x.direct() ? 0 : tiles_.m * tiles_.k);
  scratch.reserve(&a_, adapter_needs_buffer(lora_.a, activation_dtype_) ? lora_.rank * tiles_.k : 0);
}

float* BranchInput::compute(Context& context) {
  const std::int64_t rank = lora_.rank;
  for_tiles(rows_, tiles_.m, [&](Span m) {
    for_tiles(depth_, tiles_.k, [&](Span k) {
      const Block32 x = read_block(context, lora_.x, m, k, x_);
      const Block32 a = adapter_block(context, lora_.a, {0, rank}, k, activation_dtype_, a_);
      sgemm(context.pool, Op::none, Op::transpose, m.size, rank, k.size, 1, x.data, x.stride, a.data, a.stride, k.begin > 0 ? 1.0f : 0.0f, h_ + m.begin * rank, rank);
    });
  });
  if (activation_dtype_ != SQ_F32) round_block(context, activation_dtype_, h_, rows_ * rank);
  return h_;
}

}  // namespace squareq::cpu
