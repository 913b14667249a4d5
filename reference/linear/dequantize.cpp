// W[n, k] = q[n, k] * scale[n]: fp32 product, then one rounding to the output's dtype (SQ-QNT-011).
#include "reference/linear/ops.hpp"

namespace squareq::reference {

void dequantize(sq_context& context, const sq_dequantize_args* given, bool run) {
  const sq_dequantize_args args = read_struct(given, "sq_dequantize_args");
  const Weight weight = resolve(context, args.weight);
  const Subject subject{weight.name, "out"};
  const sq_tensor& out = check_rows(args.out, subject, {SQ_F32, SQ_BF16, SQ_F16}, weight.in_features, Access::write);
  if (args.first_row < 0 || args.first_row > weight.out_features || out.shape[0] > weight.out_features - args.first_row)
    refuse(Code::CALL_SHAPE, subject, "rows [" + std::to_string(args.first_row) + ", " + std::to_string(args.first_row) + " + " + std::to_string(out.shape[0]) +
                                          ") reach outside the weight's " + std::to_string(weight.out_features) + " rows");
  if (!run) return;
  parallel_for(context, out.shape[0], [&](std::int64_t i) {
    const std::int64_t n = args.first_row + i;
    for (std::int64_t k = 0; k < weight.in_features; ++k) store(out, i, k, static_cast<float>(weight.q(n)[k]) * weight.scale[n]);
  });
}

}  // namespace squareq::reference
