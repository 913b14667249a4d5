#include <nlohmann/json.hpp>

#include "reference/boundary.hpp"
#include "reference/groups.hpp"
#include "reference/linear/ops.hpp"

namespace squareq::reference {
namespace {

template <class Args>
using Operation = void (*)(sq_context&, const Args*, bool);

template <class Args, Operation<Args> operation>
sq_status entry(sq_context* context, const Args* args, sq_error* e) {
  return guarded(e, [&] {
    if (!context) throw Error(Code::CALL_NULL, "context is null");
    operation(*context, args, true);
  });
}

sq_status explain(sq_context* context, std::int32_t op, const void* args, sq_text_sink sink, void* user, sq_error* e) {
  return guarded(e, [&] {
    if (!context || !sink) throw Error(Code::CALL_NULL, "explain: context and sink are both required");
    const char* name = nullptr;
    const char* kernel = "loops";
    switch (op) {
      case SQ_OP_QUANTIZE: name = "quantize", quantize(*context, static_cast<const sq_quantize_args*>(args), false); break;
      case SQ_OP_DEQUANTIZE: name = "dequantize", dequantize(*context, static_cast<const sq_dequantize_args*>(args), false); break;
      case SQ_OP_LINEAR_FORWARD: {
        const auto* forward = static_cast<const sq_linear_forward_args*>(args);
        name = "linear_forward", linear_forward(*context, forward, false);
        kernel = forward->xq || forward->compute == SQ_COMPUTE_W8A8 ? "loops_r4" : "loops_r1";
        break;
      }
      case SQ_OP_LINEAR_BACKWARD: {
        const auto* backward = static_cast<const sq_linear_backward_args*>(args);
        name = "linear_backward", linear_backward(*context, backward, false);
        kernel = backward->compute == SQ_COMPUTE_W8A8 ? "loops_r4" : "loops_r1";
        break;
      }
      case SQ_OP_QUANTIZE_ACTIVATION: name = "quantize_activation", quantize_activation(*context, static_cast<const sq_quantize_activation_args*>(args), false); break;
      case SQ_OP_NUMERIC_GUARD: name = "numeric_guard", numeric_guard(*context, static_cast<const sq_numeric_guard_args*>(args), false); break;
      case SQ_OP_RMS_NORM_ROPE_FORWARD: name = "rms_norm_rope_forward", rms_norm_rope_forward(*context, static_cast<const sq_rms_norm_rope_forward_args*>(args), false); break;
      case SQ_OP_RMS_NORM_ROPE_BACKWARD: name = "rms_norm_rope_backward", rms_norm_rope_backward(*context, static_cast<const sq_rms_norm_rope_backward_args*>(args), false); break;
      default: throw Error(Code::CALL_VALUE, "op is " + std::to_string(op) + ", must be 0 to 7");
    }
    const std::string text = nlohmann::ordered_json{{"op", name}, {"kernel", kernel}, {"rejected", nlohmann::json::array()}}.dump();
    sink(user, text.data(), text.size());
  });
}

}  // namespace

extern const sq_linear_group linear_group = {
    sizeof(sq_linear_group), 0,
    entry<sq_quantize_args, quantize>, entry<sq_dequantize_args, dequantize>,
    entry<sq_linear_forward_args, linear_forward>, entry<sq_linear_backward_args, linear_backward>,
    entry<sq_quantize_activation_args, quantize_activation>, entry<sq_numeric_guard_args, numeric_guard>,
    explain, entry<sq_rms_norm_rope_forward_args, rms_norm_rope_forward>, entry<sq_rms_norm_rope_backward_args, rms_norm_rope_backward>};

}  // namespace squareq::reference
