// libsquareq_reference.so: the CPU oracle. Its one exported symbol is at the end.
#include <nlohmann/json.hpp>

#include "reference/boundary.hpp"
#include "reference/context.hpp"
#include "reference/groups.hpp"
#include "reference/stream/session.hpp"

namespace squareq::reference {
namespace {

sq_status create(const sq_host* host, sq_context** out, sq_error* e) {
  return guarded(e, [&] {
    if (!out) throw Error(Code::CALL_NULL, "create: context is null");
    auto context = std::make_unique<sq_context>();
    configure(*context, host);
    *out = context.release();
  });
}

void destroy(sq_context* context) {
  if (context) context->sessions.clear();  // joins the loaders while the allocator is still there
  delete context;
}

sq_status describe(sq_context* context, sq_text_sink sink, void* user, sq_error* e) {
  return guarded(e, [&] {
    if (!sink) throw Error(Code::CALL_NULL, "describe: sink is null");
    const nlohmann::ordered_json text = {
        {"name", "reference"}, {"version", "0.1.0"}, {"abi_version", SQ_ABI_VERSION}, {"device", "cpu"}, {"usable", true}, {"deterministic", true},
        {"groups", {"linear", "lora", "stream", "telemetry"}},
        {"operations", {"quantize", "dequantize", "linear_forward", "linear_backward", "quantize_activation", "numeric_guard", "rms_norm_rope_forward",
                        "rms_norm_rope_backward", "explain"}},
        {"formats", {"bp8_v2"}}, {"activation_formats", {"per_token_int8"}}, {"activation_dtypes", {"f32", "bf16", "f16"}}, {"rounding_classes", {"R1", "R4"}},
        {"details", {{"threads", context ? context->threads : std::max(1u, std::thread::hardware_concurrency())}, {"summation", "fp32, ascending index"}}}};
    const std::string dumped = text.dump();
    sink(user, dumped.data(), dumped.size());
  });
}

const sq_implementation table = {sizeof(sq_implementation), SQ_ABI_VERSION, "reference", "0.1.0", create, destroy, describe,
                                 &linear_group, &stream_group, &telemetry_group, nullptr, nullptr};

}  // namespace
}  // namespace squareq::reference

extern "C" __attribute__((visibility("default"))) const sq_implementation* squareq_implementation(uint32_t host_abi_version, uint32_t* own_abi_version) {
  if (own_abi_version) *own_abi_version = SQ_ABI_VERSION;
  return host_abi_version == SQ_ABI_VERSION ? &squareq::reference::table : nullptr;
}
