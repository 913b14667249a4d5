// A small model to stream: blocks of one quantized layer each, with a source that can fail, delay and be counted.
#pragma once

#include <chrono>
#include <thread>
#include <tuple>

#include "support.hpp"

namespace squareq::test {

inline constexpr std::int64_t kOut = 24, kIn = 64;

/// What a source does wrong: returns `code` for the reads of `block` from number `first` on, `times` times.
struct Fault {
  std::uint32_t block = 0xFFFFFFFFu;
  std::int64_t first = 0;
  std::int64_t times = 0;
};

class TestModel {
 public:
  explicit TestModel(std::uint32_t blocks, std::vector<std::uint32_t> residents = {}, std::uint64_t extra = 0) : blocks_(blocks) {
    const std::uint64_t q = static_cast<std::uint64_t>(kOut * kIn);
    const auto aligned = [](std::uint64_t v) { return (v + 255) / 256 * 256; };
    extent_ = aligned(q) + aligned(kOut * 4) + extra;
    parts_ = {{"qweight", SQ_I8, 2, {kOut, kIn}, 0}, {"scale", SQ_F32, 1, {kOut}, aligned(q)}};
    layer_ = {"blocks.x.proj", "bp8_v2", kOut, kIn, parts_.data(), 2, 0};
    std::mt19937 random(5);
    for (std::uint32_t b = 0; b < blocks; ++b) {
      std::vector<std::byte>& bytes = extents_.emplace_back(extent_, std::byte{0});
      for (std::uint64_t i = 0; i < q; ++i) bytes[i] = static_cast<std::byte>(static_cast<int>(random() % 255) - 127);
      for (std::int64_t n = 0; n < kOut; ++n) {
        const float s = 0.01f * static_cast<float>(random() % 100 + 1);
        std::memcpy(bytes.data() + aligned(q) + static_cast<std::size_t>(n) * 4, &s, 4);
      }
      names_.push_back("blocks." + std::to_string(b));
    }
    for (std::uint32_t b = 0; b < blocks; ++b) {
      const bool resident = std::find(residents.begin(), residents.end(), b) != residents.end();
      descs_.push_back({names_[b].c_str(), extent_, &layer_, 1, resident ? static_cast<std::uint32_t>(SQ_BLOCK_RESIDENT) : 0u});
    }
    reads_.assign(blocks, 0);
  }

  sq_stream_open_args open_args(std::uint32_t slots, const std::vector<sq_schedule>& schedules) {
    auto args = sized<sq_stream_open_args>();
    args.slot_count = slots;
    args.slot_bytes = extent_;
    args.blocks = descs_.data();
    args.block_count = blocks_;
    args.schedules = schedules.data();
    args.schedule_count = static_cast<std::uint32_t>(schedules.size());
    args.read = read;
    args.read_user = this;
    return args;
  }

  std::uint64_t extent() const { return extent_; }
  const std::vector<std::byte>& bytes(std::uint32_t block) const { return extents_[block]; }
  std::int64_t reads(std::uint32_t block) const { const std::lock_guard lock(mutex_); return reads_[block]; }
  void set_fault(Fault f) { const std::lock_guard lock(mutex_); fault_ = f; }
  void set_delay(std::chrono::microseconds d) { const std::lock_guard lock(mutex_); delay_ = d; }
  sq_part_desc& part(std::size_t i) { return parts_[i]; }
  sq_block_desc& desc(std::size_t b) { return descs_[b]; }

 private:
  static sq_status read(void* user, std::uint32_t block, std::uint64_t offset, void* destination, std::uint64_t bytes, sq_error* error) {
    auto& self = *static_cast<TestModel*>(user);
    std::chrono::microseconds delay;
    {
      const std::lock_guard lock(self.mutex_);
      const std::int64_t number = offset == 0 ? self.reads_[block]++ : self.reads_[block] - 1;
      delay = self.delay_;
      if (block == self.fault_.block && number >= self.fault_.first && number < self.fault_.first + self.fault_.times) {
        std::memset(destination, 0xEE, bytes / 2);  // a short delivery: half of it arrived
        std::snprintf(error->message, sizeof error->message, "disk fell out at block %u", block);
        return SQ_IO_SHORT_READ;
      }
    }
    std::this_thread::sleep_for(delay);
    std::memcpy(destination, self.extents_[block].data() + offset, bytes);
    return SQ_OK;
  }

