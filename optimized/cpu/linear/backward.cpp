// Gradients of a linear layer. G = dY * act'(pre):
//   D = G B^T   dX = G W + c D A^T   dB = c H^T G   dA = c X^T D      A [K, r], B [r, N], c = scaling (spec/50-lora.md)
#include <algorithm>
#include <cstring>

#include "optimized/cpu/blas.hpp"
#include "optimized/cpu/linear/int8_product.hpp"
#include "optimized/cpu/linear/linear_job.hpp"
#include "optimized/cpu/linear/operations.hpp"

namespace squareq::cpu {
namespace {

/// Where an adapter gradient is summed: in place, or apart and added once, so that two equal passes give exactly twice one pass.
struct GradientSum {
  float* data = nullptr;
  std::int64_t stride = 0;
  bool apart = false;
};

class Backward {
 public:
  Backward(Context& context, const BackwardJob& job)
      : context_(context), job_(job), scratch_(context.allocator), branch_(job.lora, job.rows, job.w.in, job.activation_dtype) {
    const Tiles& t = job.tiles;
    const bool wide = (job.dx && !job.dx.direct()) || (job.dx_lora && !job.dx_lora.direct());
    scratch_.reserve(&g_, job.dy_direct() ? 0 : t.m * t.n);
    scratch_.reserve(&dx_, wide ? t.m * t.k : 0);
    if (job.dx && !job.int8) scratch_.reserve(&w_, t.n * t.k);
    if (job.dx && job.int8) {
      scratch_.reserve(&scaled_, t.m * job.w.out);
      scratch_.reserve(&codes_, t.m * job.w.out);
      scratch_.reserve(&code_scale_, t.m);
      int8_.reserve(scratch_, t.m, t.k, job.w.out);
    }
    if (job.lora) reserve_lora(t);
    scratch_.commit();
    set_sum(job.da, da_sum_);
    set_sum(job.db, db_sum_);
  }

  void run() {
    if (job_.db && !job_.h) branch_.compute(context_);
    for_tiles(job_.rows, job_.tiles.m, [&](Span m) { rows(m); });
    add_sum(job_.da, da_sum_);
    add_sum(job_.db, db_sum_);
  }

 private:
  bool needs_dh() const { return job_.da || job_.dx_lora || (job_.dx && job_.lora && !own_input()); }
  bool own_input() const { return job_.own_input; }

  void reserve_lora(const Tiles& t) {
    const std::int64_t rank = job_.lora.rank;
    if (job_.db && !job_.h) branch_.reserve(scratch_);
    scratch_.reserve(&x_, job_.da && !job_.lora.x.direct() ? t.m * t.k : 0);
    scratch_.reserve(&h_, job_.db && job_.h ? t.m * rank : 0);
    scratch_.reserve(&dh_, needs_dh() ? t.m * rank : 0);
    scratch_.reserve(&a_, adapter_needs_buffer(job_.lora.a, job_.activation_dtype) ? rank * t.k : 0);
    scratch_.reserve(&b_, adapter_needs_buffer(job_.lora.b, job_.activation_dtype) ? t.n * rank : 0);
    const auto apart = [&](const Matrix& m) { return m.given && (job_.accumulate || !m.direct()); };
    da_sum_.apart = apart(job_.da);
    db_sum_.apart = apart(job_.db);
    scratch_.reserve(&da_sum_.data, da_sum_.apart ? job_.da.rows * job_.da.cols : 0);
    scratch_.reserve(&db_sum_.data, db_sum_.apart ? job_.db.rows * job_.db.cols : 0);
  }

  static void set_sum(const Matrix& m, GradientSum& sum) {
    if (!sum.apart) sum.data = m.row<float>(0);
    sum.stride = sum.apart ? m.cols : m.stride;
  }

