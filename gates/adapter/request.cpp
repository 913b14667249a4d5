#include "gates/adapter/request.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "gates/adapter/session.hpp"
#include "squareq/tensor.hpp"

namespace squareq::gates::adapter {
namespace {

using nlohmann::ordered_json;

struct Name {
  const std::string &layer, &tensor;
};

[[noreturn]] void refuse(Code code, const Name& name, const std::string& text) {
  throw Refusal{code, "'" + name.tensor + "' " + text + " (refused by the suite: this cannot travel to an adapter)", name.layer, name.tensor};
}

ordered_json text_or_null(const char* text) { return text ? ordered_json(text) : ordered_json(nullptr); }

/// JSON has no NaN and no infinity.
ordered_json number(float value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return static_cast<double>(value);
}

/// A number that the contract does not know travels as text, so that the adapter can refuse it.
std::string name_of_value(std::int32_t value, std::initializer_list<const char*> names) {
  if (value >= 0 && value < static_cast<std::int32_t>(names.size())) return names.begin()[value];
  return "#" + std::to_string(value);
}
std::string activation_name(std::int32_t value) { return name_of_value(value, {"none", "gelu_tanh", "gelu_erf", "silu"}); }
std::string compute_name(std::int32_t value) { return name_of_value(value, {"default", "exact_w", "w8a8"}); }
std::string producer_name(std::int32_t value) { return name_of_value(value, {"none", "layernorm_modulate", "gelu_tanh"}); }

/// Copies no more of a struct than its caller compiled (SQ-CNV-001); the rest is zero.
template <class T>
T read_struct(const T* given) {
  if (!given) throw Refusal{Code::CALL_NULL, "the call's arguments are null", {}, {}};
  T copy{};
  std::memcpy(&copy, given, std::min<std::size_t>(given->size, sizeof(T)));
  return copy;
}

enum class Access { read, read_any_stride, write };

/// What a contiguous copy hides from the adapter must be right before the copy is made.
void check(const Name& name, const sq_tensor& t, Access access) {
  if (t.rank < 0 || t.rank > SQ_MAX_RANK) refuse(Code::CALL_SHAPE, name, "has rank " + std::to_string(t.rank));
  if (t.dtype < SQ_F32 || t.dtype > SQ_I64) refuse(Code::CALL_DTYPE, name, "has the unknown dtype " + std::to_string(t.dtype));
  std::int64_t count = 1;
  for (std::int32_t i = 0; i < t.rank; ++i) {
    if (t.shape[i] < 0) refuse(Code::CALL_SHAPE, name, "has shape " + shape_text(t));
    if (__builtin_mul_overflow(count, t.shape[i], &count) || count > (std::int64_t{1} << 40)) refuse(Code::CALL_SHAPE, name, "has shape " + shape_text(t));
  }
  if (t.device.kind != SQ_CPU) refuse(Code::CALL_DEVICE, name, "is on device kind " + std::to_string(t.device.kind) + ", must be on the CPU");
  if (count == 0) return;
  if (!t.data) refuse(Code::CALL_NULL, name, "has no data");
  if (reinterpret_cast<std::uintptr_t>(t.data) % dtype_bytes(t.dtype)) refuse(Code::CALL_ALIGN, name, "lies at an address that is no multiple of " + std::to_string(dtype_bytes(t.dtype)));
  if (access == Access::read_any_stride || t.rank == 0) return;
  if (t.shape[t.rank - 1] > 1 && t.strides[t.rank - 1] != 1) refuse(Code::CALL_SHAPE, name, "has a last dimension with stride " + std::to_string(t.strides[t.rank - 1]) + ", must be 1");
  if (access == Access::write && t.rank == 2 && t.shape[0] > 1 && std::abs(t.strides[0]) < t.shape[1]) refuse(Code::CALL_SHAPE, name, "has rows of " + std::to_string(t.shape[1]) + " elements with stride " + std::to_string(t.strides[0]) + ": they overlap");
}

void once(const Name& name, const std::vector<NamedTensor>& given) {
  if (std::any_of(given.begin(), given.end(), [&](const NamedTensor& t) { return t.name == name.tensor; })) refuse(Code::CALL_VALUE, name, "is given twice");
}

}  // namespace

void Request::input(const std::string& name, const sq_tensor* tensor) {
  if (!tensor) return;
  once({layer, name}, inputs);
  check({layer, name}, *tensor, Access::read);
  inputs.push_back({name, tensor});
}

void Request::output(const std::string& name, const sq_tensor* tensor) {
  if (!tensor) return;
  once({layer, name}, outputs);
  check({layer, name}, *tensor, Access::write);
  outputs.push_back({name, tensor});
}

void Request::weight(const sq_weight_ref* given) {
  if (!given) return;
  const sq_weight_ref ref = read_struct(given);
  if (!ref.weight) {
    if (ref.lease) throw Refusal{Code::CALL_UNSUPPORTED, "a leased weight does not travel to an adapter", {}, {}};
    return;
  }
  const auto w = read_struct(ref.weight);
  layer = w.name ? w.name : "";
  ordered_json parts = ordered_json::array();
  for (std::uint32_t i = 0; i < w.part_count; ++i) {
    const sq_part& part = w.parts[i];
    const std::string name = part.name ? part.name : "";
    parts.push_back(name);
    if (std::any_of(inputs.begin(), inputs.end(), [&](const NamedTensor& t) { return t.name == "weight." + name; })) continue;  // named twice, sent once
    input("weight." + name, &part.tensor);
    // The format says how large a part is. One that claims otherwise must be refused; its memory is not read on the strength of its claim.
    const sq_tensor& t = part.tensor;
    const bool codes = name == "qweight";
    inputs.back().blank = t.dtype != (codes ? SQ_I8 : SQ_F32) || t.rank != (codes ? 2 : 1) || t.shape[0] != w.out_features || (codes && t.shape[1] < w.in_features);
  }
  fields["weight"] = {{"format", text_or_null(w.format)}, {"name", text_or_null(w.name)}, {"out_features", w.out_features}, {"in_features", w.in_features}, {"parts", parts}};
}

void Request::lora(const sq_lora* given) {
  if (!given) return;
  const sq_lora l = read_struct(given);
  fields["lora"] = {{"scaling", number(l.scaling)}};
  input("lora.a_t", l.a_t);
  input("lora.b_t", l.b_t);
  input("lora.x", l.x);
}

void Request::quantize(const sq_quantize_args* given) {
  const sq_quantize_args args = read_struct(given);
  fields["format"] = text_or_null(args.format);
  fields["name"] = text_or_null(args.name);
  layer = args.name ? args.name : "";
  fields["pack_k"] = args.pack_k;
  input("w", args.w);
  for (std::uint32_t i = 0; i < args.out_count; ++i) output(args.out[i].name ? args.out[i].name : "", &args.out[i].tensor);
}

void Request::dequantize(const sq_dequantize_args* given) {
  const sq_dequantize_args args = read_struct(given);
  weight(args.weight);
  fields["first_row"] = args.first_row;
  output("out", args.out);
}

void Request::linear_forward(const sq_linear_forward_args* given) {
  const sq_linear_forward_args args = read_struct(given);
  fields["activation"] = activation_name(args.activation);
  fields["compute"] = compute_name(args.compute);
  weight(args.weight);
  input("x", args.x);
  if (args.xq) {
    const auto xq = read_struct(args.xq);
    fields["xq"] = {{"format", text_or_null(xq.format)}};
    for (std::uint32_t i = 0; i < xq.part_count; ++i) input(std::string("xq.") + (xq.parts[i].name ? xq.parts[i].name : ""), &xq.parts[i].tensor);
  }
  lora(args.lora);
  output("y", args.y);
  output("preactivation", args.preactivation);
  output("h", args.h);
}

void Request::linear_backward(const sq_linear_backward_args* given) {
  const sq_linear_backward_args args = read_struct(given);
  fields["activation"] = activation_name(args.activation);
  fields["compute"] = compute_name(args.compute);
  fields["accumulate"] = args.accumulate > 1 ? ordered_json("#" + std::to_string(args.accumulate)) : ordered_json(args.accumulate == 1);
  weight(args.weight);
  input("dy", args.dy);
  input("preactivation", args.preactivation);
  input("x", args.x);
  lora(args.lora);
  input("h", args.h);
  output("dx", args.dx);
  output("dx_lora", args.dx_lora);
  if (args.accumulate) {
    accumulator("da_t", args.da_t);
    accumulator("db_t", args.db_t);
  } else {
    output("da_t", args.da_t);
    output("db_t", args.db_t);
  }
}

void Request::quantize_activation(const sq_quantize_activation_args* given) {
  const sq_quantize_activation_args args = read_struct(given);
  fields["format"] = text_or_null(args.format);
  fields["producer"] = producer_name(args.producer);
  fields["epsilon"] = number(args.epsilon);
  input("x", args.x);
  input("shift", args.shift);
  input("scale", args.scale);
  for (std::uint32_t i = 0; i < args.out_count; ++i) output(args.out[i].name ? args.out[i].name : "", &args.out[i].tensor);
}

void Request::numeric_guard(const sq_numeric_guard_args* given) {
  const sq_numeric_guard_args args = read_struct(given);
  if (args.x) {
    check({layer, "x"}, *args.x, Access::read_any_stride);
    inputs.push_back({"x", args.x});
  }
  accumulator("counts", args.counts);
}

void Request::rms_norm_rope_forward(const sq_rms_norm_rope_forward_args* given) {
  const sq_rms_norm_rope_forward_args args = read_struct(given);
  fields["epsilon"] = number(args.epsilon);
  input("x", args.x);
  input("weight", args.weight);
  input("rope", args.rope);
  output("y", args.y);
}

void Request::rms_norm_rope_backward(const sq_rms_norm_rope_backward_args* given) {
  const sq_rms_norm_rope_backward_args args = read_struct(given);
  fields["epsilon"] = number(args.epsilon);
  input("dy", args.dy);
  input("x", args.x);
  input("weight", args.weight);
  input("rope", args.rope);
  output("dx", args.dx);
}

void Request::operation(std::int32_t op, const void* args) {
  fields["operation"] = name_of_value(op, {"quantize", "dequantize", "linear_forward", "linear_backward", "quantize_activation", "numeric_guard", "rms_norm_rope_forward",
                                            "rms_norm_rope_backward"});
  switch (op) {
    case SQ_OP_QUANTIZE: return quantize(static_cast<const sq_quantize_args*>(args));
    case SQ_OP_DEQUANTIZE: return dequantize(static_cast<const sq_dequantize_args*>(args));
    case SQ_OP_LINEAR_FORWARD: return linear_forward(static_cast<const sq_linear_forward_args*>(args));
    case SQ_OP_LINEAR_BACKWARD: return linear_backward(static_cast<const sq_linear_backward_args*>(args));
    case SQ_OP_QUANTIZE_ACTIVATION: return quantize_activation(static_cast<const sq_quantize_activation_args*>(args));
    case SQ_OP_NUMERIC_GUARD: return numeric_guard(static_cast<const sq_numeric_guard_args*>(args));
    case SQ_OP_RMS_NORM_ROPE_FORWARD: return rms_norm_rope_forward(static_cast<const sq_rms_norm_rope_forward_args*>(args));
    case SQ_OP_RMS_NORM_ROPE_BACKWARD: return rms_norm_rope_backward(static_cast<const sq_rms_norm_rope_backward_args*>(args));
    default: throw Refusal{Code::CALL_VALUE, "unknown operation " + std::to_string(op), {}, {}};
  }
}

}  // namespace squareq::gates::adapter
