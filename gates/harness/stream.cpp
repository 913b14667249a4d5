#include "gates/harness/stream.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>

namespace squareq::gates {
namespace {

constexpr std::uint64_t alignment = 256;

std::vector<sq_visit> assign_slots(const std::vector<std::uint32_t>& order, std::uint32_t slots) {
  std::vector<std::int64_t> held(slots, -1);
  std::vector<sq_visit> visits;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto next_use = [&](std::int64_t block) {
      for (std::size_t j = i; j < order.size(); ++j)
        if (order[j] == block) return j;
      return order.size() + 1;
    };
    std::size_t slot = slots;
    for (std::size_t s = 0; s < slots; ++s)
      if (held[s] == order[i]) slot = s;
    if (slot == slots) {
      std::size_t latest = 0;
      for (std::size_t s = 0; s < slots; ++s) {
        // The slot of the visit before stays out of it where there is a choice, so that the load can overlap that visit.
        if (slots > 1 && !visits.empty() && visits.back().slot == s) continue;
        const std::size_t use = held[s] < 0 ? order.size() + 2 : next_use(held[s]);
        if (slot == slots || use > latest) {
          slot = s;
          latest = use;
        }
      }
      held[slot] = order[i];
    }
    visits.push_back({order[i], static_cast<std::uint32_t>(slot)});
  }
  return visits;
}

std::vector<std::uint32_t> streamed(const Blocks& blocks) {
  std::vector<std::uint32_t> order;
  for (std::uint32_t b = 0; b < blocks.count(); ++b)
    if (!(blocks.descriptions()[b].flags & SQ_BLOCK_RESIDENT)) order.push_back(b);
  return order;
}

}  // namespace

Blocks::Blocks(std::vector<std::vector<Layer>> blocks) : layers_(std::move(blocks)) {
  for (std::size_t b = 0; b < layers_.size(); ++b) {
    std::vector<std::byte> extent;
    std::vector<sq_layer_desc>& layers = layer_descriptions_.emplace_back();
    for (Layer& layer : layers_[b]) {
      std::vector<sq_part_desc>& parts = parts_.emplace_back();
      const auto add = [&](const char* name, const Guarded& tensor) {
        extent.resize((extent.size() + alignment - 1) / alignment * alignment);
        sq_part_desc part{};
        part.name = name;
        part.dtype = tensor.dtype();
        part.rank = tensor.tensor()->rank;
        std::copy_n(tensor.tensor()->shape, part.rank, part.shape);
        part.offset = extent.size();
        const std::vector<std::byte> bytes = tensor.bytes();
        extent.insert(extent.end(), bytes.begin(), bytes.end());
        parts.push_back(part);
      };
      add("qweight", layer.qweight);
      add("scale", layer.scale);
      add("zero_point", layer.zero_point);
      if (layer.has_bias) add("bias", layer.bias);
      sq_layer_desc desc{};
      desc.name = layer.name.c_str();
      desc.format = "bp8_v2";
      desc.out_features = layer.n;
      desc.in_features = layer.k;
      desc.parts = parts.data();
      desc.part_count = static_cast<std::uint32_t>(parts.size());
      layers.push_back(desc);
    }
    extent.resize((extent.size() + alignment - 1) / alignment * alignment);
    extents_.push_back(std::move(extent));
    sq_block_desc desc{};
    desc.name = names_.emplace_back("blocks." + std::to_string(b)).c_str();
    desc.extent_bytes = extents_.back().size();
    desc.layers = layers.data();
    desc.layer_count = static_cast<std::uint32_t>(layers.size());
    descriptions_.push_back(desc);
  }
}

std::uint64_t Blocks::largest_extent() const {
  std::uint64_t largest = 0;
  for (const auto& e : extents_) largest = std::max<std::uint64_t>(largest, e.size());
  return largest;
}

