// Y = act( scale[n] * sum_k X[m, k] q[n, k] + scaling * sum_r H[m, r] B[r, n] + bias[n] ), H = X A (SQ-LIN-001, SQ-LOR-001).
// All sums are fp32, in ascending order of their index; Y is rounded once. Matrices are held transposed, so that the inner loops
// run over the rows of X, which are independent of each other.
#include "reference/linear/activation.hpp"
#include "reference/linear/ops.hpp"

namespace squareq::reference {

Matrix transposed(const sq_context& context, const sq_tensor& x, std::int64_t columns, const char* tag) {
  const std::int64_t rows = x.shape[0];
  Matrix result(context, columns, rows, tag);
  parallel_for(context, columns, [&](std::int64_t k) {
    for (std::int64_t m = 0; m < rows; ++m) result.row(k)[m] = load(x, m, k);
  });
  return result;
}

std::optional<Lora> check_lora(const sq_lora* given, const Weight& weight, std::int64_t rows, std::int32_t dtype) {
  if (!given) return std::nullopt;
  const sq_lora args = read_struct(given, "sq_lora");
  const Subject a{weight.name, "lora a_t"};
  Lora lora;
  lora.scaling = args.scaling;
  if (!std::isfinite(lora.scaling)) refuse(Code::CALL_VALUE, {weight.name, "lora"}, "scaling is " + std::to_string(lora.scaling) + ", must be finite");
  lora.a_t = check_rows(args.a_t, a, {SQ_F32}, weight.in_features, Access::read);
  lora.rank = lora.a_t.shape[0];
  if (lora.rank < 1) refuse(Code::CALL_SHAPE, a, "rank is 0, must be at least 1");
  lora.b_t = check_tensor(args.b_t, {weight.name, "lora b_t"}, {SQ_F32}, {weight.out_features, lora.rank}, Access::read);
  if (args.x) check_tensor(args.x, {weight.name, "lora x"}, {dtype}, {rows, weight.in_features}, Access::read);
  lora.x = args.x;
  return lora;
}

Matrix low_rank_input(const sq_context& context, const Lora& lora, const Matrix& x_t, std::int64_t in, std::int64_t rows, std::int32_t dtype) {
  Matrix h_t(context, lora.rank, rows, "lora h");
  parallel_for(context, lora.rank, [&](std::int64_t r) {
    float* h = h_t.row(r);
    for (std::int64_t k = 0; k < in; ++k) {
      const float a = round_to(dtype, load(lora.a_t, r, k));
      for (std::int64_t m = 0; m < rows; ++m) h[m] += x_t.row(k)[m] * a;
    }
    for (std::int64_t m = 0; m < rows; ++m) h[m] = round_to(dtype, h[m]);
  });
  return h_t;
}

namespace {

/// An int8 activation, given by the caller or made here from X: q [rows, in] and one scale per row.
struct Int8Input {
  const std::int8_t* q = nullptr;
  std::int64_t row_stride = 0;
  const float* scale = nullptr;
  std::int64_t rows = 0;
};

Int8Input check_quantized(const sq_quantized_activation* given, const Weight& weight) {
  const sq_quantized_activation xq = read_struct(given, "sq_quantized_activation");
  const Subject self{weight.name, "xq"};
  if (!xq.format) refuse(Code::CALL_NULL, self, "format is null");
  if (std::string_view(xq.format) != "per_token_int8") refuse(Code::CALL_UNSUPPORTED, self, "format is '" + std::string(xq.format) + "', reference reads 'per_token_int8'");
  check_part_names(xq.parts, xq.part_count, weight.name, xq.format, {"q", "scale"}, {});
  const sq_tensor& q = check_rows(&find_part(xq.parts, xq.part_count, "q")->tensor, {weight.name, "xq q"}, {SQ_I8}, weight.in_features, Access::read);
  const sq_tensor& scale = check_tensor(&find_part(xq.parts, xq.part_count, "scale")->tensor, {weight.name, "xq scale"}, {SQ_F32}, {q.shape[0]}, Access::read);
  return {static_cast<const std::int8_t*>(q.data), q.strides[0], static_cast<const float*>(scale.data), q.shape[0]};
}

std::int64_t dot(const std::int8_t* x, const std::int8_t* w, std::int64_t count) {
  std::int64_t sum = 0;
  for (std::int64_t k = 0; k < count; ++k) sum += std::int32_t{x[k]} * w[k];
  return sum;
}

}  // namespace

void linear_forward(sq_context& context, const sq_linear_forward_args* given, bool run) {
  const sq_linear_forward_args args = read_struct(given, "sq_linear_forward_args");
  const Weight weight = resolve(context, args.weight);
  const std::int64_t out = weight.out_features, in = weight.in_features;
  const Subject self{weight.name, ""};
  if (args.activation < SQ_ACT_NONE || args.activation > SQ_ACT_SILU) refuse(Code::CALL_VALUE, self, "activation is " + std::to_string(args.activation) + ", must be 0 to 3");
  if (args.compute < SQ_COMPUTE_DEFAULT || args.compute > SQ_COMPUTE_W8A8) refuse(Code::CALL_VALUE, self, "compute is " + std::to_string(args.compute) + ", must be 0 to 2");
  if ((args.x != nullptr) == (args.xq != nullptr)) refuse(Code::CALL_VALUE, {weight.name, "x"}, "exactly one of x and xq must be given");
  if (args.xq && args.compute == SQ_COMPUTE_EXACT_W) refuse(Code::CALL_VALUE, {weight.name, "xq"}, "compute EXACT_W needs a floating x, but xq was given");

  Int8Input xq;
  if (args.xq) xq = check_quantized(args.xq, weight);
  const sq_tensor* x = args.x ? &check_rows(args.x, {weight.name, "x"}, {SQ_F32, SQ_BF16, SQ_F16}, in, Access::read) : nullptr;
  const std::int64_t rows = x ? x->shape[0] : xq.rows;
  const Subject y_subject{weight.name, "y"};
  if (!args.y) refuse(Code::CALL_NULL, y_subject, "tensor is missing");
  // The activations' dtype: X's own; with an int8 X, that of the branch's floating input or of Y.
  const std::int32_t dtype = x ? x->dtype : args.lora && read_struct(args.lora, "sq_lora").x ? args.lora->x->dtype : args.y->dtype;
  if (x || args.lora) check_tensor(args.y, y_subject, {dtype, SQ_F32}, {rows, out}, Access::write);
  else check_tensor(args.y, y_subject, {SQ_F32, SQ_BF16, SQ_F16}, {rows, out}, Access::write);
  const std::optional<Lora> lora = check_lora(args.lora, weight, rows, dtype);
  if (lora && !x && !lora->x) refuse(Code::CALL_NULL, {weight.name, "lora x"}, "an int8 x cannot feed the low-rank branch, which needs its own floating x");
  if (args.preactivation) check_tensor(args.preactivation, {weight.name, "preactivation"}, {args.y->dtype, SQ_F32}, {rows, out}, Access::write);
  if (args.h && !lora) refuse(Code::CALL_VALUE, {weight.name, "h"}, "h was asked for, but there is no lora");
  if (args.h) check_tensor(args.h, {weight.name, "h"}, {SQ_F32}, {rows, lora->rank}, Access::write);
  if (!run || rows == 0) return;

  const bool int8 = args.xq || args.compute == SQ_COMPUTE_W8A8;
  const bool branch_x = lora && lora->x;
  std::optional<Matrix> x_t, lora_x_t, h_t;
  if (x && (!int8 || (lora && !branch_x))) x_t = transposed(context, *x, in, "forward x");
  if (branch_x) lora_x_t = transposed(context, *lora->x, in, "forward lora x");
  if (lora) h_t = low_rank_input(context, *lora, branch_x ? *lora_x_t : *x_t, in, rows, dtype);
  Matrix y_t(context, out, rows, "forward y");

  Memory made_q, made_scale;  // W8A8 on a floating X: quantized here, exactly as quantize_activation would
  if (int8 && x) {
    made_q = Memory(context, SQ_MEM_SCRATCH, static_cast<std::uint64_t>(rows * in), "forward xq");
    made_scale = Memory(context, SQ_MEM_SCRATCH, static_cast<std::uint64_t>(rows) * sizeof(float), "forward xq scale");
    auto* q = reinterpret_cast<std::int8_t*>(made_q.data());
    auto* scale = reinterpret_cast<float*>(made_scale.data());
    const Matrix wide(context, rows, in, "forward x");
    parallel_for(context, rows, [&](std::int64_t m) {
      for (std::int64_t k = 0; k < in; ++k) wide.row(m)[k] = load(*x, m, k);
      scale[m] = activation_scale(wide.row(m), in, 1);
      for (std::int64_t k = 0; k < in; ++k) q[m * in + k] = quantize_value(wide.row(m)[k], scale[m]);
    });
    xq = {q, in, scale, rows};
  }

  parallel_for(context, out, [&](std::int64_t n) {
    float* y = y_t.row(n);
    if (int8) {
      for (std::int64_t m = 0; m < rows; ++m)
        y[m] = static_cast<float>(dot(xq.q + m * xq.row_stride, weight.q(n), in)) * xq.scale[m] * weight.scale[n];
    } else {
      for (std::int64_t k = 0; k < in; ++k) {
        const float q = weight.q(n)[k];
        for (std::int64_t m = 0; m < rows; ++m) y[m] += x_t->row(k)[m] * q;
      }
      for (std::int64_t m = 0; m < rows; ++m) y[m] *= weight.scale[n];
    }
    for (std::int64_t m = 0; m < rows && lora; ++m) {
      float sum = 0;
      for (std::int64_t r = 0; r < lora->rank; ++r) sum += h_t->row(r)[m] * round_to(dtype, load(lora->b_t, n, r));
      y[m] += lora->scaling * sum;
    }
    for (std::int64_t m = 0; m < rows; ++m) {
      if (weight.bias) y[m] += weight.bias[n];
      if (args.preactivation) store(*args.preactivation, m, n, y[m]);
      store(*args.y, m, n, activate(args.activation, y[m]));
    }
  });
  for (std::int64_t m = 0; m < rows && args.h; ++m)
    for (std::int64_t r = 0; r < lora->rank; ++r) store(*args.h, m, r, h_t->row(r)[m]);
}

}  // namespace squareq::reference
