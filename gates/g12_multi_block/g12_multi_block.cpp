// Gate 12: many blocks through few slots. Every number equals the resident run's bit for bit, whatever the ring, the lookahead, the order.
#include <numeric>

#include "gates/g09_end_to_end/training.hpp"
#include "gates/harness/registry.hpp"
#include "gates/harness/stream.hpp"

namespace squareq::gates {
namespace {

using namespace g09;

/// Seven blocks whose extents differ by a factor of eight.
const std::vector<std::int64_t> uneven = {100, 33, 260, 64, 7, 129, 40};

/// Training steps through `slots`, against the same steps on direct weights.
void run_uneven(Trial& trial, std::uint32_t slots, std::uint32_t lookahead, bool own_ring) {
  Model model(trial, uneven);
  Instance& instance = trial.instance("stream");
  TrainState resident = model.start, streamed = model.start;
  const auto expected = train(instance, model, direct_source(model), resident, 2);
  const std::vector<sq_visit> visits = own_ring ? ring(model.blocks, slots) : sawtooth(model.blocks, slots);
  const sq_schedule schedule = schedule_of(visits, lookahead);
  model.blocks.delay_us = 500;
  StreamSession session(instance.context(), open_args(model.blocks, schedule, {.slots = slots, .lookahead = lookahead}));
  const auto actual = train(instance, model, leased_source(session), streamed, 2);
  same_traces("streamed against resident", actual, expected);
  same_state("streamed against resident", streamed, resident);
  require(session.stats().loads == loads_of(visits, slots, 2), "made " + std::to_string(session.stats().loads) + " loads, the schedule needs " + std::to_string(loads_of(visits, slots, 2)));
}

/// Real widths: small tensors hide races between a slot's load and its use.
void run_wide(Trial& trial) {
  Random random = trial.random("blocks");
  Blocks blocks(random_blocks(random, {{{1024, 1024}}, {{1024, 1024}}, {{1536, 1024}}, {{1024, 1024}}}));
  const std::vector<sq_visit> visits = ring(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 2);
  Instance& instance = trial.instance("stream");
  Guarded x("x", Role::in, SQ_F32, {2, 1024});
  x.fill([&] { return random.normal(); });
  const auto call = [&](const Layer& layer, const sq_weight_ref* ref) {
    Guarded y("y", Role::out, SQ_F32, {2, layer.n});
    auto args = sized<sq_linear_forward_args>();
    args.weight = ref;
    args.x = x.tensor();
    args.y = y.tensor();
    call_ok("linear_forward of " + layer.name, {&x, &y}, [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); });
    return y;
  };
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2, .lookahead = 2}));
  for (int pass = 0; pass < 2; ++pass) {
    session.begin_step(0);
    for (const sq_visit& v : visits) {
      const Lease lease(session, v.block);
      const Layer& layer = blocks.layer(v.block, 0);
      const sq_weight_ref ref = lease.layer(0);
      const DirectWeight direct(layer);
      same_bits(layer.name + ", pass " + std::to_string(pass), call(layer, &ref), call(layer, direct.ref()));
    }
    session.end_step();
  }
}

/// Any order of visits, repeats included, through any slots.
void run_random_orders(Trial& trial) {
  Random random = trial.random("data");
  for (int round = 0; round < 12; ++round) {
    const auto n = static_cast<std::uint32_t>(random.integer(1, 6)), slots = static_cast<std::uint32_t>(random.integer(1, 4));
    std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> shapes;
    for (std::uint32_t b = 0; b < n; ++b) shapes.push_back({{random.integer(1, 60), random.integer(1, 90)}, {random.integer(1, 9), random.integer(1, 70)}});
    Blocks blocks(random_blocks(random, shapes));
    std::vector<sq_visit> visits;
    const std::int64_t count = random.integer(1, 12);
    // A block's slot is fixed: what a session makes of a block in two slots at once is another question.
    std::vector<std::uint32_t> slot_of;
    for (std::uint32_t b = 0; b < n; ++b) slot_of.push_back(static_cast<std::uint32_t>(random.integer(0, slots - 1)));
    for (std::int64_t i = 0; i < count; ++i) {
      const auto block = static_cast<std::uint32_t>(random.integer(0, n - 1));
      visits.push_back({block, slot_of[block]});
    }
    const auto lookahead = static_cast<std::uint32_t>(random.integer(0, 5));
    const sq_schedule schedule = schedule_of(visits, lookahead);
    blocks.delay_us = 200;
    Instance& instance = trial.instance("stream");
    StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = slots, .lookahead = lookahead}));
    for (int pass = 0; pass < 2; ++pass) {
      session.begin_step(0);
      for (const sq_visit& v : visits) {
        const Lease lease(session, v.block);
        check_leased(instance, lease, blocks, v.block);
      }
      session.end_step();
    }
    require(session.stats().loads == loads_of(visits, slots, 2), "round " + std::to_string(round) + ": " + std::to_string(session.stats().loads) + " loads, the schedule needs " + std::to_string(loads_of(visits, slots, 2)));
  }
}