sq_status Blocks::read(void* user, std::uint32_t block, std::uint64_t offset, void* destination, std::uint64_t bytes, sq_error* error) {
  auto& self = *static_cast<Blocks*>(user);
  {
    const std::lock_guard lock(self.log_mutex_);
    self.log_.push_back({block, offset, bytes});
  }
  const bool counted_out = self.failing_read >= 0 && self.failing_read-- == 0;
  if (counted_out || self.failing_block == static_cast<std::int64_t>(block)) {
    if (error) {
      error->code = self.fail_code;
      std::snprintf(error->message, sizeof error->message, "the suite made the read of block %u fail", block);
    }
    return self.fail_code;
  }
  if (const std::uint32_t delay = self.delay_us) {
    Random random(self.reads_++, "delay");
    std::this_thread::sleep_for(std::chrono::microseconds(random.integer(0, delay)));
  }
  for (std::int64_t left = self.permits; left >= 0; left = self.permits) {
    if (left > 0 && self.permits.compare_exchange_strong(left, left - 1)) break;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  if (const std::uint32_t time = self.read_takes_us) std::this_thread::sleep_for(std::chrono::microseconds(time));
  std::memcpy(destination, self.extents_[block].data() + offset, bytes);
  self.bytes_read += bytes;
  return SQ_OK;
}

std::vector<Read> Blocks::reads() const {
  const std::lock_guard lock(log_mutex_);
  return log_;
}

std::vector<std::vector<Layer>> random_blocks(Random& random, const BlockShapes& shapes) {
  std::vector<std::vector<Layer>> blocks;
  for (std::size_t b = 0; b < shapes.size(); ++b) {
    std::vector<Layer>& layers = blocks.emplace_back();
    for (std::size_t i = 0; i < shapes[b].size(); ++i) {
      Problem p(0, Layer("blocks." + std::to_string(b) + ".fc" + std::to_string(i), shapes[b][i].first, shapes[b][i].second, 64, i % 2 == 1), SQ_F32);
      fill(p, random, {});
      layers.push_back(std::move(p.layer));
    }
  }
  return blocks;
}

void check_leased(Instance& instance, const Lease& lease, Blocks& blocks, std::uint32_t block) {
  for (std::uint32_t i = 0; i < blocks.layers(block); ++i) {
    const Layer& layer = blocks.layer(block, i);
    const sq_weight_ref ref = lease.layer(i);
    same_bits(layer.name + ", dequantized from its lease", dequantize(instance, ref, layer.n, layer.k, SQ_F32), dequantized(layer, SQ_F32));
    if (!layer.has_bias) continue;
    Problem p(1, Layer(layer.name, layer.n, layer.k, 64, true), SQ_F32);
    p.x.fill(0.0);
    const ForwardOutputs out = forward(instance, p, {}, &ref);
    for (std::int64_t n = 0; n < layer.n; ++n) require(out.y.at(n) == layer.bias.at(n), layer.name + ": leased bias differs at " + std::to_string(n));
  }
}

std::vector<sq_visit> ring(const Blocks& blocks, std::uint32_t slots) {
  std::vector<sq_visit> visits;
  for (const std::uint32_t block : streamed(blocks)) visits.push_back({block, static_cast<std::uint32_t>(visits.size()) % slots});
  const std::vector<sq_visit> back(visits.rbegin(), visits.rend());
  visits.insert(visits.end(), back.begin(), back.end());
  return visits;
}

std::vector<sq_visit> forward_ring(const Blocks& blocks, std::uint32_t slots) {
  const std::vector<std::uint32_t> order = streamed(blocks);
  const std::size_t n = order.size();
  std::vector<sq_visit> visits;
  for (std::size_t i = 0; i < n; ++i) visits.push_back({order[i], slots >= n ? static_cast<std::uint32_t>(i) : 0u});
  if (slots < 2 || slots >= n) return visits;
  const std::size_t kept = slots - 2;
  std::vector<bool> own(n, false);
  for (std::size_t i = 0; i < kept; ++i) {
    const std::size_t at = (2 * i + 1) * n / (2 * kept);
    own[at] = true;
    visits[at].slot = static_cast<std::uint32_t>(i + 2);
  }
  std::uint32_t turn = 0;
  for (std::size_t i = 0; i < n; ++i)
    if (!own[i]) visits[i].slot = turn++ % 2;
  return visits;
}

std::vector<sq_visit> sawtooth(const Blocks& blocks, std::uint32_t slots) {
  std::vector<std::uint32_t> order = streamed(blocks);
  const std::vector<std::uint32_t> back(order.rbegin(), order.rend());
  order.insert(order.end(), back.begin(), back.end());
  return assign_slots(order, slots);
}

std::vector<sq_visit> forward_only(const Blocks& blocks, std::uint32_t slots) { return assign_slots(streamed(blocks), slots); }

std::uint64_t loads_of(const std::vector<sq_visit>& visits, std::uint32_t slots, int passes) {
  std::vector<std::int64_t> held(slots, -1);
  std::uint64_t loads = 0;
  for (int p = 0; p < passes; ++p)
    for (const sq_visit& v : visits) {
      if (held[v.slot] != v.block) ++loads;
      held[v.slot] = v.block;
    }
  return loads;
}

sq_schedule schedule_of(const std::vector<sq_visit>& visits, std::uint32_t lookahead) {
  sq_schedule schedule{};
  schedule.visits = visits.data();
  schedule.visit_count = static_cast<std::uint32_t>(visits.size());
  schedule.lookahead = lookahead;
  schedule.name = "train";
  return schedule;
}

sq_stream_open_args open_args(Blocks& blocks, const sq_schedule& schedule, const SessionSpec& spec) {
  auto args = sized<sq_stream_open_args>();
  args.slot_count = spec.slots;
  args.slot_bytes = spec.slots ? blocks.largest_extent() : 0;
  args.blocks = blocks.descriptions().data();
  args.block_count = blocks.count();
  args.schedules = &schedule;
  args.schedule_count = 1;
  args.read = Blocks::read;
  args.read_user = &blocks;
  args.budget_bytes = spec.budget;
  args.poison_slots = 1;
  args.keep_host_master = spec.host_master ? 1 : 0;
  return args;
}

Streamed::Streamed(Trial& trial, const BlockShapes& shapes, const SessionSpec& session, std::initializer_list<std::uint32_t> residents, Order order)
    : random(trial.random("blocks")), blocks(random_blocks(random, shapes)), spec(session) {
  for (const std::uint32_t block : residents) blocks.set_resident(block, true);
  visits = order(blocks, spec.slots);  // which blocks are resident decides the order
  schedule = schedule_of(visits, spec.lookahead);
}

}  // namespace squareq::gates
