#include "bench/cuda/streamed_model.hpp"

#include <algorithm>
#include <numeric>

namespace squareq::bench {
namespace {

constexpr std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

PinnedBuffer::PinnedBuffer(std::size_t bytes) : bytes_(bytes) {
  if (cudaHostAlloc(&data_, bytes, cudaHostAllocDefault) != cudaSuccess)
    throw Error(Code::HOST_OOM, "cannot page-lock " + std::to_string(bytes) + " bytes of host memory; --blocks takes a part of the model");
}

StreamedModel::Kind StreamedModel::lay_out(const std::vector<LinearShape>& linears) {
  Kind kind;
  for (const LinearShape& l : linears) {
    const auto out = static_cast<std::uint64_t>(l.out), in = static_cast<std::uint64_t>(l.in);
    const std::uint64_t scale = kind.bytes + aligned(out * in), bias = scale + aligned(4 * out);
    const std::vector<sq_part_desc>& parts = kind.parts.emplace_back(
        std::vector<sq_part_desc>{{"qweight", SQ_I8, 2, {l.out, l.in}, kind.bytes}, {"scale", SQ_F32, 1, {l.out}, scale},
                                  {"bias", SQ_F32, 1, {l.out}, bias}});
    kind.layers.push_back({l.name, "bp8_v2", l.out, l.in, parts.data(), static_cast<std::uint32_t>(parts.size()), 0});
    kind.bytes = bias + aligned(4 * out);
  }
  return kind;
}

StreamedModel::StreamedModel(std::uint32_t blocks) {
  constexpr std::int64_t d = 3072;
  double_ = lay_out({{"norm1.linear", d, 6 * d}, {"norm1_context.linear", d, 6 * d}, {"attn.to_q", d, d}, {"attn.to_k", d, d}, {"attn.to_v", d, d},
                     {"attn.add_q_proj", d, d}, {"attn.add_k_proj", d, d}, {"attn.add_v_proj", d, d}, {"attn.to_out.0", d, d},
                     {"attn.to_add_out", d, d}, {"ff.net.0.proj", d, 4 * d}, {"ff.net.2", 4 * d, d}, {"ff_context.net.0.proj", d, 4 * d},
                     {"ff_context.net.2", 4 * d, d}});
  single_ = lay_out({{"norm.linear", d, 3 * d}, {"attn.to_q", d, d}, {"attn.to_k", d, d}, {"attn.to_v", d, d}, {"proj_mlp", d, 4 * d},
                     {"proj_out", 5 * d, d}});
  const std::uint32_t doubles = (blocks + 2) / 3;
  for (std::uint32_t b = 0; b < blocks; ++b) {
    const Kind& kind = b < doubles ? double_ : single_;
    const std::string& name =
        names_.emplace_back(b < doubles ? "transformer_blocks." + std::to_string(b) : "single_transformer_blocks." + std::to_string(b - doubles));
    descs_.push_back({name.c_str(), kind.bytes, kind.layers.data(), static_cast<std::uint32_t>(kind.layers.size()), 0});
  }
}

std::uint64_t StreamedModel::largest() const { return double_.bytes; }

std::uint64_t StreamedModel::total() const {
  return std::accumulate(descs_.begin(), descs_.end(), std::uint64_t{0}, [](std::uint64_t sum, const sq_block_desc& b) { return sum + b.extent_bytes; });
}

sq_stream_open_args StreamedModel::open_args(std::uint32_t slots, const std::vector<sq_schedule>& schedules) const {
  auto args = sized<sq_stream_open_args>();
  args.slot_count = slots, args.slot_bytes = largest();
  args.blocks = descs_.data(), args.block_count = size();
  args.schedules = schedules.data(), args.schedule_count = static_cast<std::uint32_t>(schedules.size());
  args.read = [](void*, std::uint32_t, std::uint64_t, void*, std::uint64_t, sq_error*) -> sq_status { return SQ_OK; };
  args.keep_host_master = 1;
  return args;
}

sq_allocator SharedMemory::table() {
  auto a = sized<sq_allocator>();
  a.user = this;
  a.allocate = [](void* user, std::int32_t kind, std::uint64_t bytes, std::uint64_t, sq_stream_handle, const char*) -> void* {
    auto& self = *static_cast<SharedMemory*>(user);
    void* pointer = nullptr;
    if (kind != SQ_MEM_HOST_PINNED) return cudaMalloc(&pointer, bytes) == cudaSuccess ? pointer : nullptr;
    const std::lock_guard lock(self.mutex_);
    if (self.lent_ || bytes > self.master_.bytes()) return nullptr;
    self.lent_ = true;
    return self.master_.data();
  };
  a.release = [](void* user, void* pointer, std::int32_t kind, std::uint64_t, sq_stream_handle) {
    auto& self = *static_cast<SharedMemory*>(user);
    if (kind != SQ_MEM_HOST_PINNED) {
      cudaFree(pointer);
      return;
    }
    const std::lock_guard lock(self.mutex_);
    self.lent_ = false;
  };
  return a;
}

std::vector<sq_visit> ring(std::uint32_t blocks, std::uint32_t slots, bool train) {
  std::vector<sq_visit> visits;
  for (std::uint32_t i = 0; i < blocks; ++i) visits.push_back({i, i % slots});
  for (std::uint32_t i = blocks; train && i-- > 0;) visits.push_back({i, i % slots});
  return visits;
}

sq_schedule schedule(const std::vector<sq_visit>& visits) {
  const auto count = static_cast<std::uint32_t>(visits.size());
  return {visits.data(), count, count, "bench"};
}

}  // namespace squareq::bench