/// With checkpointing a block's backward visit recomputes what forward had; without, forward's own results are used. No bit differs.
void run_recompute(Trial& trial) {
  Random random = trial.random("data");
  Blocks blocks(random_blocks(random, {{{70, 40}}, {{40, 70}}, {{70, 40}}, {{40, 70}}}));
  const std::vector<sq_visit> visits = ring(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2}));
  std::vector<std::unique_ptr<Problem>> problems;
  std::vector<std::unique_ptr<ForwardOutputs>> saved;
  session.begin_step(0);
  for (std::size_t v = 0; v < visits.size(); ++v) {
    const std::uint32_t block = visits[v].block;
    const Lease lease(session, block);
    const sq_weight_ref ref = lease.layer(0);
    if (v < blocks.count()) {
      const Layer& layer = blocks.layer(block, 0);
      Problem& p = *problems.emplace_back(std::make_unique<Problem>(4, Layer(layer.name, layer.n, layer.k, 64, false), SQ_F32));
      fill(p, random, {.rank = 3});
      p.activation = SQ_ACT_GELU_TANH;
      saved.push_back(std::make_unique<ForwardOutputs>(forward(instance, p, {.preactivation = true, .h = true}, &ref)));
      continue;
    }
    Problem& p = *problems[block];
    const ForwardOutputs again = forward(instance, p, {.preactivation = true, .h = true}, &ref);
    same_bits(p.layer.name + ": recomputed y", again.y, saved[block]->y);
    Guarded dy("dy", Role::in, SQ_F32, {4, p.layer.n});
    dy.fill([&] { return random.normal(); });
    const auto gradients = [&](const ForwardOutputs& from) {
      Guarded pre("preactivation", Role::in, SQ_F32, {4, p.layer.n}), h("h", Role::in, SQ_F32, {4, 3});
      pre.set_bytes(from.preactivation->bytes());
      h.set_bytes(from.h->bytes());
      return backward(instance, p, dy, &pre, &h, {}, &ref);
    };
    const BackwardOutputs kept = gradients(*saved[block]), recomputed = gradients(again);
    same_bits(p.layer.name + ": dX", *recomputed.dx, *kept.dx);
    same_bits(p.layer.name + ": dA", *recomputed.da_t, *kept.da_t);
    same_bits(p.layer.name + ": dB", *recomputed.db_t, *kept.db_t);
  }
  session.end_step();
}

/// Residents and streamed blocks in one model, at every number of residents.
void run_residents(Trial& trial) {
  Model model(trial, uneven);
  Instance& instance = trial.instance("stream");
  TrainState plain = model.start;
  const auto expected = train(instance, model, direct_source(model), plain, 1);
  for (std::uint32_t residents = 0; residents <= uneven.size(); residents += 2) {
    for (std::uint32_t b = 0; b < model.blocks.count(); ++b) model.blocks.set_resident(b, b * residents % uneven.size() < residents);
    const std::vector<sq_visit> visits = ring(model.blocks, 2);
    const sq_schedule schedule = schedule_of(visits, 1);
    StreamSession session(instance.context(), open_args(model.blocks, schedule, {.slots = 2}));
    TrainState state = model.start;
    same_traces(std::to_string(residents) + " residents", train(instance, model, leased_source(session), state, 1), expected);
  }
}

