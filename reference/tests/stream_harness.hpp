// A small model for stream tests: blocks with one 8-bit layer each, a reader that can delay and fail, a transition checker.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "reference/tests/harness.hpp"

namespace squareq::tests {

inline constexpr std::int64_t layer_out = 32, layer_in = 48;

/// Bytes of one block's extent: qweight at 0, scale and bias behind it, each at a multiple of 256.
struct BlockBytes {
  static constexpr std::uint64_t scale_at = 1536, bias_at = 1792, extent = 2048;
  std::vector<std::byte> bytes = std::vector<std::byte>(extent);

  explicit BlockBytes(std::uint32_t seed) {
    std::mt19937 random(seed);
    auto* q = reinterpret_cast<std::int8_t*>(bytes.data());
    for (int i = 0; i < layer_out * layer_in; ++i) q[i] = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
    for (int i = 0; i < layer_out; ++i) {
      reinterpret_cast<float*>(bytes.data() + scale_at)[i] = 0.001f * static_cast<float>(1 + random() % 100);
      reinterpret_cast<float*>(bytes.data() + bias_at)[i] = static_cast<float>(random() % 7);
    }
  }
};

/// Delivers extents; fails or sleeps where told. Thread-safe.
class Reader {
 public:
  explicit Reader(std::uint32_t blocks) {
    for (std::uint32_t b = 0; b < blocks; ++b) data_.emplace_back(100 + b);
  }
  static sq_status read(void* user, std::uint32_t block, std::uint64_t offset, void* destination, std::uint64_t bytes, sq_error* e) {
    auto* self = static_cast<Reader*>(user);
    const std::int64_t call = self->calls_++;
    if (self->delay_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(static_cast<std::int64_t>(self->delay_us) * (1 + call % 3)));
    if (self->fail_block == block || self->fail_call == call) {
      std::strcpy(e->message, "disk unplugged");
      std::strcpy(e->file, "model.safetensors");
      std::memcpy(destination, self->data_[block].bytes.data(), bytes / 2);  // a failed read may leave half the bytes
      return SQ_IO_ERROR;
    }
    std::memcpy(destination, self->data_[block].bytes.data() + offset, bytes);
    self->bytes_ += bytes;
    return SQ_OK;
  }
  const std::vector<std::byte>& block(std::uint32_t b) const { return data_[b].bytes; }
  std::int64_t calls() const { return calls_; }
  std::uint64_t bytes() const { return bytes_; }

  std::atomic<int> delay_us{0};
  std::atomic<std::int64_t> fail_block{-1}, fail_call{-1};

 private:
  std::vector<BlockBytes> data_;
  std::atomic<std::int64_t> calls_{0};
  std::atomic<std::uint64_t> bytes_{0};
};

/// Checks every transition against the ten legal edges and against where the block was (SQ-STR-011 to 013).
class Transitions {
 public:
  static void record(void* user, std::uint64_t, std::uint32_t block, std::int32_t from, std::int32_t to) {
    static const std::set<std::pair<int, int>> legal = {{0, 1}, {1, 2}, {2, 3}, {3, 4}, {3, 5}, {4, 1}, {4, 0}, {5, 0}, {1, 0}, {2, 0}};
    auto* self = static_cast<Transitions*>(user);
    const std::lock_guard lock(self->mutex_);
    if (!legal.contains({from, to}) || self->states_[block] != from)
      self->violations_.push_back("block " + std::to_string(block) + ": " + std::to_string(from) + " -> " + std::to_string(to));
    self->states_[block] = to;
    ++self->count_;
  }
  std::vector<std::string> violations() { const std::lock_guard lock(mutex_); return violations_; }
  int state(std::uint32_t block) { const std::lock_guard lock(mutex_); return states_[block]; }
  int count() { const std::lock_guard lock(mutex_); return count_; }

