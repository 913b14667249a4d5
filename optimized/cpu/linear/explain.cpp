// Which kernel a call would run, and why the others would not.
#include <string>
#include <vector>

#include "optimized/cpu/linear/linear_job.hpp"
#include "optimized/cpu/linear/operations.hpp"
#include "squareq/error.hpp"

namespace squareq::cpu {
namespace {

struct Rejected {
  std::string kernel;
  std::string reason;
};

std::string object(const std::string& op, const std::string& kernel, const std::vector<Rejected>& rejected, const std::string& more = "") {
  std::string text = R"({"op":")" + op + R"(","kernel":")" + kernel + R"(","rejected":[)";
  for (std::size_t i = 0; i < rejected.size(); ++i)
    text += (i ? "," : "") + std::string(R"({"kernel":")") + rejected[i].kernel + R"(","reason":")" + rejected[i].reason + R"("})";
  return text + "]" + more + "}";
}

std::string tiles_text(const Tiles& t) {
  return R"(,"tiles":{"m":)" + std::to_string(t.m) + R"(,"n":)" + std::to_string(t.n) + R"(,"k":)" + std::to_string(t.k) + "}";
}

std::string product(const std::string& op, bool int8, bool codes, const Tiles& tiles, const std::string& isa) {
  const std::string exact = "sgemm_dequantized_tiles/" + isa;
  const std::string integer = "sgemm_int8_exact/" + isa;
  if (int8) return object(op, integer, {{exact, codes ? "the activation is given as int8 codes" : "compute asks for W8A8"}}, tiles_text(tiles));
  return object(op, exact, {{integer, "compute asks for exact weights (R1), this kernel quantizes the activation (R4)"}}, tiles_text(tiles));
}

template <class T>
T struct_of(const void* args) {
  return checked_struct(static_cast<const T*>(args), "args");
}

}  // namespace

std::string explain(Context& context, std::int32_t op, const void* args) {
  const std::string isa = context.kernels.isa;
  switch (op) {
    case SQ_OP_QUANTIZE: check_quantize(struct_of<sq_quantize_args>(args)); return object("quantize", "bp8_v2_rows/" + isa, {});
    case SQ_OP_DEQUANTIZE: check_dequantize(context, struct_of<sq_dequantize_args>(args)); return object("dequantize", "bp8_v2_rows/" + isa, {});
    case SQ_OP_LINEAR_FORWARD: {
      const ForwardJob job = prepare_forward(context, struct_of<sq_linear_forward_args>(args));
      return product("linear_forward", job.int8, job.xq != nullptr, job.tiles, isa);
    }
    case SQ_OP_LINEAR_BACKWARD: {
      const BackwardJob job = prepare_backward(context, struct_of<sq_linear_backward_args>(args));
      return product("linear_backward", job.int8, false, job.tiles, isa);
    }
    case SQ_OP_QUANTIZE_ACTIVATION: check_quantize_activation(struct_of<sq_quantize_activation_args>(args)); return object("quantize_activation", "per_token_int8_rows/" + isa, {});
    case SQ_OP_NUMERIC_GUARD: check_guard(struct_of<sq_numeric_guard_args>(args)); return object("numeric_guard", "count_nonfinite/" + isa, {});
    case SQ_OP_RMS_NORM_ROPE_FORWARD:
      check_rms_norm_rope(struct_of<sq_rms_norm_rope_forward_args>(args));
      return object("rms_norm_rope_forward", "rms_norm_rope_rows/" + isa, {});
    case SQ_OP_RMS_NORM_ROPE_BACKWARD:
      check_rms_norm_rope(struct_of<sq_rms_norm_rope_backward_args>(args));
      return object("rms_norm_rope_backward", "rms_norm_rope_rows/" + isa, {});
    default: throw Error(Code::CALL_VALUE, "op is " + std::to_string(op) + ", expected 0 to 7");
  }
}

}  // namespace squareq::cpu
