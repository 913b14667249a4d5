// Gate 6: what a session is told about blocks is what it lends out, and what does not hold together is refused before anything is allocated.
#include <functional>

#include "gates/harness/registry.hpp"
#include "gates/harness/stream.hpp"
#include "squareq/tensor.hpp"

namespace squareq::gates {
namespace {

Blocks three_blocks(Trial& trial) {
  Random random = trial.random("blocks");
  return Blocks(random_blocks(random, {{{24, 70}, {5, 24}}, {{130, 64}}, {{9, 33}, {12, 9}, {1, 1}}}));
}

/// Names, features, parts, dtypes and shapes of every leased layer are those of the description; parts lie where it puts them.
void run_described(Trial& trial) {
  Blocks blocks = three_blocks(trial);
  const std::vector<sq_visit> visits = forward_only(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2}));
  session.begin_step(0);
  for (const sq_visit& v : visits) {
    const Lease lease(session, v.block);
    const sq_block_desc& block = blocks.descriptions()[v.block];
    const auto* extent = static_cast<const std::byte*>(nullptr);
    for (std::uint32_t i = 0; i < block.layer_count; ++i) {
      const sq_layer_desc& told = block.layers[i];
      auto weight = sized<sq_weight>();
      call_ok("lease_weight", {}, [&](sq_error* e) { return instance.stream().lease_weight(instance.get(), session.id(), lease.layer(i).lease, i, &weight, e); });
      require(weight.name && std::string(weight.name) == told.name, std::string(told.name) + ": leased under another name");
      require(weight.format && std::string(weight.format) == told.format, std::string(told.name) + ": leased in another format");
      require(weight.out_features == told.out_features && weight.in_features == told.in_features, std::string(told.name) + ": leased with other features");
      require(weight.part_count == told.part_count, std::string(told.name) + ": " + std::to_string(weight.part_count) + " parts of " + std::to_string(told.part_count));
      for (std::uint32_t p = 0; p < told.part_count; ++p) {
        const sq_part_desc& part = told.parts[p];
        const sq_part* leased = find_part(weight.parts, weight.part_count, part.name);
        const std::string name = std::string(told.name) + "." + part.name;
        require(leased != nullptr, name + " is missing in the lease");
        require(leased->tensor.dtype == part.dtype && leased->tensor.rank == part.rank && std::equal(part.shape, part.shape + part.rank, leased->tensor.shape), name + ": leased with another dtype or shape");
        const auto* start = static_cast<const std::byte*>(leased->tensor.data) - part.offset;
        if (!extent) extent = start;
        require(start == extent, name + " does not lie at its offset " + std::to_string(part.offset) + " of the extent");
        require(reinterpret_cast<std::uintptr_t>(leased->tensor.data) % 256 == 0, name + " is not aligned to 256 bytes");
      }
    }
    check_leased(instance, lease, blocks, v.block);
  }
  session.end_step();
}

/// The caller's tables may go as soon as open has returned.
void run_copied(Trial& trial) {
  Blocks blocks = three_blocks(trial);
  Instance& instance = trial.instance("stream");
  std::optional<StreamSession> session;
  std::vector<sq_visit> kept;
  {
    std::vector<sq_visit> visits = forward_only(blocks, 2);
    kept = visits;
    std::string name = "a name that goes";
    sq_schedule schedule = schedule_of(visits, 1);
    schedule.name = name.c_str();
    std::vector<sq_block_desc> descriptions = blocks.descriptions();
    std::vector<std::vector<sq_layer_desc>> layers;
    std::vector<std::vector<sq_part_desc>> parts;
    for (const sq_block_desc& b : descriptions) {
      layers.emplace_back(b.layers, b.layers + b.layer_count);
      for (sq_layer_desc& l : layers.back()) parts.emplace_back(l.parts, l.parts + l.part_count);
    }
    std::size_t at = 0;
    for (std::size_t b = 0; b < descriptions.size(); ++b) {
      for (sq_layer_desc& l : layers[b]) l.parts = parts[at++].data();
      descriptions[b].layers = layers[b].data();
    }
    sq_stream_open_args args = open_args(blocks, schedule, {.slots = 2});
    args.blocks = descriptions.data();
    session.emplace(instance.context(), args);
    for (sq_visit& v : visits) v = {77, 77};
    for (auto& l : layers)
      for (sq_layer_desc& layer : l) layer = {};
    for (auto& p : parts)
      for (sq_part_desc& part : p) part = {};
    for (sq_block_desc& b : descriptions) b = {};
    name.assign(name.size(), '!');
  }
  for (int pass = 0; pass < 2; ++pass) {
    session->begin_step(0);
    for (const sq_visit& v : kept) {
      const Lease lease(*session, v.block);
      check_leased(instance, lease, blocks, v.block);
    }
    session->end_step();
  }
}

