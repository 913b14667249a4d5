// The contract's table of this backend.
#include <atomic>
#include <string>

#include "optimized/cpu/blas.hpp"
#include "optimized/cpu/context.hpp"
#include "optimized/cpu/linear/operations.hpp"
#include "optimized/cpu/stream/session.hpp"
#include "squareq/error.hpp"

namespace squareq::cpu {
namespace {

/// An operation of the group "linear": checks context and struct, runs, reports.
template <class Args, void (*operation)(Context&, const Args&)>
sq_status call(sq_context* context, const Args* args, sq_error* error) {
  return guarded(error, [&] { operation(unwrap(context), checked_struct(args, "args")); });
}

sq_status explain_op(sq_context* context, std::int32_t op, const void* args, sq_text_sink sink, void* user, sq_error* error) {
  return guarded(error, [&] {
    if (args == nullptr) throw Error(Code::CALL_NULL, "args is null");
    if (sink == nullptr) throw Error(Code::CALL_NULL, "sink is null");
    const std::string text = explain(unwrap(context), op, args);
    sink(user, text.data(), text.size());
  });
}

template <class T>
T& output(T* pointer, const char* name) {
  if (pointer == nullptr) throw Error(Code::CALL_NULL, std::string(name) + " is null");
  return *pointer;
}

sq_status stream_open(sq_context* handle, const sq_stream_open_args* args, std::uint64_t* session, sq_error* error) {
  return guarded(error, [&] {
    static std::atomic<std::uint64_t> next{1};  // process-wide, so that another context's session id is never taken for ours
    Context& context = unwrap(handle);
    const sq_stream_open_args checked = checked_struct(args, "args");
    std::uint64_t& id = output(session, "session");
    const std::uint64_t fresh = next++;
    auto opened = std::make_shared<StreamSession>(context, fresh, checked);
    const std::lock_guard lock(context.sessions_mutex);
    context.sessions.emplace(fresh, std::move(opened));
    id = fresh;
  });
}

sq_status stream_begin_step(sq_context* context, std::uint64_t session, std::uint32_t schedule, sq_error* error) {
  return guarded(error, [&] { unwrap(context).session(session)->begin_step(schedule); });
}

sq_status stream_acquire(sq_context* context, std::uint64_t session, std::uint32_t block, sq_stream_handle, sq_lease* lease, sq_error* error) {
  return guarded(error, [&] {
    sq_lease& out = output(lease, "lease");
    out = unwrap(context).session(session)->acquire(block);
  });
}

sq_status stream_release(sq_context* context, std::uint64_t session, sq_lease lease, sq_stream_handle, sq_error* error) {
  return guarded(error, [&] { unwrap(context).session(session)->release(lease); });
}

sq_status stream_end_step(sq_context* context, std::uint64_t session, std::uint32_t abandoned, sq_error* error) {
  return guarded(error, [&] { unwrap(context).session(session)->end_step(abandoned != 0); });
}

sq_status stream_stats(sq_context* context, std::uint64_t session, sq_stream_stats* stats, sq_error* error) {
  return guarded(error, [&] {
    checked_struct(stats, "stats");
    fill_struct(stats, unwrap(context).session(session)->stats(), "stats");
  });
}

sq_status stream_lease_weight(sq_context* context, std::uint64_t session, sq_lease lease, std::uint32_t layer, sq_weight* weight, sq_error* error) {
  return guarded(error, [&] {
    checked_struct(weight, "weight");
    fill_struct(weight, unwrap(context).session(session)->lease_weight(lease, layer), "weight");
  });
}

sq_status stream_close(sq_context* handle, std::uint64_t session, sq_error* error) {
  return guarded(error, [&] {
    Context& context = unwrap(handle);
    const std::shared_ptr<StreamSession> closing = context.session(session);
    {
      const std::lock_guard lock(context.sessions_mutex);
      context.sessions.erase(session);
    }
    closing->close();
  });
}

sq_status telemetry_last_step(sq_context* context, std::uint64_t session, sq_step_metrics* metrics, sq_error* error) {
  return guarded(error, [&] {
    checked_struct(metrics, "metrics");
    fill_struct(metrics, unwrap(context).session(session)->last_step(), "metrics");
  });
}

sq_status create(const sq_host* host, sq_context** context, sq_error* error) {
  return guarded(error, [&] {
    const sq_host h = checked_struct(host, "host");
    sq_context*& out = output(context, "context");
    if (h.abi_version != SQ_ABI_VERSION)
      throw Error(Code::CALL_VERSION, "host implements contract version " + std::to_string(h.abi_version) + ", this backend version " + std::to_string(SQ_ABI_VERSION));
    if (h.device.kind != SQ_CPU || h.device.index != 0)
      throw Error(Code::CALL_DEVICE, "device is of kind " + std::to_string(h.device.kind) + ", index " + std::to_string(h.device.index) + ", expected kind 0 (cpu), index 0");
    if (h.allocator != nullptr) {
      const sq_allocator a = checked_struct(h.allocator, "host.allocator");
      if (a.allocate == nullptr || a.release == nullptr) throw Error(Code::CALL_NULL, "host.allocator lacks allocate or release");
    }
    if (h.threads > 1024) throw Error(Code::CALL_VALUE, "threads is " + std::to_string(h.threads) + ", expected at most 1024");
    out = reinterpret_cast<sq_context*>(new Context(h));
  });
}

void destroy(sq_context* context) {
  if (context != nullptr) delete &unwrap(context);
}

sq_status describe(sq_context* context, sq_text_sink sink, void* user, sq_error* error) {
  return guarded(error, [&] {
    if (sink == nullptr) throw Error(Code::CALL_NULL, "sink is null");
    const Kernels& kernels = context != nullptr ? unwrap(context).kernels : select_kernels();
    const std::string text =
        R"({"name":"cpu","version":"0.1.0","abi_version":)" + std::to_string(SQ_ABI_VERSION) +
        R"(,"device":"cpu","usable":true,"deterministic":true,"groups":["linear","lora","stream","telemetry"],)"
        R"("operations":["quantize","dequantize","linear_forward","linear_backward","quantize_activation","numeric_guard",)"
        R"("rms_norm_rope_forward","rms_norm_rope_backward","explain"],)"
        R"("formats":["bp8_v2","per_token_int8"],"activation_dtypes":["f32","bf16","f16"],"rounding_classes":["R1","R4"],)"
        R"("details":{"isa":")" + std::string(kernels.isa) + R"(","blas_kernels":")" + blas_kernels() + R"("}})";
    sink(user, text.data(), text.size());
  });
}

constexpr sq_linear_group kLinear = {
    .size = sizeof(sq_linear_group),
    .reserved = 0,
    .quantize = call<sq_quantize_args, quantize>,
    .dequantize = call<sq_dequantize_args, dequantize>,
    .linear_forward = call<sq_linear_forward_args, linear_forward>,
    .linear_backward = call<sq_linear_backward_args, linear_backward>,
    .quantize_activation = call<sq_quantize_activation_args, quantize_activation>,
    .numeric_guard = call<sq_numeric_guard_args, numeric_guard>,
    .explain = explain_op,
    .rms_norm_rope_forward = call<sq_rms_norm_rope_forward_args, rms_norm_rope_forward>,
    .rms_norm_rope_backward = call<sq_rms_norm_rope_backward_args, rms_norm_rope_backward>,
};

constexpr sq_stream_group kStream = {
    .size = sizeof(sq_stream_group),
    .reserved = 0,
    .open = stream_open,
    .begin_step = stream_begin_step,
    .acquire = stream_acquire,
    .release = stream_release,
    .end_step = stream_end_step,
    .stats = stream_stats,
    .lease_weight = stream_lease_weight,
    .close = stream_close,
};

constexpr sq_telemetry_group kTelemetry = {.size = sizeof(sq_telemetry_group), .reserved = 0, .last_step = telemetry_last_step};

constexpr sq_implementation kImplementation = {
    .size = sizeof(sq_implementation),
    .abi_version = SQ_ABI_VERSION,
    .name = "cpu",
    .version = "0.1.0",
    .create = create,
    .destroy = destroy,
    .describe = describe,
    .linear = &kLinear,
    .stream = &kStream,
    .telemetry = &kTelemetry,
    .format = nullptr,
    .module = nullptr,
};

}  // namespace
}  // namespace squareq::cpu

extern "C" __attribute__((visibility("default"))) const sq_implementation* squareq_implementation(std::uint32_t host_abi_version,
                                                                                                   std::uint32_t* own_abi_version) {
  if (own_abi_version != nullptr) *own_abi_version = SQ_ABI_VERSION;
  return host_abi_version == SQ_ABI_VERSION ? &squareq::cpu::kImplementation : nullptr;
}
