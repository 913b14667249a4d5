#include "optimized/cuda/tests/stream_model.hpp"

#include <cstdio>

namespace squareq::cuda_tests {

Model::Model(std::uint32_t blocks, std::vector<std::uint32_t> residents) {
  const auto aligned = [](std::uint64_t v) { return (v + 255) / 256 * 256; };
  const std::uint64_t q = static_cast<std::uint64_t>(kOut * kIn), scale = aligned(q), zero = scale + aligned(kOut * 4);
  extent_ = zero + aligned(kOut * 4);
  parts_ = {{"qweight", SQ_I8, 2, {kOut, kIn}, 0}, {"scale", SQ_F32, 1, {kOut}, scale}, {"zero_point", SQ_F32, 1, {kOut}, zero}};
  layer_ = {"blocks.x.proj", "bp8_v2", kOut, kIn, parts_.data(), 3, 0};
  for (std::uint32_t b = 0; b < blocks; ++b) {
    std::vector<unsigned char>& bytes = extents_.emplace_back(extent_, static_cast<unsigned char>(0));
    for (std::uint64_t i = 0; i < q; ++i) bytes[i] = static_cast<unsigned char>(1 + (b * 37 + i * 11) % 120);
    for (std::int64_t n = 0; n < kOut; ++n) {
      const float s = 0.01f * static_cast<float>(b * 100 + static_cast<std::uint32_t>(n) + 1);
      std::memcpy(bytes.data() + scale + static_cast<std::size_t>(n) * 4, &s, 4);
    }
    names_.push_back("blocks." + std::to_string(b));
  }
  for (std::uint32_t b = 0; b < blocks; ++b) {
    const bool resident = std::find(residents.begin(), residents.end(), b) != residents.end();
    descs_.push_back({names_[b].c_str(), extent_, &layer_, 1, resident ? static_cast<std::uint32_t>(SQ_BLOCK_RESIDENT) : 0u});
  }
}

void Model::set_zero_point(std::uint32_t block, std::int64_t row, float value) {
  std::memcpy(extents_[block].data() + parts_[2].offset + static_cast<std::size_t>(row) * 4, &value, 4);
}

sq_stream_open_args Model::open_args(std::uint32_t slots, const std::vector<sq_schedule>& schedules) {
  auto args = sized<sq_stream_open_args>();
  args.slot_count = slots;
  args.slot_bytes = slots ? extent_ : 0;
  args.blocks = descs_.data();
  args.block_count = static_cast<std::uint32_t>(descs_.size());
  args.schedules = schedules.data();
  args.schedule_count = static_cast<std::uint32_t>(schedules.size());
  args.read = read;
  args.read_user = this;
  args.poison_slots = 1;
  return args;
}

sq_status Model::read(void* user, std::uint32_t block, std::uint64_t offset, void* destination, std::uint64_t bytes, sq_error* error) {
  auto& self = *static_cast<Model*>(user);
  ++self.reads;
  if (self.delay_ms) std::this_thread::sleep_for(std::chrono::milliseconds(self.delay_ms));
  const bool fails = self.failing_block == static_cast<std::int64_t>(block) && self.failures_left-- > 0;
  std::memcpy(destination, self.extents_[block].data() + offset, fails ? bytes / 2 : bytes);
  if (!fails) return SQ_OK;
  std::snprintf(error->message, sizeof error->message, "disk fell out at block %u", block);
  return SQ_IO_SHORT_READ;
}

const sq_allocator* StreamAllocator::table() {
  table_.size = sizeof table_;
  table_.user = this;
  table_.allocate = [](void* user, std::int32_t kind, std::uint64_t bytes, std::uint64_t, sq_stream_handle, const char*) -> void* {
    auto& self = *static_cast<StreamAllocator*>(user);
    void* pointer = nullptr;
    if (self.calls++ == self.fail_at) return nullptr;
    const cudaError_t status = kind == SQ_MEM_HOST_PINNED ? cudaHostAlloc(&pointer, bytes, cudaHostAllocDefault) : cudaMalloc(&pointer, bytes);
    if (status != cudaSuccess) return nullptr;
    self.live[kind] += static_cast<std::int64_t>(bytes);
    return pointer;
  };
  table_.release = [](void* user, void* pointer, std::int32_t kind, std::uint64_t bytes, sq_stream_handle) {
    static_cast<StreamAllocator*>(user)->live[kind] -= static_cast<std::int64_t>(bytes);
    if (kind == SQ_MEM_HOST_PINNED) cudaFreeHost(pointer);
    else cudaFree(pointer);
  };
  return &table_;
}

void Watch::on_transition(void* user, std::uint64_t session, std::uint32_t block, std::int32_t from, std::int32_t to) {
  auto& self = *static_cast<Watch*>(user);
  const std::lock_guard lock(self.mutex_);
  static constexpr bool legal[6][6] = {{0, 1, 0, 0, 0, 0}, {1, 0, 1, 0, 0, 0}, {1, 0, 0, 1, 0, 0}, {0, 0, 0, 0, 1, 1}, {1, 1, 0, 0, 0, 0}, {1, 0, 0, 0, 0, 0}};
  std::int32_t& state = self.state_[{session, block}];
  if (state != from || from < 0 || from > 5 || to < 0 || to > 5 || !legal[from][to]) ++self.violations_;
  self.failures_ += (from == SQ_HOST_STAGED || from == SQ_PREFETCHING) && to == SQ_UNLOADED ? 1 : 0;
  state = to;
}
int Watch::violations() const {
  const std::lock_guard lock(mutex_);
  return violations_;
}
int Watch::failures() const {
  const std::lock_guard lock(mutex_);
  return failures_;
}
bool Watch::all_unloaded() const {
  const std::lock_guard lock(mutex_);
  return std::all_of(state_.begin(), state_.end(), [](const auto& entry) { return entry.second == SQ_UNLOADED; });
}

void TestStream::delay(int milliseconds) {
  REQUIRE_CUDA(cudaLaunchHostFunc(stream, [](void* ms) { std::this_thread::sleep_for(std::chrono::milliseconds(reinterpret_cast<std::uintptr_t>(ms))); },
                                  reinterpret_cast<void*>(static_cast<std::uintptr_t>(milliseconds))));
}

std::vector<sq_visit> ring(std::uint32_t blocks, std::uint32_t slots) {
  std::vector<sq_visit> v;
  for (std::uint32_t i = 0; i < blocks; ++i) v.push_back({i, i % slots});
  for (std::uint32_t i = blocks; i-- > 0;) v.push_back({i, i % slots});
  return v;
}

sq_schedule schedule(const std::vector<sq_visit>& visits, std::uint32_t lookahead) {
  return {visits.data(), static_cast<std::uint32_t>(visits.size()), lookahead, "train"};
}

Seen::Seen(const Lease& lease, const Context& context, std::uint64_t extent, cudaStream_t stream) {
  auto weight = sized<sq_weight>();
  sq_error e = make_error();
  const sq_weight_ref ref = lease.layer(0);
  check(context.stream().lease_weight(context.get(), ref.session, ref.lease, 0, &weight, &e), e);
  place_ = find_part(weight.parts, weight.part_count, "qweight")->tensor.data;  // the block's first part: the start of its extent
  void* memory = nullptr;
  REQUIRE_CUDA(cudaHostAlloc(&memory, extent, cudaHostAllocDefault));
  bytes_ = static_cast<unsigned char*>(memory);
  std::memset(bytes_, 0xEE, extent);
  REQUIRE_CUDA(cudaMemcpyAsync(bytes_, place_, extent, cudaMemcpyDeviceToHost, stream));
}

}  // namespace squareq::cuda_tests