  std::uint32_t blocks_;
  std::uint64_t extent_ = 0;
  std::vector<sq_part_desc> parts_;
  sq_layer_desc layer_{};
  std::vector<std::string> names_;
  std::vector<sq_block_desc> descs_;
  std::vector<std::vector<std::byte>> extents_;
  mutable std::mutex mutex_;
  std::vector<std::int64_t> reads_;
  Fault fault_;
  std::chrono::microseconds delay_{0};
};

/// Checks every transition against the table of spec/60-streaming.md.
class Watch {
 public:
  static void on_transition(void* user, std::uint64_t session, std::uint32_t block, std::int32_t from, std::int32_t to) {
    auto& self = *static_cast<Watch*>(user);
    const std::lock_guard lock(self.mutex_);
    static constexpr bool legal[6][6] = {{0, 1, 0, 0, 0, 0}, {1, 0, 1, 0, 0, 0}, {1, 0, 0, 1, 0, 0}, {0, 0, 0, 0, 1, 1}, {1, 1, 0, 0, 0, 0}, {1, 0, 0, 0, 0, 0}};
    std::int32_t& state = self.state_[{session, block}];
    if (state != from || from < 0 || from > 5 || to < 0 || to > 5 || !legal[from][to]) ++self.violations_;
    self.failures_ += (from == SQ_HOST_STAGED || from == SQ_PREFETCHING) && to == SQ_UNLOADED ? 1 : 0;
    state = to;
    ++self.count_;
  }
  int violations() { const std::lock_guard lock(mutex_); return violations_; }
  int failures() { const std::lock_guard lock(mutex_); return failures_; }
  int count() { const std::lock_guard lock(mutex_); return count_; }
  std::int32_t state(std::uint64_t session, std::uint32_t block) { const std::lock_guard lock(mutex_); return state_[{session, block}]; }
  bool all_unloaded() {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, s] : state_) if (s != SQ_UNLOADED) return false;
    return true;
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<std::uint64_t, std::uint32_t>, std::int32_t> state_;
  int violations_ = 0, failures_ = 0, count_ = 0;
};

inline Context watched_context(Watch& watch, const sq_allocator* allocator = nullptr) {
  auto host = sized<sq_host>();
  host.allocator = allocator;
  host.user = &watch;
  host.on_transition = Watch::on_transition;
  return Context(backend(), host);
}

/// Sawtooth 0..n-1, n-1..0 with block i in slot i mod slots.
inline std::vector<sq_visit> sawtooth(std::uint32_t blocks, std::uint32_t slots) {
  std::vector<sq_visit> v;
  for (std::uint32_t i = 0; i < blocks; ++i) v.push_back({i, i % slots});
  for (std::uint32_t i = blocks; i-- > 0;) v.push_back({i, i % slots});
  return v;
}

inline sq_schedule schedule(const std::vector<sq_visit>& visits, std::uint32_t lookahead = 0xFFFFFFFFu) {
  return {visits.data(), static_cast<std::uint32_t>(visits.size()), lookahead, "train"};
}

inline void expect_bytes(const Lease& lease, const Context& context, const TestModel& model, std::uint32_t block) {
  auto weight = sized<sq_weight>();
  sq_error e = make_error();
  const sq_weight_ref ref = lease.layer(0);
  check(context.stream().lease_weight(context.get(), ref.session, ref.lease, 0, &weight, &e), e);
  ASSERT_EQ(weight.part_count, 2u);
  EXPECT_EQ(std::memcmp(weight.parts[0].tensor.data, model.bytes(block).data(), static_cast<std::size_t>(kOut * kIn)), 0) << "block " << block;
  EXPECT_EQ(std::memcmp(weight.parts[1].tensor.data, model.bytes(block).data() + model.extent() - 256, kOut * 4), 0) << "block " << block;
}

}  // namespace squareq::test
