// What a host may say when it makes an instance, and an instance whose host has no allocator.
#include <functional>

#include "gates/g05_forward/refused.hpp"

namespace squareq::gates::g05 {
namespace {

/// A host without an allocator: the implementation has its own, and its buffers are large enough.
void run_own_allocation(Trial& trial) {
  Random random = trial.random("data");
  Problem p(257, Layer("own", 63, 300, 64, true), SQ_F32);
  fill(p, random, {.rank = 3});
  const DirectWeight direct(p.layer);
  auto lora = sized<sq_lora>();
  lora.scaling = p.adapter->scaling;
  lora.a_t = p.adapter->a_t.tensor();
  lora.b_t = p.adapter->b_t.tensor();
  const Expected expected = oracle_forward(p).y;
  for (const std::uint32_t threads : {3u, 0u}) {  // 0: as many as there are
    sq_host host{};
    host.threads = threads;
    host.deterministic = 1;
    const Context context(trial.subject().of_group("linear"), host);
    Guarded y("y", Role::out, SQ_F32, {257, 63});
    auto args = sized<sq_linear_forward_args>();
    args.weight = direct.ref();
    args.x = p.x.tensor();
    args.lora = &lora;
    args.y = y.tensor();
    call_ok("linear_forward of a host without allocator", {&p.x, &y}, [&](sq_error* e) { return context.linear().linear_forward(context.get(), &args, e); });
    compare(trial, y, expected);
  }
}

/// What a host may say when it makes an instance.
void run_create(Trial& trial) {
  const sq_implementation& table = trial.subject().of_group("linear").table();
  Meter meter;
  const auto create = [&](const std::string& what, Codes codes, const std::function<void(sq_host&)>& change) {
    auto host = sized<sq_host>();
    host.abi_version = SQ_ABI_VERSION;
    host.threads = 2;
    host.allocator = meter.table();
    change(host);
    sq_context* context = nullptr;
    const auto operation = [&](sq_error* e) { return table.create(&host, &context, e); };
    if (codes.size() != 0) {
      call_refused(what, codes, {}, operation);
      require(context == nullptr, what + ": refused, but an instance was made");
      return;
    }
    call_ok(what, {}, operation);
    require(context != nullptr, what + ": no instance");
    table.destroy(context);
  };
  create("an instance", {}, [](sq_host&) {});
  create("an instance with as many threads as there are", {}, [](sq_host& h) { h.threads = 0; });
  for (const std::uint32_t version : {SQ_ABI_VERSION - 1, SQ_ABI_VERSION + 1})
    create("an instance for contract version " + std::to_string(version), {Code::CALL_VERSION}, [version](sq_host& h) { h.abi_version = version; });
  create("an instance on the other kind of device", {Code::CALL_DEVICE}, [](sq_host& h) { h.device.kind ^= 1; });
  create("an instance on device 99", {Code::CALL_DEVICE}, [](sq_host& h) { h.device.index = 99; });
  sq_allocator half = *meter.table();
  create("an allocator that cannot release", {Code::CALL_NULL}, [&](sq_host& h) { half.release = nullptr, h.allocator = &half; });
  half = *meter.table();
  create("an allocator that cannot allocate", {Code::CALL_NULL}, [&](sq_host& h) { half.allocate = nullptr, h.allocator = &half; });
  require(meter.held() == 0 && meter.misuse().empty(), "memory was kept or misused: " + meter.misuse());
}

}  // namespace

void add_create(Cases& cases) {
  cases.push_back({5, "linear.create", Kind::vector, {"SQ-CNV-002", "SQ-CNV-007", "SQ-ERR-007", "SQ-ERR-009"}, {"linear", "in_process"}, "another contract version, a device that is not there, half an allocator accepted", run_create});
  cases.push_back({5, "linear.own_allocation", Kind::vector, {"SQ-CNV-007", "SQ-LIN-001"}, {"linear", "lora", "operation:linear_forward"}, "an implementation that works only with the host's allocator", run_own_allocation});
}

}  // namespace squareq::gates::g05