/// A description with one thing wrong.
struct Tables {
  std::vector<sq_block_desc> blocks;
  std::vector<sq_layer_desc> layers;  // of block 0
  std::vector<sq_part_desc> parts;    // of its layer 0
  std::vector<sq_visit> visits;
  sq_schedule schedule{};
  sq_stream_open_args args{};
};

struct Wrong {
  const char* slug;
  std::vector<Code> codes;
  const char* requirement;
  std::vector<std::string_view> names;
  void (*change)(Tables&);
};

const std::vector<Wrong>& wrong_tables() {
  static const std::vector<Wrong> all = {
      {"part_offset", {Code::CALL_ALIGN}, "SQ-STR-005", {"blocks.0", "255", "256"}, [](Tables& t) { t.parts[0].offset = 255; }},
      {"part_past_extent", {Code::CALL_SHAPE}, "SQ-STR-005", {"blocks.0"}, [](Tables& t) { t.parts[1].offset = t.blocks[0].extent_bytes; }},
      {"part_offset_overflow", {Code::CALL_SHAPE}, "SQ-STR-005", {"blocks.0"}, [](Tables& t) { t.parts[1].offset = ~0ull - 255; }},
      {"extent_size", {Code::CALL_ALIGN, Code::CALL_SHAPE}, "SQ-STR-003", {"blocks.0", "256"}, [](Tables& t) { t.blocks[0].extent_bytes += 8; }},
      {"extent_empty", {Code::CALL_ALIGN, Code::CALL_SHAPE}, "SQ-STR-003", {"blocks.0"}, [](Tables& t) { t.blocks[0].extent_bytes = 0; }},
      {"block_larger_than_slot", {Code::CALL_SHAPE, Code::CALL_VALUE, Code::GPU_OOM}, "SQ-STR-005", {"blocks."}, [](Tables& t) { t.args.slot_bytes -= 256; }},
      {"schedule_block", {Code::CALL_VALUE}, "SQ-STR-027", {"3"}, [](Tables& t) { t.visits[1].block = 3; }},
      {"schedule_slot", {Code::CALL_VALUE}, "SQ-STR-027", {"2"}, [](Tables& t) { t.visits[1].slot = 2; }},
      {"schedule_resident", {Code::CALL_VALUE}, "SQ-STR-027", {"blocks.1"}, [](Tables& t) { t.blocks[1].flags = SQ_BLOCK_RESIDENT; }},
      {"part_missing", {Code::CALL_PART}, "SQ-LIN-044", {"blocks.0.fc0", "scale"}, [](Tables& t) { t.parts[1].name = "zero_point", t.parts[2].name = "bias"; }},
      {"part_unknown", {Code::CALL_VALUE}, "SQ-LIN-044", {"blocks.0.fc0", "codes"}, [](Tables& t) { t.parts[2].name = "codes"; }},
      {"part_twice", {Code::CALL_VALUE}, "SQ-LIN-044", {"blocks.0.fc0", "scale"}, [](Tables& t) { t.parts[2].name = "scale"; }},
      {"part_dtype", {Code::CALL_DTYPE}, "SQ-LIN-040", {"blocks.0.fc0", "scale", "f16|float16|half"}, [](Tables& t) { t.parts[1].dtype = SQ_F16; }},
      {"part_shape", {Code::CALL_SHAPE}, "SQ-LIN-041", {"blocks.0.fc0", "23", "24"}, [](Tables& t) { t.parts[1].shape[0] = 23; }},
      {"part_negative", {Code::CALL_SHAPE}, "SQ-LIN-041", {"-24"}, [](Tables& t) { t.parts[0].shape[0] = -24; }},
      {"format_unknown", {Code::CALL_UNSUPPORTED, Code::CALL_VALUE}, "SQ-LIN-044", {"bp9_v9"}, [](Tables& t) { t.layers[0].format = "bp9_v9"; }},
      {"no_read", {Code::CALL_NULL}, "SQ-ERR-007", {"read"}, [](Tables& t) { t.args.read = nullptr; }},
      {"no_block_table", {Code::CALL_NULL}, "SQ-ERR-007", {"blocks"}, [](Tables& t) { t.args.blocks = nullptr; }},
  };
  return all;
}

void run_wrong(Trial& trial, const Wrong& wrong) {
  Blocks blocks = three_blocks(trial);
  Instance& instance = trial.instance("stream");
  Tables t;
  t.blocks = blocks.descriptions();
  t.layers.assign(t.blocks[0].layers, t.blocks[0].layers + t.blocks[0].layer_count);
  t.parts.assign(t.layers[0].parts, t.layers[0].parts + t.layers[0].part_count);
  t.visits = forward_only(blocks, 2);
  t.schedule = schedule_of(t.visits, 1);
  t.args = open_args(blocks, t.schedule, {.slots = 2});
  t.layers[0].parts = t.parts.data();
  t.blocks[0].layers = t.layers.data();
  t.args.blocks = t.blocks.data();
  wrong.change(t);
  std::uint64_t id = 12345;
  const std::uint64_t allocations = instance.meter().allocations();
  const std::string what = std::string("open with a wrong table: ") + wrong.slug;
  const sq_error e = call_refused(what, wrong.codes, {}, [&](sq_error* error) { return instance.stream().open(instance.get(), &t.args, &id, error); });
  must_name(what, e, wrong.names);
  require(instance.meter().allocations() == allocations, what + ": memory was allocated before the refusal");
  require(blocks.reads().empty(), what + ": a block was read before the refusal");
  require(id == 12345, what + ": the session id was written although the call was refused");
  // And the good table still opens.
  const sq_schedule schedule = schedule_of(t.visits, 1);
  if (std::string(wrong.slug).starts_with("schedule")) return;
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2}));
}

