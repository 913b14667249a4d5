#include "optimized/cuda/arguments.hpp"
#include "optimized/cuda/context.hpp"
#include "optimized/cuda/kernels/kernels.hpp"
#include "optimized/cuda/linear/ops.hpp"
#include "optimized/cuda/weight.hpp"

namespace squareq::cuda {

void dequantize(const sq_context& context, const sq_dequantize_args* given, bool run) {
  const sq_dequantize_args args = read_struct(given, "sq_dequantize_args");
  const cudaStream_t stream = cuda_stream(args.stream);
  const Weight weight = resolve_weight(context, args.weight, stream);
  const Subject target{weight.name, "out"};
  const sq_tensor& out = check_tensor(context, args.out, target, {SQ_F32, SQ_BF16, SQ_F16}, {-1, weight.in}, Access::write);
  if (args.first_row < 0 || args.first_row > weight.out || out.shape[0] > weight.out - args.first_row)
    refuse(Code::CALL_SHAPE, target, "rows [" + std::to_string(args.first_row) + ", " + std::to_string(args.first_row) + " + " + std::to_string(out.shape[0]) +
                                         ") reach outside the weight's " + std::to_string(weight.out) + " rows");
  if (!run) return;

  const CurrentDevice current(context);
  check_zero_point(context, weight, stream);
  if (out.shape[0] == 0) return;
  check_cuda(dequantize_rows(weight.q + args.first_row * weight.stride, weight.stride, weight.scale + args.first_row,
                             {out.data, out.dtype, out.shape[0], out.shape[1], out.strides[0]}, stream),
             "dequantize");
}

}  // namespace squareq::cuda
