// Loading through the streaming seam: what is leased is what was delivered, for streamed and for resident blocks.
#include "gates/g02_loading/g02_loading.hpp"
#include "gates/harness/stream.hpp"
#include "squareq/tensor.hpp"

namespace squareq::gates::g02 {
namespace {

std::vector<std::vector<Layer>> blocks_of_three(Random& random, int count) {
  std::vector<std::vector<Layer>> blocks;
  for (int b = 0; b < count; ++b) {
    std::vector<Layer>& layers = blocks.emplace_back();
    for (int i = 0; i < 3; ++i) {
      Problem p(0, Layer("blocks." + std::to_string(b) + ".fc" + std::to_string(i), random.integer(1, 60), random.integer(1, 90), 64, i == 1), SQ_F32);
      fill(p, random, {});
      layers.push_back(std::move(p.layer));
    }
  }
  return blocks;
}

/// Parts as leased against the suite's own bytes.
void check_block(Instance& instance, StreamSession& session, Blocks& blocks, std::uint32_t block) {
  const Lease lease(session, block);
  for (std::uint32_t i = 0; i < blocks.layers(block); ++i) {
    const Layer& layer = blocks.layer(block, i);
    auto weight = sized<sq_weight>();
    const sq_weight_ref ref = lease.layer(i);
    call_ok("lease_weight", {}, [&](sq_error* e) { return instance.stream().lease_weight(instance.get(), session.id(), ref.lease, i, &weight, e); });
    require(weight.out_features == layer.n && weight.in_features == layer.k, layer.name + ": leased features differ from the layer's");
    require(weight.part_count == (layer.has_bias ? 4u : 3u), layer.name + ": leased with " + std::to_string(weight.part_count) + " parts");
    const auto check_part = [&](const char* name, const Guarded& tensor) {
      const sq_part* part = find_part(weight.parts, weight.part_count, name);
      require(part != nullptr, layer.name + ": no part '" + name + "' in the lease");
      require(shape_text(part->tensor) == shape_text(*tensor.tensor()), layer.name + "." + name + ": shape " + shape_text(part->tensor));
      require(reinterpret_cast<std::uintptr_t>(part->tensor.data) % 256 == 0, layer.name + "." + name + " is not aligned to 256 bytes");
      const auto expected = tensor.bytes();
      same_bytes(layer.name + "." + name, {static_cast<const std::byte*>(part->tensor.data), expected.size()}, expected);
    };
    check_part("qweight", layer.qweight);
    check_part("scale", layer.scale);
    check_part("zero_point", layer.zero_point);
    if (layer.has_bias) check_part("bias", layer.bias);
  }
}

void run_streamed(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(blocks_of_three(random, 4));
  const std::vector<sq_visit> visits = sawtooth(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2}));
  for (int pass = 0; pass < 3; ++pass) {
    session.begin_step(0);
    for (const sq_visit& v : visits) check_block(instance, session, blocks, v.block);
    session.end_step();
  }
  const sq_stream_stats stats = session.stats();
  require(stats.loads == loads_of(visits, 2, 3), "3 passes made " + std::to_string(stats.loads) + " loads, the schedule needs " + std::to_string(loads_of(visits, 2, 3)));
}

void run_resident(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(blocks_of_three(random, 3));
  for (std::uint32_t b = 0; b < 3; ++b) blocks.set_resident(b, true);
  const sq_schedule schedule = schedule_of({}, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 0}));
  // Residents are leased at any time, in any order.
  for (const std::uint32_t b : {2u, 0u, 1u, 1u}) check_block(instance, session, blocks, b);
}

/// Dequantize through a lease equals dequantize of the same weight given directly.
void run_dequantize(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(blocks_of_three(random, 2));
  const std::vector<sq_visit> visits = forward_only(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2}));
  session.begin_step(0);
  for (const sq_visit& v : visits) {
    const Lease lease(session, v.block);
    for (std::uint32_t i = 0; i < blocks.layers(v.block); ++i) {
      Layer& layer = blocks.layer(v.block, i);
      const DirectWeight direct(layer);
      const sq_weight_ref leased = lease.layer(i);
      Guarded a("out", Role::out, SQ_F32, {layer.n, layer.k}), b("out", Role::out, SQ_F32, {layer.n, layer.k});
      auto args = sized<sq_dequantize_args>();
      args.weight = &leased;
      args.out = a.tensor();
      call_ok("dequantize of a lease", {&a}, [&](sq_error* e) { return instance.linear().dequantize(instance.get(), &args, e); });
      args.weight = direct.ref();
      args.out = b.tensor();
      call_ok("dequantize", {&b}, [&](sq_error* e) { return instance.linear().dequantize(instance.get(), &args, e); });
      same_bits(layer.name, a, b);
    }
  }
  session.end_step();
}

}  // namespace

void add_lease(Cases& cases) {
  cases.push_back({2, "loading.lease.streamed", Kind::property, {"SQ-STR-040", "SQ-STR-026"}, {"stream"}, "a slot overwritten or bound to another block's bytes", run_streamed});
  cases.push_back({2, "loading.lease.resident", Kind::property, {"SQ-STR-040", "SQ-STR-041"}, {"stream"}, "residents that need a visit", run_resident});
  cases.push_back({2, "loading.lease.dequantize", Kind::differential, {"SQ-STR-046"}, {"stream", "linear", "operation:dequantize"}, "leased layer index or part offset wrong", run_dequantize});
}

}  // namespace squareq::gates::g02
