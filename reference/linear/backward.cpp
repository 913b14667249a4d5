// With G = dY * act'(preactivation), c = the branch's scaling and D = G B (SQ-LIN-010, SQ-LOR-010):
//   dX   [M, K] = sum_n (G[m, n] scale[n]) q[n, k]  +  c * sum_r D[m, r] A[k, r]
//   dA^T [r, K] = c * sum_m D[m, r] X[m, k]
//   dB^T [N, r] = c * sum_m H[m, r] G[m, n]
// The base is frozen: it has no gradient. All sums are fp32, in ascending order of their index.
#include "reference/linear/activation.hpp"
#include "reference/linear/ops.hpp"

namespace squareq::reference {
namespace {

struct Call {
  Weight weight;
  std::optional<Lora> lora;
  std::int64_t rows = 0;
  std::int32_t dtype = SQ_F32;       // of the activations: A, B, H and D are rounded to it
  const sq_tensor* own_x = nullptr;     // the branch's own x
  const sq_tensor* branch_x = nullptr;  // own_x, else the layer's
};

Call check(sq_context& context, const sq_linear_backward_args& args) {
  Call call;
  call.weight = resolve(context, args.weight);
  const std::string& name = call.weight.name;
  const std::int64_t out = call.weight.out_features, in = call.weight.in_features;
  if (args.activation < SQ_ACT_NONE || args.activation > SQ_ACT_SILU) refuse(Code::CALL_VALUE, {name, ""}, "activation is " + std::to_string(args.activation) + ", must be 0 to 3");
  if (args.compute < SQ_COMPUTE_DEFAULT || args.compute > SQ_COMPUTE_W8A8) refuse(Code::CALL_VALUE, {name, ""}, "compute is " + std::to_string(args.compute) + ", must be 0 to 2");
  if (args.accumulate > 1) refuse(Code::CALL_VALUE, {name, ""}, "accumulate is " + std::to_string(args.accumulate) + ", must be 0 or 1");
  const sq_tensor& dy = check_rows(args.dy, {name, "dy"}, {SQ_F32, SQ_BF16, SQ_F16}, out, Access::read);
  const std::int64_t rows = call.rows = dy.shape[0];
  call.own_x = args.lora ? read_struct(args.lora, "sq_lora").x : nullptr;
  call.branch_x = call.own_x ? call.own_x : args.x;
  call.dtype = call.branch_x ? call.branch_x->dtype : dy.dtype;

  if (args.activation != SQ_ACT_NONE) check_tensor(args.preactivation, {name, "preactivation"}, {dy.dtype, SQ_F32}, {rows, out}, Access::read);
  if (args.x) check_tensor(args.x, {name, "x"}, {SQ_F32, SQ_BF16, SQ_F16}, {rows, in}, Access::read);
  call.lora = check_lora(args.lora, call.weight, rows, args.x ? args.x->dtype : call.dtype);
  if (call.branch_x) check_tensor(call.branch_x, {name, "x"}, {SQ_F32, SQ_BF16, SQ_F16}, {rows, in}, Access::read);
  if (call.branch_x && dy.dtype != SQ_F32 && dy.dtype != call.dtype)
    refuse(Code::CALL_DTYPE, {name, "dy"}, "dtype is " + std::string(dtype_name(dy.dtype)) + ", x is " + std::string(dtype_name(call.dtype)) + "; dy must be f32 or as x");

  const struct { const sq_tensor* tensor; const char* tensor_name; } branch_only[] = {{args.h, "h"}, {args.dx_lora, "dx_lora"}, {args.da_t, "da_t"}, {args.db_t, "db_t"}};
  for (const auto& [tensor, tensor_name] : branch_only)
    if (tensor && !call.lora) refuse(Code::CALL_VALUE, {name, tensor_name}, "belongs to the low-rank branch, but there is no lora");
  if (args.dx_lora && !call.own_x) refuse(Code::CALL_VALUE, {name, "dx_lora"}, "is the share of the branch's own x, but lora has no x; dx holds both shares");
  if (args.dx) check_tensor(args.dx, {name, "dx"}, {dy.dtype}, {rows, in}, Access::write);
  if (args.dx_lora) check_tensor(args.dx_lora, {name, "dx_lora"}, {dy.dtype}, {rows, in}, Access::write);
  if (!call.lora) return call;
  if (args.h) check_tensor(args.h, {name, "h"}, {SQ_F32}, {rows, call.lora->rank}, Access::read);
  if (args.da_t) check_tensor(args.da_t, {name, "da_t"}, {SQ_F32}, {call.lora->rank, in}, Access::write);
  if (args.db_t) check_tensor(args.db_t, {name, "db_t"}, {SQ_F32}, {out, call.lora->rank}, Access::write);
  if (args.da_t && !call.branch_x) refuse(Code::CALL_NULL, {name, "x"}, "da_t needs x, which is missing");
  if (args.db_t && !args.h && !call.branch_x) refuse(Code::CALL_NULL, {name, "x"}, "db_t needs h, or x to make it from; both are missing");
  return call;
}

/// The frozen weight's share of dX^T [in, rows]; class R1: (G s) q in fp32.
Matrix base_dx(const sq_context& context, const Weight& weight, const Matrix& g_t, std::int64_t rows) {
  Matrix scaled(context, weight.out_features, rows, "backward scaled dy"), dx_t(context, weight.in_features, rows, "backward dx");
  parallel_for(context, weight.out_features, [&](std::int64_t n) {
    for (std::int64_t m = 0; m < rows; ++m) scaled.row(n)[m] = g_t.row(n)[m] * weight.scale[n];
  });
  parallel_for(context, weight.in_features, [&](std::int64_t k) {
    for (std::int64_t n = 0; n < weight.out_features; ++n) {
      const float q = weight.q(n)[k];
      for (std::int64_t m = 0; m < rows; ++m) dx_t.row(k)[m] += scaled.row(n)[m] * q;
    }
  });
  return dx_t;
}

/// The same in class R4: G s quantized per token to int8, integer sums.
Matrix base_dx_int8(const sq_context& context, const Weight& weight, const Matrix& g_t, std::int64_t rows) {
  const std::int64_t out = weight.out_features;
  Matrix dx_t(context, weight.in_features, rows, "backward dx"), scaled(context, rows, out, "backward scaled dy");
  const Memory q_memory(context, SQ_MEM_SCRATCH, static_cast<std::uint64_t>(rows * out), "backward int8 dy");
  const Memory scale_memory(context, SQ_MEM_SCRATCH, static_cast<std::uint64_t>(rows) * sizeof(float), "backward int8 dy scale");
  auto* dy_q = reinterpret_cast<std::int8_t*>(q_memory.data());
  auto* dy_scale = reinterpret_cast<float*>(scale_memory.data());
  parallel_for(context, rows, [&](std::int64_t m) {
    for (std::int64_t n = 0; n < out; ++n) scaled.row(m)[n] = g_t.row(n)[m] * weight.scale[n];
    dy_scale[m] = activation_scale(scaled.row(m), out, 1);
    for (std::int64_t n = 0; n < out; ++n) dy_q[m * out + n] = quantize_value(scaled.row(m)[n], dy_scale[m]);
  });
  parallel_for(context, weight.in_features, [&](std::int64_t k) {
    for (std::int64_t m = 0; m < rows; ++m) {
      std::int64_t sum = 0;
      for (std::int64_t n = 0; n < out; ++n) sum += std::int32_t{dy_q[m * out + n]} * weight.q(n)[k];
      dx_t.row(k)[m] = static_cast<float>(sum) * dy_scale[m];
    }
  });
  return dx_t;
}

void put(const sq_tensor& target, std::int64_t row, std::int64_t column, float value, bool accumulate) {
  store(target, row, column, accumulate ? load(target, row, column) + value : value);
}

}  // namespace

void linear_backward(sq_context& context, const sq_linear_backward_args* given, bool run) {
  const sq_linear_backward_args args = read_struct(given, "sq_linear_backward_args");
  const Call call = check(context, args);
  const Weight& weight = call.weight;
  const std::int64_t rows = call.rows, out = weight.out_features, in = weight.in_features;
  const std::int64_t rank = call.lora ? call.lora->rank : 0;
  if (!run) return;

  // All scratch is taken before the first output is written: a failed allocation leaves every output as it was.
  const Matrix g_t = transposed(context, *args.dy, out, "backward dy");
  Matrix d_t(context, rank, rows, "backward lora dh");
  std::optional<Matrix> x_t, h_t, dx_t, dx_lora_t;
  if (call.lora && (args.da_t || (args.db_t && !args.h))) x_t = transposed(context, *call.branch_x, in, "backward x");
  if (args.db_t && !args.h) h_t = low_rank_input(context, *call.lora, *x_t, in, rows, call.dtype);
  if (args.db_t && args.h) h_t = transposed(context, *args.h, rank, "backward lora h");
  if (args.dx_lora) dx_lora_t.emplace(context, in, rows, "backward lora dx");

  parallel_for(context, out, [&](std::int64_t n) {
    for (std::int64_t m = 0; m < rows && args.activation != SQ_ACT_NONE; ++m) g_t.row(n)[m] *= activation_derivative(args.activation, load(*args.preactivation, m, n));
  });
  if (args.dx) dx_t = args.compute == SQ_COMPUTE_W8A8 ? base_dx_int8(context, weight, g_t, rows) : base_dx(context, weight, g_t, rows);
  parallel_for(context, rank, [&](std::int64_t r) {
    float* d = d_t.row(r);
    for (std::int64_t n = 0; n < out; ++n) {
      const float b = round_to(call.dtype, load(call.lora->b_t, n, r));
      for (std::int64_t m = 0; m < rows; ++m) d[m] += g_t.row(n)[m] * b;
    }
    for (std::int64_t m = 0; m < rows; ++m) d[m] = round_to(call.dtype, d[m]);
  });

  parallel_for(context, in, [&](std::int64_t k) {
    // Without an x of its own the branch's share belongs to dx, else to dx_lora.
    const std::optional<Matrix>& target = call.own_x ? dx_lora_t : dx_t;
    for (std::int64_t m = 0; m < rows && call.lora && target; ++m) {
      float sum = 0;
      for (std::int64_t r = 0; r < rank; ++r) sum += d_t.row(r)[m] * round_to(call.dtype, load(call.lora->a_t, r, k));
      target.value().row(k)[m] += call.lora.value().scaling * sum;
    }
    for (std::int64_t m = 0; m < rows && dx_t; ++m) store(*args.dx, m, k, dx_t->row(k)[m]);
    for (std::int64_t m = 0; m < rows && dx_lora_t; ++m) store(*args.dx_lora, m, k, dx_lora_t->row(k)[m]);
    for (std::int64_t r = 0; r < rank && args.da_t; ++r) {
      float sum = 0;
      for (std::int64_t m = 0; m < rows; ++m) sum += d_t.row(r)[m] * x_t->row(k)[m];
      put(*args.da_t, r, k, call.lora->scaling * sum, args.accumulate);
    }
  });
  parallel_for(context, args.db_t ? out : 0, [&](std::int64_t n) {
    for (std::int64_t r = 0; r < rank; ++r) {
      float sum = 0;
      for (std::int64_t m = 0; m < rows; ++m) sum += h_t->row(r)[m] * g_t.row(n)[m];
      put(*args.db_t, n, r, call.lora->scaling * sum, args.accumulate);
    }
  });
}

}  // namespace squareq::reference
