#include <nlohmann/json.hpp>

#include "optimized/cuda/context.hpp"
#include "optimized/cuda/linear/ops.hpp"

namespace squareq::cuda {
namespace {

template <class Args, auto operation>
sq_status entry(sq_context* context, const Args* args, sq_error* e) {
  return guarded(e, [&] {
    if (!context) throw Error(Code::CALL_NULL, "context is null");
    operation(*context, args, true);
  });
}

/// What explain() says of an operation with one kernel.
KernelChoice only(const char* kernel) {
  KernelChoice choice;
  choice.name = kernel;
  return choice;
}

sq_status explain(sq_context* context, std::int32_t op, const void* args, sq_text_sink sink, void* user, sq_error* e) {
  return guarded(e, [&] {
    if (!context || !sink) throw Error(Code::CALL_NULL, "explain: context and sink are both required");
    const char* name = nullptr;
    KernelChoice choice = only("row_per_block");
    switch (op) {
      case SQ_OP_QUANTIZE: name = "quantize", quantize(*context, static_cast<const sq_quantize_args*>(args), false); break;
      case SQ_OP_DEQUANTIZE: name = "dequantize", dequantize(*context, static_cast<const sq_dequantize_args*>(args), false); break;
      case SQ_OP_LINEAR_FORWARD: name = "linear_forward", choice = linear_forward(*context, static_cast<const sq_linear_forward_args*>(args), false); break;
      case SQ_OP_LINEAR_BACKWARD: name = "linear_backward", choice = linear_backward(*context, static_cast<const sq_linear_backward_args*>(args), false); break;
      case SQ_OP_QUANTIZE_ACTIVATION:
        name = "quantize_activation", quantize_activation(*context, static_cast<const sq_quantize_activation_args*>(args), false);
        break;
      case SQ_OP_NUMERIC_GUARD:
        name = "numeric_guard", choice = only("grid_stride"),
        numeric_guard(*context, static_cast<const sq_numeric_guard_args*>(args), false);
        break;
      case SQ_OP_RMS_NORM_ROPE_FORWARD:
        name = "rms_norm_rope_forward", choice = only("lanes_per_head"),
        rms_norm_rope_forward(*context, static_cast<const sq_rms_norm_rope_forward_args*>(args), false);
        break;
      case SQ_OP_RMS_NORM_ROPE_BACKWARD:
        name = "rms_norm_rope_backward", choice = only("lanes_per_head"),
        rms_norm_rope_backward(*context, static_cast<const sq_rms_norm_rope_backward_args*>(args), false);
        break;
      default: throw Error(Code::CALL_VALUE, "op is " + std::to_string(op) + ", must be 0 to 7");
    }
    nlohmann::ordered_json rejected = nlohmann::ordered_json::array();
    for (const Rejected& r : choice.rejected) rejected.push_back({{"kernel", r.kernel}, {"reason", r.reason}});
    const std::string text = nlohmann::ordered_json{{"op", name}, {"kernel", choice.name}, {"rejected", rejected}}.dump();
    sink(user, text.data(), text.size());
  });
}

}  // namespace

extern const sq_linear_group linear_group = {
    sizeof(sq_linear_group), 0,
    entry<sq_quantize_args, quantize>, entry<sq_dequantize_args, dequantize>,
    entry<sq_linear_forward_args, linear_forward>, entry<sq_linear_backward_args, linear_backward>,
    entry<sq_quantize_activation_args, quantize_activation>, entry<sq_numeric_guard_args, numeric_guard>, explain,
    entry<sq_rms_norm_rope_forward_args, rms_norm_rope_forward>, entry<sq_rms_norm_rope_backward_args, rms_norm_rope_backward>};

}  // namespace squareq::cuda
