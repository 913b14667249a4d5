// Y = act(X W^T + scaling (X A) B + bias): one product whose last step does everything behind the sum; H before it.
#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/kernels/rows.hpp"
#include "optimized/cuda/linear/low_rank.hpp"
#include "optimized/cuda/linear/ops.hpp"
#include "optimized/cuda/linear/weight_product.hpp"

namespace squareq::cuda {
namespace {

/// Rows up to which a product that follows its quantization at once starts early. On an H200 that saves 1 us; with more rows it costs up to 4 % instead:
/// the blocks of the product then take their places as those of the pass leave them.
constexpr std::int64_t kRowsToStartEarly = 128;

std::int64_t code_pitch(std::int64_t columns) { return (columns + 15) / 16 * 16; }

/// What meets the weight: X itself, the caller's codes, or codes made here (their place is not known yet).
Matrix operand(const ForwardJob& job) {
  if (!job.int8) return job.x;
  return job.xq ? job.xq : Matrix{nullptr, SQ_I8, job.rows, job.w.in, code_pitch(job.w.in), true};
}

}  // namespace

KernelChoice linear_forward(const sq_context& context, const sq_linear_forward_args* given, bool run) {
  const ForwardJob job = prepare_forward(context, given);
  WeightProductCall product(context, job.w, operand(job), false);
  if (!run) return product.choice();

  const CurrentDevice current(context);
  const cudaStream_t stream = cuda_stream(read_struct(given, "sq_linear_forward_args").stream);
  check_zero_point(context, job.w, stream);
  if (job.rows == 0) return product.choice();

  Workspace workspace(context, stream, "linear_forward");
  LowRank branch(job.lora, job.w, job.dtype, job.rows);
  std::int8_t* codes = nullptr;
  float* code_scale = nullptr;
  if (job.int8 && !job.xq) {
    workspace.reserve(&codes, job.rows * code_pitch(job.w.in));
    workspace.reserve(&code_scale, job.rows);
  }
  product.reserve(workspace);
  if (job.lora) {
    branch.need_h(workspace, false);
    branch.need_b_columns(workspace);
    branch.need_sums(workspace, true, false, false, false, false);
  }
  workspace.commit();
  Chain chain(stream, overlaps_kernels(context) && (job.lora || job.rows <= kRowsToStartEarly));
  product.prepare(stream);

  Finish finish;
  finish.column_scale = job.w.scale;
  finish.bias = job.w.bias;
  finish.activation = job.activation;
  finish.y = {job.y.data, job.y.dtype, job.y.stride};
  finish.preactivation = {job.preactivation.data, job.preactivation.dtype, job.preactivation.stride};
  if (job.int8) finish.row_scale = job.xq ? job.xq_scale : code_scale;
  if (codes) {
    const Producer none{SQ_PRODUCER_NONE, {}, {}, 1, 0};
    check_cuda(quantize_tokens({job.x.data, job.x.dtype, job.rows, job.w.in, job.x.stride}, none, codes, code_pitch(job.w.in),
                               code_pitch(job.w.in), code_scale, chain.next().stream),
               "linear_forward: quantizing x");
    product.set_activations(codes);
  }
  if (job.lora) {
    branch.round({}, chain);
    branch.make_h(job.h, chain);
    branch.finish_forward(finish);
  }
  product.run(finish, chain);
  return product.choice();
}

}  // namespace squareq::cuda
