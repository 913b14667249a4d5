// Gate 3: no float weight, measured. The published tests look at attributes; a forward may still build the whole matrix. Here every byte that
// an implementation asks for is counted, and what it takes behind the allocator's back shows in the process's resident memory.
#include "gates/g03_memory/g03_memory.hpp"

#include "gates/harness/linear.hpp"
#include "gates/harness/registry.hpp"
#include "gates/harness/stream.hpp"

namespace squareq::gates {
namespace {

/// Workspace that one call may hold: a quarter of the float weight of a 4096 x 4096 layer, so that a bounded tile fits and neither the float
/// matrix nor its bf16 half does.
constexpr double workspace_share = 0.25;

Problem large_problem(Trial& trial, std::int64_t size, std::int64_t rank) {
  Random random = trial.random("data");
  Problem p(2, Layer("large", size, size, 64, true), SQ_F32);
  for (std::int64_t n = 0; n < size; ++n) {
    p.layer.scale.set(n, 1e-3);
    for (std::int64_t k = 0; k < size; ++k) p.layer.qweight.set(n, k, static_cast<double>(static_cast<std::int64_t>(random.next() % 255) - 127));
  }
  p.x.fill([&] { return random.normal(); });
  if (rank) {
    Adapter& a = p.adapter.emplace(rank, size, size, 0.5f);
    a.a_t.fill([&] { return random.normal(); });
    a.b_t.fill([&] { return random.normal(); });
  }
  return p;
}

double float_weight_bytes(const Problem& p) { return 4.0 * static_cast<double>(p.layer.n) * static_cast<double>(p.layer.k); }

void run_workspace(Trial& trial, bool with_backward) {
  Problem p = large_problem(trial, 4096, with_backward ? 8 : 0);
  Guarded dy("dy", Role::in, SQ_F32, {p.m, p.layer.n});
  dy.fill(0.5);
  Instance& instance = trial.instance();
  const std::uint64_t before = instance.meter().held();
  instance.meter().reset_peaks();
  if (with_backward) backward(instance, p, dy, nullptr, nullptr);
  else forward(instance, p);
  const double taken = static_cast<double>(instance.meter().peak() - before);
  trial.margin(taken / (workspace_share * float_weight_bytes(p)));
}

void run_resident_memory(Trial& trial, bool with_backward) {
  Problem p = large_problem(trial, 4096, 0);
  Guarded dy("dy", Role::in, SQ_F32, {p.m, p.layer.n});
  dy.fill(0.5);
  Instance& instance = trial.instance();
  // The first call may set up thread pools and code pages; the second one is measured.
  Problem small = large_problem(trial, 64, 0);
  Guarded small_dy("dy", Role::in, SQ_F32, {small.m, small.layer.n});
  small_dy.fill(0.5);
  if (with_backward) backward(instance, small, small_dy, nullptr, nullptr);
  else forward(instance, small);
  // Arming copies the inputs: that memory is taken before measuring starts.
  const DirectWeight direct(p.layer);
  Guarded y("y", Role::out, SQ_F32, {p.m, p.layer.n}), dx("dx", Role::out, SQ_F32, {p.m, p.layer.k});
  std::uint64_t growth = 0;
  if (with_backward) {
    auto args = sized<sq_linear_backward_args>();
    args.weight = direct.ref();
    args.dy = dy.tensor();
    args.dx = dx.tensor();
    call_ok("linear_backward", {&dx, &dy}, [&](sq_error* e) {
      const ResidentPeak peak;
      const sq_status status = instance.linear().linear_backward(instance.get(), &args, e);
      growth = peak.growth();
      return status;
    });
  } else {
    auto args = sized<sq_linear_forward_args>();
    args.weight = direct.ref();
    args.x = p.x.tensor();
    args.y = y.tensor();
    call_ok("linear_forward", {&y, &p.x}, [&](sq_error* e) {
      const ResidentPeak peak;
      const sq_status status = instance.linear().linear_forward(instance.get(), &args, e);
      growth = peak.growth();
      return status;
    });
  }
  trial.margin(static_cast<double>(growth) / (0.25 * float_weight_bytes(p)));  // the bytes of qweight (SQ-LIN-047)
}

/// Memory refused at any point of a call: a typed error and nothing changed, and the next call is right.
void run_refused_memory(Trial& trial) {
  Random random = trial.random("data");
  Problem p(5, Layer("refused", 70, 130, 64, true), SQ_F32);
  fill(p, random, {.rank = 4});
  Instance& instance = trial.instance();
  forward(instance, p);  // warm: lazily made state is there
  const DirectWeight direct(p.layer);
  auto lora = sized<sq_lora>();
  lora.scaling = p.adapter->scaling;
  lora.a_t = p.adapter->a_t.tensor();
  lora.b_t = p.adapter->b_t.tensor();
  Guarded y("y", Role::out, SQ_F32, {5, 70});
  auto args = sized<sq_linear_forward_args>();
  args.weight = direct.ref();
  args.x = p.x.tensor();
  args.lora = &lora;
  args.y = y.tensor();
  for (std::int64_t k = 0; k < 16; ++k) {
    y.arm();
    p.x.arm();
    instance.meter().refuse_from(k);
    sq_error e = make_error();
    const auto status = static_cast<Code>(instance.linear().linear_forward(instance.get(), &args, &e));
    instance.meter().refuse_from(-1);
    if (status == Code::OK) break;  // it needed no more than k allocations
    require(status == Code::HOST_OOM || status == Code::GPU_OOM, "allocation " + std::to_string(k) + " refused: answered " + std::string(code_name(status)) + ", expected HOST_OOM or GPU_OOM");
    for (Guarded* t : {&y, &p.x})
      if (const std::string damage = t->damage_after_refusal(); !damage.empty()) fail(damage);
  }
  compare(trial, forward(instance, p).y, oracle_forward(p).y);
}

std::vector<std::vector<Layer>> equal_blocks(Random& random, int count) {
  std::vector<std::vector<Layer>> blocks;
  for (int b = 0; b < count; ++b) {
    Problem p(0, Layer("blocks." + std::to_string(b) + ".fc", 96, 128 + 64 * (b % 2), 64, true), SQ_F32);
    fill(p, random, {});
    blocks.emplace_back().push_back(std::move(p.layer));
  }
  return blocks;
}

/// Slots and residents to the byte; nothing more for as long as the session lives.
void run_stream_bytes(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(equal_blocks(random, 6));
  blocks.set_resident(1, true);
  blocks.set_resident(4, true);
  const std::vector<sq_visit> visits = sawtooth(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  const std::uint64_t expected = 2 * blocks.largest_extent() + blocks.descriptions()[1].extent_bytes + blocks.descriptions()[4].extent_bytes;
  const auto check_bytes = [&](const char* when, const StreamSession& session) {
    const sq_stream_stats stats = session.stats();
    require(stats.device_bytes == expected && stats.peak_device_bytes == expected,
            std::string(when) + ": reports " + std::to_string(stats.device_bytes) + " device bytes, peak " + std::to_string(stats.peak_device_bytes) + ", expected " + std::to_string(expected));
    require(instance.meter().held(SQ_MEM_DEVICE) == expected && instance.meter().peak(SQ_MEM_DEVICE) == expected,
            std::string(when) + ": holds " + std::to_string(instance.meter().held(SQ_MEM_DEVICE)) + " device bytes, peak " + std::to_string(instance.meter().peak(SQ_MEM_DEVICE)) + ", expected " + std::to_string(expected));
  };
  {
    StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2, .budget = expected}));
    check_bytes("after open", session);
    for (int pass = 0; pass < 3; ++pass) {
      session.begin_step(0);
      for (const sq_visit& v : visits) Lease lease(session, v.block);
      session.end_step();
      check_bytes("after a pass", session);
    }
  }
  require(instance.meter().held(SQ_MEM_DEVICE) == 0, "device bytes held after close: " + std::to_string(instance.meter().held(SQ_MEM_DEVICE)));
  // One byte less than needed is refused before anything is allocated.
  instance.meter().reset_peaks();
  const std::uint64_t allocations = instance.meter().allocations();
  const sq_stream_open_args args = open_args(blocks, schedule, {.slots = 2, .budget = expected - 1});
  std::uint64_t id = 0;
  call_refused("open over budget", {Code::GPU_OOM}, {}, [&](sq_error* e) { return instance.stream().open(instance.get(), &args, &id, e); });
  require(instance.meter().allocations() == allocations, "memory was allocated for a session that is refused by its budget");
}

}  // namespace

