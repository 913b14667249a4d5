#include "gates/adapter/table.hpp"

#include "gates/adapter/request.hpp"
#include "gates/harness/subject.hpp"
#include "squareq/text.hpp"

namespace squareq::gates::adapter {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

/// What a sq_context* of this table points to.
struct Remote {
  std::uint64_t id;
};
const Remote& remote(sq_context* context) { return *reinterpret_cast<const Remote*>(context); }

struct Bound {
  Session* session = nullptr;
  Description description;
  sq_linear_group linear{};
  sq_format_group format{};
  sq_module_group module{};
  sq_implementation table{};
};
Bound bound;

sq_status fill(sq_error* error, Code code, const std::string& message, const std::string& layer = {}, const std::string& tensor = {}) {
  if (error) {
    // A caller of an older contract has a shorter record: a field that it lacks is not written.
    const auto copy = [&](char* to, std::size_t room, const std::string& text) {
      if (to + room <= reinterpret_cast<char*>(error) + error->size) to[text.copy(to, room - 1)] = '\0';
    };
    error->code = static_cast<sq_status>(code);
    copy(error->message, sizeof error->message, message);
    copy(error->layer, sizeof error->layer, layer);
    copy(error->tensor, sizeof error->tensor, tensor);
    copy(error->file, sizeof error->file, {});
  }
  return static_cast<sq_status>(code);
}

/// Nothing is thrown across the contract.
template <class F>
sq_status guarded_call(sq_error* error, F&& work) {
  try {
    work();
    return SQ_OK;
  } catch (const Refusal& r) {
    return fill(error, r.code, r.message, r.layer, r.tensor);
  } catch (const Fault& fault) {
    return fill(error, Code::INTERNAL, fault.what());
  } catch (const Error& e) {
    return fill(error, e.code(), e.what());
  } catch (const std::exception& e) {
    return fill(error, Code::INTERNAL, e.what());
  }
}

json send(const char* command, sq_context* context, Request request) {
  if (!context) throw Refusal{Code::CALL_NULL, "context is null", request.layer, {}};
  ordered_json line = {{"command", command}, {"context", remote(context).id}};
  line.update(request.fields);
  return bound.session->call(std::move(line), request.inputs, request.outputs);
}

/// A whole number of the answer. What is missing or of another type is the adapter's fault, not a refusal.
std::uint64_t whole_number(const json& result, const char* command, const char* key) {
  const auto found = result.find(key);
  if (found == result.end() || !found->is_number_unsigned()) bound.session->broken(std::string(command) + ": the answer's result has no whole number '" + key + "'");
  return found->get<std::uint64_t>();
}

template <class Args, void (Request::*build)(const Args*)>
sq_status operation(const char* command, sq_context* context, const Args* args, sq_error* error) {
  return guarded_call(error, [&] {
    Request request;
    (request.*build)(args);
    send(command, context, std::move(request));
  });
}

sq_status quantize(sq_context* context, const sq_quantize_args* args, sq_error* error) {
  return guarded_call(error, [&] {
    Request request;
    request.quantize(args);
    const std::uint64_t floored = whole_number(send("quantize", context, std::move(request)), "quantize", "floored_rows");
    if (args->floored_rows) *args->floored_rows = floored;
  });
}
sq_status dequantize(sq_context* context, const sq_dequantize_args* args, sq_error* error) {
  return operation<sq_dequantize_args, &Request::dequantize>("dequantize", context, args, error);
}
sq_status linear_forward(sq_context* context, const sq_linear_forward_args* args, sq_error* error) {
  return operation<sq_linear_forward_args, &Request::linear_forward>("linear_forward", context, args, error);
}
sq_status linear_backward(sq_context* context, const sq_linear_backward_args* args, sq_error* error) {
  return operation<sq_linear_backward_args, &Request::linear_backward>("linear_backward", context, args, error);
}
sq_status quantize_activation(sq_context* context, const sq_quantize_activation_args* args, sq_error* error) {
  return operation<sq_quantize_activation_args, &Request::quantize_activation>("quantize_activation", context, args, error);
}
sq_status numeric_guard(sq_context* context, const sq_numeric_guard_args* args, sq_error* error) {
  return operation<sq_numeric_guard_args, &Request::numeric_guard>("numeric_guard", context, args, error);
}
sq_status rms_norm_rope_forward(sq_context* context, const sq_rms_norm_rope_forward_args* args, sq_error* error) {
  return operation<sq_rms_norm_rope_forward_args, &Request::rms_norm_rope_forward>("rms_norm_rope_forward", context, args, error);
}
sq_status rms_norm_rope_backward(sq_context* context, const sq_rms_norm_rope_backward_args* args, sq_error* error) {
  return operation<sq_rms_norm_rope_backward_args, &Request::rms_norm_rope_backward>("rms_norm_rope_backward", context, args, error);
}

void write(sq_text_sink sink, void* user, const json& object) {
  const std::string text = object.dump();
  if (sink) sink(user, text.data(), text.size());
}

sq_status explain(sq_context* context, std::int32_t op, const void* args, sq_text_sink sink, void* user, sq_error* error) {
  return guarded_call(error, [&] {
    if (!sink) throw Refusal{Code::CALL_NULL, "the sink of explain is null", {}, {}};
    Request request;
    request.operation(op, args);
    // Nothing is computed, so nothing comes back; what would be asked for still travels, because explain refuses what the call would refuse.
    ordered_json outputs = ordered_json::object();
    for (const NamedTensor& t : request.outputs) outputs[t.name] = {{"dtype", protocol_dtype(t.tensor->dtype)}, {"shape", std::vector<std::int64_t>(t.tensor->shape, t.tensor->shape + t.tensor->rank)}};
    request.outputs.clear();
    request.fields["outputs"] = outputs;
    write(sink, user, send("explain", context, std::move(request)));
  });
}

/// The text that a caller of the groups format and module hands over: a JSON object where it is one, else the text itself.
ordered_json request_of(const char* text) {
  ordered_json object = ordered_json::parse(text ? text : "", nullptr, false);
  return object.is_object() ? object : ordered_json(text ? text : "");
}

template <const char* command>
sq_status format_call(sq_context* context, const char* request, sq_text_sink sink, void* user, sq_error* error) {
  return guarded_call(error, [&] { write(sink, user, send(command, context, {{{"request", request_of(request)}}, {}, {}})); });
}
constexpr char format_build[] = "format.build", format_validate[] = "format.validate", format_report[] = "format.report";

sq_status module_create(sq_context* context, const char* request, std::uint64_t* module, sq_text_sink sink, void* user, sq_error* error) {
  return guarded_call(error, [&] {
    if (!module) throw Refusal{Code::CALL_NULL, "module is null", {}, {}};
    json result = send("module.create", context, {{{"request", request_of(request)}}, {}, {}});
    *module = whole_number(result, "module.create", "module");
    result.erase("module");
    write(sink, user, result);
  });
}
sq_status module_load(sq_context* context, std::uint64_t module, const char* request, sq_text_sink sink, void* user, sq_error* error) {
  return guarded_call(error, [&] { write(sink, user, send("module.load", context, {{{"module", module}, {"request", request_of(request)}}, {}, {}})); });
}
sq_status module_cast(sq_context* context, std::uint64_t module, const char* request, sq_error* error) {
  return guarded_call(error, [&] { send("module.cast", context, {{{"module", module}, {"request", request_of(request)}}, {}, {}}); });
}
sq_status module_list(sq_context* context, std::uint64_t module, sq_text_sink sink, void* user, sq_error* error) {
  return guarded_call(error, [&] { write(sink, user, send("module.list", context, {{{"module", module}}, {}, {}})); });
}
sq_status module_freeze(sq_context* context, std::uint64_t module, sq_error* error) {
  return guarded_call(error, [&] { send("module.freeze", context, {{{"module", module}}, {}, {}}); });
}
sq_status module_read(sq_context* context, std::uint64_t module, const char* name, const sq_tensor* out, sq_error* error) {
  return guarded_call(error, [&] {
    Request request{{{"module", module}, {"name", name ? ordered_json(name) : ordered_json(nullptr)}}, {}, {}};
    request.output("value", out);
    send("module.read", context, std::move(request));
  });
}
sq_status module_write(sq_context* context, std::uint64_t module, const char* name, const sq_tensor* in, sq_error* error) {
  return guarded_call(error, [&] {
    Request request{{{"module", module}, {"name", name ? ordered_json(name) : ordered_json(nullptr)}}, {}, {}};
    request.input("value", in);
    send("module.write", context, std::move(request));
  });
}
sq_status module_forward(sq_context* context, std::uint64_t module, const char* layer, const sq_tensor* x, const sq_tensor* y, sq_error* error) {
  return guarded_call(error, [&] {
    Request request{{{"module", module}, {"layer", layer ? ordered_json(layer) : ordered_json(nullptr)}}, {}, {}};
    request.input("x", x);
    request.output("y", y);
    send("module.forward", context, std::move(request));
  });
}
sq_status module_destroy(sq_context* context, std::uint64_t module, sq_error* error) {
  return guarded_call(error, [&] { send("module.destroy", context, {{{"module", module}}, {}, {}}); });
}

sq_status create(const sq_host* host, sq_context** context, sq_error* error) {
  return guarded_call(error, [&] {
    if (!host || !context) throw Refusal{Code::CALL_NULL, "host or context is null", {}, {}};
    if (host->abi_version != SQ_ABI_VERSION) throw Refusal{Code::CALL_VERSION, "contract version " + std::to_string(host->abi_version) + ", this program's is " + std::to_string(SQ_ABI_VERSION), {}, {}};
    if (host->device.kind != SQ_CPU || host->device.index != 0)
      throw Refusal{Code::CALL_DEVICE, "the device is of kind " + std::to_string(host->device.kind) + ", index " + std::to_string(host->device.index) + "; tensors of an adapter's calls lie on the CPU, kind 0, index 0", {}, {}};
    if (host->allocator && (!host->allocator->allocate || !host->allocator->release)) throw Refusal{Code::CALL_NULL, "the allocator lacks allocate or release", {}, {}};
    ordered_json line = {{"command", "create"}, {"threads", host->threads}, {"deterministic", host->deterministic != 0}};
    const std::uint64_t id = whole_number(bound.session->call(std::move(line), {}, {}), "create", "context");
    *context = reinterpret_cast<sq_context*>(new Remote{id});
    bound.session->context_opened();
  });
}

void destroy(sq_context* context) {
  if (!context) return;
  // The contract lets destroy say nothing. A fault is remembered by the session; a refusal leaves the context counted, so that the process is replaced.
  guarded_call(nullptr, [&] {
    send("destroy", context, {});
    bound.session->context_closed();
  });
  delete reinterpret_cast<Remote*>(context);
}

sq_status describe(sq_context*, sq_text_sink sink, void* user, sq_error* error) {
  return guarded_call(error, [&] { sink(user, bound.session->description().data(), bound.session->description().size()); });
}

}  // namespace

