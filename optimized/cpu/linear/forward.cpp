// Y = act(X W^T + scaling (X A) B + bias) over tiles: dequantize a tile of W, one sgemm, finish the tile while it is in cache.
#include <algorithm>
#include <cstring>

#include "optimized/cpu/blas.hpp"
#include "optimized/cpu/linear/int8_product.hpp"
#include "optimized/cpu/linear/linear_job.hpp"
#include "optimized/cpu/linear/operations.hpp"

namespace squareq::cpu {
namespace {

class Forward {
 public:
  Forward(Context& context, const ForwardJob& job)
      : context_(context), job_(job), scratch_(context.allocator), branch_(job.lora, job.rows, job.w.in, job.activation_dtype) {
    const Tiles& t = job.tiles;
    const bool lora = static_cast<bool>(job.lora);
    scratch_.reserve(&x_, job.int8 || job.x.direct() ? 0 : t.m * t.k);
    scratch_.reserve(&y_, job.y.direct() ? 0 : t.m * t.n);
    if (job.int8) {
      if (job.xq == nullptr) {
        scratch_.reserve(&codes_, t.m * job.w.in);
        scratch_.reserve(&code_scale_, t.m);
        scratch_.reserve(&row_, job.x.is_16() ? job.w.in : 0);
      }
      int8_.reserve(scratch_, t.m, t.n, job.w.in);
    } else {
      scratch_.reserve(&w_, t.n * t.k);
    }
    if (lora) {
      branch_.reserve(scratch_);
      scratch_.reserve(&b_, adapter_needs_buffer(job.lora.b, job.activation_dtype) ? t.n * job.lora.rank : 0);
    }
    scratch_.commit();
  }

  void run() {
    const std::int64_t rank = job_.lora.rank;
    const float* h = job_.lora ? branch_.compute(context_) : nullptr;
    if (job_.h) store_block(context_, {branch_.h(), rank}, job_.h, {0, job_.rows}, {0, rank});
    for_tiles(job_.rows, job_.tiles.m, [&](Span m) {
      held_k_ = -1;
      if (job_.int8 && job_.xq == nullptr) quantize_rows(m);
      for_tiles(job_.w.out, job_.tiles.n, [&](Span n) {
        const Block32 y = write_block(job_.y, m, n, y_);
        if (job_.int8) {
          base_int8(m, n, y);
        } else {
          base(m, n, y);
        }
        if (job_.lora) {
          const Block32 b = adapter_block(context_, job_.lora.b, n, {0, rank}, job_.activation_dtype, b_);
          sgemm(context_.pool, Op::none, Op::transpose, m.size, n.size, rank, job_.lora.scaling, h + m.begin * rank, rank, b.data, b.stride, 1, y.data, y.stride);
        }
        finish(m, n, y);
      });
    });
  }

 private:
  /// A block of the layer's input; a converted block is kept for as long as it is the one asked for.
  Block32 input(Span m, Span k) {
    if (job_.x.direct()) return read_block(context_, job_.x, m, k, nullptr);
    if (held_k_ != k.begin) read_block(context_, job_.x, m, k, x_);
    held_k_ = k.begin;
    return {x_, k.size};
  }

  void base(Span m, Span n, const Block32& y) {
    for_tiles(job_.w.in, job_.tiles.k, [&](Span k) {
      const Block32 x = input(m, k);
      dequantize_block(context_, job_.w, n, k, false, w_);
      sgemm(context_.pool, Op::none, Op::transpose, m.size, n.size, k.size, 1, x.data, x.stride, w_, k.size, k.begin > 0 ? 1.0f : 0.0f, y.data, y.stride);
    });
  }

  void quantize_rows(Span m) {
    for (std::int64_t r = 0; r < m.size; ++r) {
      const float* row = row_;
      if (job_.x.is_16()) {
        to_f32(context_.kernels, job_.x.dtype, job_.x.row<std::uint16_t>(m.begin + r), job_.w.in, row_);
      } else {
        row = job_.x.row<float>(m.begin + r);
      }
      code_scale_[r] = quantize_row(context_.kernels, row, job_.w.in, codes_ + r * job_.w.in);
    }
  }

  void base_int8(Span m, Span n, const Block32& y) {
    const std::int8_t* codes = codes_ != nullptr ? codes_ : job_.xq + m.begin * job_.xq_stride;
    const float* row_scale = codes_ != nullptr ? code_scale_ : job_.xq_scale + m.begin;
    int8_forward(context_, codes, codes_ != nullptr ? job_.w.in : job_.xq_stride, m.size, job_.w, n, int8_);
    context_.pool.parallel_for(m.size, grain_for(n.size), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r)
        context_.kernels.rescale_i32(int8_.sum + r * n.size, n.size, row_scale[r], job_.w.scale + n.begin, y.data + r * y.stride);
    });
  }

  void finish(Span m, Span n, const Block32& y) {
    const ActivationLoop activate = activation_loop(context_.kernels, job_.activation);
    const bool in_place = job_.y.direct();
    if (in_place && job_.w.bias == nullptr && activate == nullptr && !job_.preactivation) return;
    const Kernels& kernels = context_.kernels;
    context_.pool.parallel_for(m.size, grain_for(n.size), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        float* row = y.data + r * y.stride;
        if (job_.w.bias != nullptr) kernels.add(job_.w.bias + n.begin, n.size, row);
        if (job_.preactivation) store_row(job_.preactivation, m.begin + r, n, row);
        if (activate != nullptr) activate(row, n.size, row);
        if (!in_place) store_row(job_.y, m.begin + r, n, row);
      }
    });
  }

  void store_row(const Matrix& to, std::int64_t r, Span n, const float* row) const {
    const auto width = static_cast<std::int64_t>(dtype_bytes(to.dtype));
    from_f32(context_.kernels, to.dtype, row, n.size, to.data + (r * to.stride + n.begin) * width);
  }

  Context& context_;
  const ForwardJob& job_;
  Scratch scratch_;
  BranchInput branch_;
  std::int64_t held_k_ = -1;  // which block of X lies in x_
  float* x_ = nullptr;
  float* y_ = nullptr;
  float* w_ = nullptr;
  float* b_ = nullptr;
  float* row_ = nullptr;
  std::int8_t* codes_ = nullptr;
  float* code_scale_ = nullptr;
  Int8Scratch int8_;
};

}  // namespace

void linear_forward(Context& context, const sq_linear_forward_args& args) {
  const ForwardJob job = prepare_forward(context, args);
  if (job.rows == 0) return;
  const SingleThreadedBlas single;
  Forward(context, job).run();
}

}  // namespace squareq::cpu