void add_g03_memory(Cases& cases) {
  const std::vector<std::string> forward_needs = {"linear", "operation:linear_forward", "in_process"}, both = {"linear", "operation:linear_forward", "operation:linear_backward", "in_process"};
  cases.push_back({3, "memory.workspace.forward", Kind::property, {"SQ-LIN-047"}, forward_needs, "a whole float weight in scratch", [](Trial& t) { run_workspace(t, false); }});
  cases.push_back({3, "memory.workspace.backward", Kind::property, {"SQ-LIN-047"}, {"linear", "lora", "operation:linear_backward", "in_process"}, "a whole float weight in scratch for dX", [](Trial& t) { run_workspace(t, true); }});
  cases.push_back({3, "memory.resident.forward", Kind::property, {"SQ-LIN-047", "SQ-CNV-007"}, forward_needs, "a float weight allocated behind the allocator's back", [](Trial& t) { run_resident_memory(t, false); }});
  cases.push_back({3, "memory.resident.backward", Kind::property, {"SQ-LIN-047", "SQ-CNV-007"}, both, "a float weight kept for backward", [](Trial& t) { run_resident_memory(t, true); }});
  cases.push_back({3, "memory.refused", Kind::property, {"SQ-LIN-046", "SQ-CNV-003"}, {"linear", "lora", "operation:linear_forward", "in_process"}, "a failed allocation that crashes, or leaves half a result", run_refused_memory});
  cases.push_back({3, "memory.stream_bytes", Kind::property, {"SQ-STR-033", "SQ-STR-037", "SQ-STR-038"}, {"stream"}, "weights over budget, growth during passes", run_stream_bytes});
  g03::add_module(cases);
}

}  // namespace squareq::gates
