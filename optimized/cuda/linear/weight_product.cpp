#include "optimized/cuda/linear/weight_product.hpp"

#include "optimized/cuda/kernels/few_rows_product.hpp"
#include "squareq/tensor.hpp"

namespace squareq::cuda {
namespace {

constexpr std::uint64_t kMapAlignment = 16;

bool aligned(const void* data, std::int64_t row_bytes) {
  return (reinterpret_cast<std::uintptr_t>(data) | static_cast<std::uintptr_t>(row_bytes)) % kMapAlignment == 0 && row_bytes > 0;
}

std::int64_t aligned_columns(std::int64_t columns) { return (columns + 15) / 16 * 16; }

/// Rows of bytes from one pitch to another. What lies between them there is 0: copies of 16 bytes touch it, though nothing is made of it.
void copy_rows(void* to, std::int64_t to_pitch, const void* from, std::int64_t from_pitch, std::int64_t bytes, std::int64_t rows, cudaStream_t stream) {
  if (to_pitch > bytes) check_cuda(cudaMemsetAsync(to, 0, static_cast<std::size_t>(to_pitch * rows), stream), "aligning an operand");
  if (from_pitch >= bytes) {
    check_cuda(cudaMemcpy2DAsync(to, static_cast<std::size_t>(to_pitch), from, static_cast<std::size_t>(from_pitch),
                                 static_cast<std::size_t>(bytes), static_cast<std::size_t>(rows), cudaMemcpyDeviceToDevice, stream),
               "aligning an operand");
    return;
  }
  for (std::int64_t row = 0; row < rows; ++row)  // rows that overlap or repeat
    check_cuda(cudaMemcpyAsync(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, static_cast<std::size_t>(bytes),
                               cudaMemcpyDeviceToDevice, stream), "aligning an operand");
}

}  // namespace

WeightProductCall::WeightProductCall(const sq_context& context, const Weight& weight, const Matrix& activations, bool transposed)
    : activations_(activations),
      weight_(weight),
      transposed_(transposed),
      choice_(choose_kernel({context.major, context.minor, context.multiprocessors, context.first_kernel},
                            {activations.dtype, activations.rows, transposed ? weight.in : weight.out, activations.columns, weight.in, weight.stride, transposed})),
      columns_(transposed ? weight.in : weight.out) {}

void WeightProductCall::reserve(Workspace& workspace) {
  if (!copies_16_bytes()) return;
  const auto width = static_cast<std::int64_t>(dtype_bytes(activations_.dtype));
  if (!aligned(activations_.data, activations_.stride * width))
    workspace.reserve_bytes(&aligned_activations_, activations_.rows * aligned_columns(activations_.columns) * width);
  workspace.reserve_bytes(&partial_, split_bytes(choice_.split));
  workspace.reserve(&arrived_, split_flags(choice_.split));
  if (!aligned(weight_.q, weight_.stride)) workspace.reserve(&aligned_weight_, weight_.out * weight_.stride);
}

void WeightProductCall::prepare(cudaStream_t stream) {
  const auto width = static_cast<std::int64_t>(dtype_bytes(activations_.dtype));
  if (aligned_activations_)
    copy_rows(aligned_activations_, aligned_columns(activations_.columns) * width, activations_.data, activations_.stride * width,
              activations_.columns * width, activations_.rows, stream);
  if (aligned_weight_) copy_rows(aligned_weight_, weight_.stride, weight_.q, weight_.stride, weight_.in, weight_.out, stream);
  if (arrived_) check_cuda(cudaMemsetAsync(arrived_, 0, static_cast<std::size_t>(split_flags(choice_.split)) * sizeof *arrived_, stream), choice_.name);
}

void WeightProductCall::run(const Finish& finish, Chain& chain) {
  const auto rows = static_cast<std::int32_t>(activations_.rows), columns = static_cast<std::int32_t>(columns_),
             depth = static_cast<std::int32_t>(activations_.columns);
  if (rows == 0) return;
  if (choice_.kernel == Kernel::plain) {
    const Operand left{activations_.data, activations_.dtype, activations_.stride, 1};
    const Operand right{weight_.q, SQ_I8, transposed_ ? 1 : weight_.stride, transposed_ ? weight_.stride : 1};
    check_cuda(plain_product(left, right, rows, columns, depth, finish, chain.stream()), choice_.name);
    return;
  }
  const bool permuted = transposed_ && activations_.dtype == SQ_I8;  // made by gradient_rows(): rows are whole groups
  WeightProduct p{aligned_activations_ ? aligned_activations_ : activations_.data,
                  activations_.dtype,
                  aligned_activations_ ? aligned_columns(activations_.columns) : activations_.stride,
                  aligned_weight_ ? aligned_weight_ : weight_.q,
                  weight_.stride,
                  transposed_,
                  rows,
                  columns,
                  depth,
                  permuted ? static_cast<std::int32_t>(activations_.stride) : depth,
                  finish,
                  depth_scale_,
                  choice_.split,
                  made_};
  p.split.partial = partial_, p.split.arrived = arrived_;
  check_cuda(wgmma()                              ? wgmma_product(p, chain.next())
             : choice_.kernel == Kernel::few_rows ? few_rows_product(p, choice_.token_tile, choice_.depth_parts, chain.next())
                                                  : mma_product(p, choice_.token_tile, chain.stream()),
             choice_.name);
}

}  // namespace squareq::cuda
