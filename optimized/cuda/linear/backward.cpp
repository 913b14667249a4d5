// Gradients of a linear layer. G = dY act'(P):
//   D = G B^T   dX = G W + c D A^T   dA = c X^T D   dB = c H^T G     (spec/40-linear.md, spec/50-lora.md)
// The weight's scale lies on the axis that dX sums over. A product in bf16 can multiply the codes by it (scales_depth); for the others, and behind an
// activation, one pass over dY makes G scale in the dtype that the product reads.
#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/kernels/rows.hpp"
#include "optimized/cuda/linear/low_rank.hpp"
#include "optimized/cuda/linear/ops.hpp"
#include "optimized/cuda/linear/weight_product.hpp"

namespace squareq::cuda {
namespace {

/// Columns of a made matrix [rows, out]: whole groups of 16, as permuted codes and 16-byte chunks need them.
std::int64_t pitch(std::int64_t columns) { return (columns + 15) / 16 * 16; }

/// G scale, as dX reads it (its place is not known yet): codes in class R4, the gradients' own dtype otherwise.
Matrix operand(const BackwardJob& job) { return {nullptr, job.int8 ? std::int32_t{SQ_I8} : job.dy.dtype, job.rows, job.w.out, pitch(job.w.out), true}; }

/// G as the branch reads it. Without an activation it is dY. Rounded to 16 bits only in bf16, whose range is that of fp32.
std::int32_t gradient_dtype(const BackwardJob& job) { return job.dtype == SQ_BF16 && job.dy.dtype == SQ_BF16 ? SQ_BF16 : SQ_F32; }

class Backward {
 public:
  Backward(const sq_context& context, const BackwardJob& job, cudaStream_t stream)
      : job_(job),
        chain_(stream, overlaps_kernels(context)),
        workspace_(context, stream, "linear_backward"),
        branch_(job.lora, job.w, job.dtype, job.rows),
        product_(context, job.w, operand(job), true),
        reads_dy_(job.dx && !job.int8 && job.activation == SQ_ACT_NONE && product_.scales_depth()) {
    if (reads_dy_) product_.read_scaled(job.dy, job.w.scale);
  }

  const KernelChoice& choice() const { return product_.choice(); }

  void run() {
    const bool wants_h = job_.db_t.given, wants_d = job_.da_t || job_.dx_lora || adds_to_dx();
    const bool pair = job_.db_t && wants_d && job_.rows > 0 && branch_.pairs(job_.activation == SQ_ACT_NONE ? job_.dy.dtype : gradient_dtype(job_));
    if (job_.activation != SQ_ACT_NONE && (wants_h || wants_d))
      workspace_.reserve_bytes(&g_, job_.rows * job_.w.out * (gradient_dtype(job_) == SQ_F32 ? 4 : 2));
    if (job_.dx && !reads_dy_) {
      workspace_.reserve_bytes(&scaled_, job_.rows * pitch(job_.w.out) * (job_.int8 ? 1 : job_.dy.dtype == SQ_F32 ? 4 : 2));
      workspace_.reserve(&row_scale_, scaled_rows() ? job_.rows : 0);
    }
    if (job_.dx) product_.reserve(workspace_);
    if (wants_h) branch_.need_h(workspace_, job_.h.given);
    if (wants_d) branch_.need_d(workspace_);
    if (job_.dx_lora || adds_to_dx()) branch_.need_a_columns(workspace_);
    if (job_.lora) branch_.need_sums(workspace_, wants_h && !job_.h, wants_d, job_.da_t.given, job_.db_t.given, pair);
    workspace_.commit();

    if (job_.dx) product_.prepare(chain_.stream());
    make_gradient();
    if (job_.lora) branch_.round(wants_h ? job_.h : Matrix{}, chain_);
    if (wants_h && !job_.h) branch_.make_h({}, chain_);
    if (pair) branch_.make_d_and_db(gradient(), job_.db_t, job_.accumulate, chain_);
    else if (wants_d) branch_.make_d(gradient(), chain_);
    if (job_.dx_lora) branch_.write_dx(job_.dx_lora, chain_);
    if (job_.da_t) branch_.write_da(job_.da_t, job_.accumulate, chain_);
    if (job_.db_t && !pair) branch_.write_db(job_.db_t, gradient(), job_.accumulate, chain_);
    if (job_.dx) write_dx();  // last: it starts while the sums before it are added up
  }

 private:
  bool adds_to_dx() const { return job_.dx && job_.lora && !job_.lora.own_x; }
  bool scaled_rows() const { return job_.int8 || job_.dy.dtype == SQ_F16; }
  Matrix gradient() const { return g_ ? Matrix{g_, gradient_dtype(job_), job_.rows, job_.w.out, job_.w.out, true, true} : job_.dy; }

  void make_gradient() {
    if (!g_ && !scaled_) return;
    const auto rows_of = [](const Matrix& m) { return Rows{m.data, m.dtype, m.rows, m.columns, m.stride}; };
    const GradientRows pass{rows_of(job_.dy), rows_of(job_.preactivation), job_.activation, job_.w.scale, g_, gradient_dtype(job_), scaled_, operand(job_).dtype,
                            pitch(job_.w.out), row_scale_};
    check_cuda(gradient_rows(pass, chain_.next().stream), "linear_backward: gradients");
  }

  void write_dx() {
    Finish finish;
    finish.row_scale = row_scale_;
    finish.y = {job_.dx.data, job_.dx.dtype, job_.dx.stride};
    if (adds_to_dx()) branch_.finish_dx(finish);
    if (!reads_dy_) product_.set_activations(scaled_);
    product_.run(finish, chain_);
  }

  const BackwardJob& job_;
  Chain chain_;
  Workspace workspace_;
  LowRank branch_;
  WeightProductCall product_;
  bool reads_dy_;
  void* g_ = nullptr;
  void* scaled_ = nullptr;
  float* row_scale_ = nullptr;
};

}  // namespace

KernelChoice linear_backward(const sq_context& context, const sq_linear_backward_args* given, bool run) {
  const BackwardJob job = prepare_backward(context, given);
  const cudaStream_t stream = cuda_stream(read_struct(given, "sq_linear_backward_args").stream);
  Backward backward(context, job, stream);
  if (!run) return backward.choice();
  const CurrentDevice current(context);
  check_zero_point(context, job.w, stream);
  backward.run();
  return backward.choice();
}

}  // namespace squareq::cuda