/// Training loads 2N - 2C, forward passes N - C + 2, in steady state: the counts of spec/60-streaming.md for its own two rings.
void run_loads(Trial& trial) {
  Random random = trial.random("blocks");
  for (const std::uint32_t n : {1u, 2u, 5u, 8u})
    for (std::uint32_t c = 1; c <= n; ++c) {
      Blocks blocks(random_blocks(random, std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>>(n, {{3, 20}})));
      const std::vector<sq_visit> training = ring(blocks, c), sampling = forward_ring(blocks, c);
      const sq_schedule schedules[] = {schedule_of(training, 1), schedule_of(sampling, 1)};
      for (const std::uint32_t which : {0u, 1u}) {
        Instance& instance = trial.instance("stream");
        StreamSession session(instance.context(), open_args(blocks, schedules[which], {.slots = c}));
        std::uint64_t before = 0;
        for (int pass = 0; pass < 4; ++pass) {
          session.begin_step(0);
          for (const sq_visit& v : which ? sampling : training) Lease lease(session, v.block);
          session.end_step();
          const std::uint64_t loads = session.stats().loads - before;
          before = session.stats().loads;
          if (pass == 0) continue;
          const std::uint64_t wanted = c >= n ? 0 : which == 0 ? 2 * (n - c) : c == 1 ? n : c == n - 1 ? 2 : n - c + 2;
          require(loads == wanted, std::string(which ? "a forward pass" : "a training pass") + " over " + std::to_string(n) + " blocks in " + std::to_string(c) + " slots makes " + std::to_string(loads) +
                                       " loads in steady state, " + std::to_string(wanted) + " are enough");
        }
      }
    }
}

}  // namespace

void add_g12_multi_block(Cases& cases) {
  const std::vector<std::string> trains = {"stream", "linear", "lora", "operation:quantize", "operation:linear_forward", "operation:linear_backward"};
  const std::vector<std::string> computes = {"stream", "linear", "operation:dequantize", "operation:linear_forward"};
  const auto uneven_case = [&](std::uint32_t slots, std::uint32_t lookahead, bool own_ring) {
    cases.push_back({12, "multi_block.uneven.slots" + std::to_string(slots) + ".lookahead" + std::to_string(lookahead) + (own_ring ? ".ring" : ".belady"), Kind::property, {"SQ-STR-046", "SQ-STR-025", "SQ-MOD-015"}, trains,
                     "a slot of the wrong size, a race that equal blocks hide, a choice that depends on the ring", [=](Trial& t) { run_uneven(t, slots, lookahead, own_ring); }});
  };
  for (const std::uint32_t slots : {1u, 2u, 4u, 6u}) uneven_case(slots, 1, true);
  for (const std::uint32_t lookahead : {0u, 3u}) uneven_case(3, lookahead, false);
  cases.push_back({12, "multi_block.wide", Kind::property, {"SQ-STR-046", "SQ-STR-040"}, {"stream", "linear", "operation:linear_forward"}, "a race that small tensors hide", run_wide});
  cases.push_back({12, "multi_block.random_orders", Kind::property, {"SQ-STR-040", "SQ-STR-026", "SQ-STR-025"}, computes, "an order of visits that the loader did not expect", run_random_orders});
  cases.push_back({12, "multi_block.recompute", Kind::property, {"SQ-STR-046", "SQ-LOR-004", "SQ-MOD-015"}, {"stream", "linear", "lora", "operation:linear_forward", "operation:linear_backward"},
                   "a recomputed forward that differs from the first", run_recompute});
  cases.push_back({12, "multi_block.residents", Kind::property, {"SQ-STR-046", "SQ-STR-041", "SQ-MOD-015"}, trains, "residents bound to a slot, streamed blocks to a resident", run_residents});
  cases.push_back({12, "multi_block.loads", Kind::property, {"SQ-STR-022", "SQ-STR-023", "SQ-STR-026", "SQ-STR-060"}, {"stream"}, "residency rebuilt every pass, reuse lost at a turnaround", run_loads});
}

}  // namespace squareq::gates