 private:
  std::mutex mutex_;
  std::map<std::uint32_t, int> states_;
  std::vector<std::string> violations_;
  int count_ = 0;
};

struct Options {
  std::uint32_t blocks = 5, slots = 2, lookahead = 8;
  std::set<std::uint32_t> residents = {};
  std::uint64_t budget = 0;
  bool poison = true, master = false;
};

/// Everything a session needs, kept alive for it.
struct World {
  CountingAllocator allocator;
  Transitions transitions;
  Reader reader;
  Options options;
  Context context;
  std::vector<std::string> names;
  std::vector<sq_part_desc> parts;
  std::vector<sq_layer_desc> layers;
  std::vector<sq_block_desc> blocks;
  std::vector<std::vector<sq_visit>> visits;
  std::vector<sq_schedule> schedules;
  sq_stream_open_args args = sized<sq_stream_open_args>();

  explicit World(Options o) : reader(o.blocks), options(std::move(o)), context(make(*this)) {
    parts = {{"qweight", SQ_I8, 2, {layer_out, layer_in}, 0}, {"scale", SQ_F32, 1, {layer_out}, BlockBytes::scale_at}, {"bias", SQ_F32, 1, {layer_out}, BlockBytes::bias_at}};
    for (std::uint32_t b = 0; b < options.blocks; ++b) names.push_back("blocks." + std::to_string(b));
    for (std::uint32_t b = 0; b < options.blocks; ++b) layers.push_back({names[b].c_str(), "bp8_v2", layer_out, layer_in, parts.data(), 3, 0});
    for (std::uint32_t b = 0; b < options.blocks; ++b)
      blocks.push_back({names[b].c_str(), BlockBytes::extent, &layers[b], 1, options.residents.contains(b) ? std::uint32_t{SQ_BLOCK_RESIDENT} : 0u});
    std::vector<sq_visit> there, back;
    std::uint32_t i = 0;
    for (std::uint32_t b = 0; b < options.blocks; ++b)
      if (!options.residents.contains(b)) there.push_back({b, options.slots ? i++ % options.slots : 0});
    back.assign(there.rbegin(), there.rend());
    visits = {there, there};
    visits[0].insert(visits[0].end(), back.begin(), back.end());
    refresh();
  }
  /// Rebuilds the argument struct after a test has changed blocks or visits.
  void refresh() {
    schedules.clear();
    for (const auto& v : visits) schedules.push_back({v.data(), static_cast<std::uint32_t>(v.size()), options.lookahead, schedules.empty() ? "train" : "forward"});
    args.slot_count = options.slots;
    args.slot_bytes = BlockBytes::extent;
    args.blocks = blocks.data();
    args.block_count = options.blocks;
    args.schedules = schedules.data();
    args.schedule_count = static_cast<std::uint32_t>(schedules.size());
    args.read = Reader::read;
    args.read_user = &reader;
    args.budget_bytes = options.budget;
    args.poison_slots = options.poison;
    args.keep_host_master = options.master;
  }
  static Context make(World& world) {
    sq_host host{};
    host.threads = 1;
    host.allocator = world.allocator.table();
    host.user = &world.transitions;
    host.on_transition = Transitions::record;
    return Context(Implementation::load(find_backend("reference")), host);
  }
};

/// Whether the leased block's bytes are those of the reader.
inline bool holds(World& world, StreamSession& session, const sq_weight_ref& ref, std::uint32_t block) {
  auto weight = sized<sq_weight>();
  sq_error e = make_error();
  check(world.context.stream().lease_weight(world.context.get(), session.id(), ref.lease, ref.layer, &weight, &e), e);
  const auto* base = static_cast<const std::byte*>(find_part(weight.parts, weight.part_count, "qweight")->tensor.data);
  return std::memcmp(base, world.reader.block(block).data(), BlockBytes::extent) == 0;
}

/// One whole pass, two leases at a time where slots allow; checks the bytes of every visit.
inline void run_pass(World& world, StreamSession& session, std::uint32_t schedule) {
  session.begin_step(schedule);
  for (const sq_visit& visit : world.visits[schedule]) {
    Lease lease(session, visit.block);
    ASSERT_TRUE(holds(world, session, lease.layer(0), visit.block)) << "block " << visit.block;
    lease.release();
  }
  session.end_step();
}

}  // namespace squareq::tests