  void add_sum(const Matrix& m, const GradientSum& sum) {
    if (!sum.apart) return;
    for (std::int64_t r = 0; r < m.rows; ++r) {
      if (job_.accumulate) {
        context_.kernels.add(sum.data + r * sum.stride, m.cols, m.row<float>(r));
      } else {
        std::memcpy(m.row<float>(r), sum.data + r * sum.stride, static_cast<std::size_t>(m.cols) * sizeof(float));
      }
    }
  }

  void rows(Span m) {
    const std::int64_t rank = job_.lora.rank;
    const float* h = job_.db ? branch_rows(m) : nullptr;
    bool first = true;
    for_tiles(job_.w.in, job_.dx || job_.dx_lora || job_.da ? job_.tiles.k : job_.w.in, [&](Span k) {
      const Block32 dx = job_.dx ? write_block(job_.dx, m, k, dx_) : Block32{};
      if (first || (job_.dx && !job_.int8)) columns(m, k, dx, first ? h : nullptr, first);
      if (job_.dx && job_.int8) base_int8(m, k, dx);
      if (first && needs_dh() && job_.activation_dtype != SQ_F32) round_block(context_, job_.activation_dtype, dh_, m.size * rank);
      first = false;
      Block32 a;
      if (job_.dx_lora || (job_.dx && job_.lora && !own_input()))
        a = adapter_block(context_, job_.lora.a, {0, rank}, k, job_.activation_dtype, a_);
      if (job_.dx) {
        if (job_.lora && !own_input()) sgemm(context_.pool, Op::none, Op::none, m.size, k.size, rank, job_.lora.scaling, dh_, rank, a.data, a.stride, 1, dx.data, dx.stride);
        store_block(context_, dx, job_.dx, m, k);
      }
      if (job_.dx_lora) {
        const Block32 share = write_block(job_.dx_lora, m, k, dx_);
        sgemm(context_.pool, Op::none, Op::none, m.size, k.size, rank, job_.lora.scaling, dh_, rank, a.data, a.stride, 0, share.data, share.stride);
        store_block(context_, share, job_.dx_lora, m, k);
      }
      if (job_.da) {
        const Block32 x = read_block(context_, job_.lora.x, m, k, x_);
        sgemm(context_.pool, Op::transpose, Op::none, rank, k.size, m.size, job_.lora.scaling, dh_, rank, x.data, x.stride, m.begin > 0 ? 1.0f : 0.0f, da_sum_.data + k.begin, da_sum_.stride);
      }
    });
  }

  /// Walks the columns of G: the base share of dX for this depth and, on the first walk, everything else that reads G.
  void columns(Span m, Span k, const Block32& dx, const float* h, bool first) {
    const std::int64_t rank = job_.lora.rank;
    for_tiles(job_.w.out, job_.tiles.n, [&](Span n) {
      const Block32 g = gradient(m, n);
      const float keep = n.begin > 0 ? 1.0f : 0.0f;
      if (first && job_.lora && needs_dh()) {
        const Block32 b = adapter_block(context_, job_.lora.b, n, {0, rank}, job_.activation_dtype, b_);
        sgemm(context_.pool, Op::none, Op::none, m.size, rank, n.size, 1, g.data, g.stride, b.data, b.stride, keep, dh_, rank);
      }
      if (h != nullptr)
        sgemm(context_.pool, Op::transpose, Op::none, n.size, rank, m.size, job_.lora.scaling, g.data, g.stride, h, rank, m.begin > 0 ? 1.0f : 0.0f,
              db_sum_.data + n.begin * db_sum_.stride, db_sum_.stride);
      if (job_.dx && !job_.int8) {
        dequantize_block(context_, job_.w, n, k, false, w_);
        sgemm(context_.pool, Op::none, Op::none, m.size, k.size, n.size, 1, g.data, g.stride, w_, k.size, keep, dx.data, dx.stride);
      }
      if (job_.dx && job_.int8) quantize_gradient(m, g);
    });
  }