/// Memory refused at every point of open: a typed error, everything given back, and the next open works.
void run_allocation_refused(Trial& trial) {
  Blocks blocks = three_blocks(trial);
  blocks.set_resident(1, true);
  const std::vector<sq_visit> visits = forward_only(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  for (const bool master : {false, true}) {
    const sq_stream_open_args args = open_args(blocks, schedule, {.slots = 2, .host_master = master});
    const std::uint64_t held = instance.meter().held();
    int refused = 0;
    for (std::int64_t k = 0; k < 64; ++k) {
      std::uint64_t id = 0;
      sq_error e = make_error();
      instance.meter().refuse_from(k);
      const auto status = static_cast<Code>(instance.stream().open(instance.get(), &args, &id, &e));
      instance.meter().refuse_from(-1);
      if (status == Code::OK) {
        call_ok("close", {}, [&](sq_error* error) { return instance.stream().close(instance.get(), id, error); });
        break;
      }
      ++refused;
      require(status == Code::GPU_OOM || status == Code::HOST_OOM, "allocation " + std::to_string(k) + " of open refused: answered " + std::string(code_name(status)));
      require(instance.meter().held() == held, "allocation " + std::to_string(k) + " of open refused: " + std::to_string(instance.meter().held() - held) + " bytes were kept");
    }
    require(refused >= (master ? 2 : 1), "open makes " + std::to_string(refused) + " allocations: its memory does not come from the host's allocator");
    StreamSession session(instance.context(), args);
    session.begin_step(0);
    for (const sq_visit& v : visits) {
      const Lease lease(session, v.block);
      check_leased(instance, lease, blocks, v.block);
    }
    session.end_step();
  }
}

/// With keep_host_master the source is read once per block, whatever the number of passes.
void run_host_master(Trial& trial) {
  Blocks blocks = three_blocks(trial);
  const std::vector<sq_visit> visits = ring(blocks, 2);
  const sq_schedule schedule = schedule_of(visits, 1);
  Instance& instance = trial.instance("stream");
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 2, .host_master = true}));
  for (int pass = 0; pass < 3; ++pass) {
    session.begin_step(0);
    for (const sq_visit& v : visits) {
      const Lease lease(session, v.block);
      check_leased(instance, lease, blocks, v.block);
    }
    session.end_step();
  }
  std::uint64_t all = 0;
  for (const sq_block_desc& b : blocks.descriptions()) all += b.extent_bytes;
  require(blocks.bytes_read == all, "read " + std::to_string(blocks.bytes_read) + " bytes from the source, each of " + std::to_string(all) + " once is enough");
  require(session.stats().host_bytes >= all, "reports " + std::to_string(session.stats().host_bytes) + " bytes of host masters, the blocks hold " + std::to_string(all));
  require(session.stats().loads == loads_of(visits, 2, 3), "makes " + std::to_string(session.stats().loads) + " loads, the schedule needs " + std::to_string(loads_of(visits, 2, 3)));
}

}  // namespace

void add_g06_registry(Cases& cases) {
  const std::vector<std::string> needs = {"stream"}, computes = {"stream", "linear", "operation:dequantize", "operation:linear_forward"};
  cases.push_back({6, "registry.described", Kind::vector, {"SQ-STR-002", "SQ-STR-040"}, computes, "layers bound to another's name, shape or offset", run_described});
  cases.push_back({6, "registry.tables_are_copied", Kind::vector, {"SQ-CNV-004", "SQ-STR-040"}, computes, "a table of the caller's used after open has returned", run_copied});
  for (const Wrong& wrong : wrong_tables())
    cases.push_back({6, std::string("registry.refused.") + wrong.slug, Kind::vector, {wrong.requirement, "SQ-CNV-003"}, needs, "a table that does not hold together, found while loading or never",
                     [&wrong](Trial& t) { run_wrong(t, wrong); }});
  cases.push_back({6, "registry.allocation_refused", Kind::property, {"SQ-STR-053", "SQ-CNV-003"}, computes, "memory kept, or a half-open session, after a failed allocation", run_allocation_refused});
  cases.push_back({6, "registry.host_master", Kind::property, {"SQ-STR-001", "SQ-STR-026"}, computes, "masters that are read again, or filled with another block", run_host_master});
}

}  // namespace squareq::gates