const sq_implementation* table_of(Session& session) {
  Bound next;
  next.session = &session;
  next.description = parse_description(session.description());
  const auto offers = [&](const char* operation) { return next.description.operations.contains(operation); };
  next.linear.size = sizeof next.linear;
  if (offers("quantize")) next.linear.quantize = quantize;
  if (offers("dequantize")) next.linear.dequantize = dequantize;
  if (offers("linear_forward")) next.linear.linear_forward = linear_forward;
  if (offers("linear_backward")) next.linear.linear_backward = linear_backward;
  if (offers("quantize_activation")) next.linear.quantize_activation = quantize_activation;
  if (offers("numeric_guard")) next.linear.numeric_guard = numeric_guard;
  if (offers("explain")) next.linear.explain = explain;
  if (offers("rms_norm_rope_forward")) next.linear.rms_norm_rope_forward = rms_norm_rope_forward;
  if (offers("rms_norm_rope_backward")) next.linear.rms_norm_rope_backward = rms_norm_rope_backward;
  next.format = {sizeof(sq_format_group), 0, format_call<format_build>, format_call<format_validate>, format_call<format_report>};
  next.module = {sizeof(sq_module_group), 0, module_create, module_load, module_cast, module_list, module_freeze, module_read, module_write, module_forward, module_destroy};
  bound = next;
  const auto& groups = bound.description.groups;
  bound.table = {sizeof(sq_implementation), SQ_ABI_VERSION, bound.description.name.c_str(), bound.description.version.c_str(), create, destroy, describe,
                 groups.contains("linear") ? &bound.linear : nullptr, nullptr, nullptr, groups.contains("format") ? &bound.format : nullptr, groups.contains("module") ? &bound.module : nullptr};
  return &bound.table;
}

}  // namespace squareq::gates::adapter