  Block32 gradient(Span m, Span n) {
    if (job_.dy_direct()) return read_block(context_, job_.dy, m, n, nullptr);
    const GradientLoop loop = gradient_loop(context_.kernels, job_.activation);
    context_.pool.parallel_for(m.size, grain_for(n.size), [&](std::int64_t begin, std::int64_t end) {
      constexpr std::int64_t piece = 1024;
      float pre[piece];
      for (std::int64_t r = begin; r < end; ++r) {
        float* row = g_ + r * n.size;
        load_row(job_.dy, m.begin + r, n, row);
        if (loop == nullptr) continue;
        for_tiles(n.size, piece, [&](Span p) {
          load_row(job_.preactivation, m.begin + r, {n.begin + p.begin, p.size}, pre);
          loop(pre, row + p.begin, p.size, row + p.begin);
        });
      }
    });
    return {g_, n.size};
  }

  void load_row(const Matrix& from, std::int64_t r, Span n, float* row) const {
    const auto width = static_cast<std::int64_t>(dtype_bytes(from.dtype));
    to_f32(context_.kernels, from.dtype, from.data + (r * from.stride + n.begin) * width, n.size, row);
  }

  /// H of these rows: computed from X, or the caller's, rounded as the forward rounded it.
  const float* branch_rows(Span m) {
    const std::int64_t rank = job_.lora.rank;
    if (!job_.h) return branch_.h() + m.begin * rank;
    for (std::int64_t r = 0; r < m.size; ++r) load_row(job_.h, m.begin + r, {0, rank}, h_ + r * rank);
    if (job_.activation_dtype != SQ_F32) round_block(context_, job_.activation_dtype, h_, m.size * rank);
    return h_;
  }

  /// W8A8: dY' = G * scale (the weight's scale lies on the contraction axis), one int8 scale per row of it.
  void quantize_gradient(Span m, const Block32& g) {
    const std::int64_t out = job_.w.out;
    context_.pool.parallel_for(m.size, grain_for(out), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        context_.kernels.multiply(g.data + r * g.stride, job_.w.scale, out, scaled_ + r * out);
        code_scale_[r] = quantize_row(context_.kernels, scaled_ + r * out, out, codes_ + r * out);
      }
    });
  }

  void base_int8(Span m, Span k, const Block32& dx) {
    int8_backward(context_, codes_, job_.w.out, m.size, job_.w, k, int8_);
    for (std::int64_t r = 0; r < m.size; ++r)
      context_.kernels.rescale_i32(int8_.sum + r * k.size, k.size, code_scale_[r], nullptr, dx.data + r * dx.stride);
  }

  Context& context_;
  const BackwardJob& job_;
  Scratch scratch_;
  float* g_ = nullptr;
  float* dx_ = nullptr;
  float* w_ = nullptr;
  float* x_ = nullptr;
  BranchInput branch_;
  float* h_ = nullptr;
  float* dh_ = nullptr;
  float* a_ = nullptr;
  float* b_ = nullptr;
  float* scaled_ = nullptr;
  std::int8_t* codes_ = nullptr;
  float* code_scale_ = nullptr;
  GradientSum da_sum_;
  GradientSum db_sum_;
  Int8Scratch int8_;
};

/// No rows: gradients that are overwritten become 0, those that are accumulated stay.
void zero(const Matrix& m) {
  for (std::int64_t r = 0; r < m.rows; ++r) std::memset(m.row<float>(r), 0, static_cast<std::size_t>(m.cols) * sizeof(float));
}

}  // namespace

void linear_backward(Context& context, const sq_linear_backward_args& args) {
  const BackwardJob job = prepare_backward(context, args);
  if (job.rows == 0) {
    if (!job.accumulate) zero(job.da);
    if (!job.accumulate) zero(job.db);
    return;
  }
  const SingleThreadedBlas single;
  Backward(context, job).run();
}

}  // namespace squareq::cpu
