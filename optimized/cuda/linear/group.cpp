#include <nlohmann/json.hpp>

#include "optimized/cuda/context.hpp"
#include "optimized/cuda/linear/ops.hpp"

namespace squareq::cuda {
namespace {

template <class Args, void (*operation)(const sq_context&, const Args*, bool)>
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
    const char* kernel = nullptr;
    switch (op) {
      case SQ_OP_QUANTIZE: name = "quantize", kernel = "row_per_block", quantize(*context, static_cast<const sq_quantize_args*>(args), false); break;
      case SQ_OP_DEQUANTIZE: name = "dequantize", kernel = "row_per_block", dequantize(*context, static_cast<const sq_dequantize_args*>(args), false); break;
      case SQ_OP_NUMERIC_GUARD: name = "numeric_guard", kernel = "grid_stride", numeric_guard(*context, static_cast<const sq_numeric_guard_args*>(args), false); break;
      case SQ_OP_LINEAR_FORWARD: case SQ_OP_LINEAR_BACKWARD: case SQ_OP_QUANTIZE_ACTIVATION:
        throw Error(Code::CALL_UNSUPPORTED, "cuda does not offer operation " + std::to_string(op));
      default: throw Error(Code::CALL_VALUE, "op is " + std::to_string(op) + ", must be 0 to 5");
    }
    const std::string text = nlohmann::ordered_json{{"op", name}, {"kernel", kernel}, {"rejected", nlohmann::json::array()}}.dump();
    sink(user, text.data(), text.size());
  });
}

}  // namespace

extern const sq_linear_group linear_group = {
    sizeof(sq_linear_group), 0,
    entry<sq_quantize_args, quantize>, entry<sq_dequantize_args, dequantize>,
    nullptr, nullptr, nullptr,  // linear_forward, linear_backward, quantize_activation: not offered
    entry<sq_numeric_guard_args, numeric_guard>, explain};

}  // namespace squareq::cuda
