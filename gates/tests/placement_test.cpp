// The suite on a device, without one: the fake's memory cannot be read or written but through its copies, so that a harness (or a case) that
// touches device memory by mistake crashes here. The implementation on it is the reference, which may touch the memory during its calls only.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>

#include "gates/harness/placement.hpp"
#include "gates/harness/registry.hpp"
#include "gates/harness/trial.hpp"

namespace squareq::gates {
namespace {

class FakeDevice final : public DeviceMemory {
 public:
  void* allocate(std::uint64_t bytes) override {
    const std::uint64_t size = (bytes + 4095) / 4096 * 4096 + 4096;  // an empty allocation has an address too
    void* memory = ::mmap(nullptr, size, opened ? PROT_READ | PROT_WRITE : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    const std::lock_guard lock(mutex);
    regions[static_cast<std::byte*>(memory)] = {size, false};
    return memory;
  }
  void release(void* pointer) override {
    const std::lock_guard lock(mutex);
    const auto found = regions.find(static_cast<std::byte*>(pointer));
    if (found == regions.end()) throw Error(Code::INTERNAL, "released memory that is not the device's");
    ::munmap(pointer, found->second.bytes);
    regions.erase(found);
  }
  void* allocate_pinned(std::uint64_t bytes) override { return std::malloc(bytes); }
  void release_pinned(void* pointer) override { std::free(pointer); }
  void to_device(void* to, const void* from, std::uint64_t bytes) override {
    const std::lock_guard lock(mutex);
    Window window(*this, to, bytes);
    std::memcpy(to, from, bytes);
  }
  void to_host(void* to, const void* from, std::uint64_t bytes) override {
    const std::lock_guard lock(mutex);
    Window window(*this, from, bytes);
    std::memcpy(to, from, bytes);
  }
  void fill(void* to, unsigned char value, std::uint64_t bytes) override {
    const std::lock_guard lock(mutex);
    Window window(*this, to, bytes);
    std::memset(to, value, bytes);
  }
  sq_stream_handle stream() override { return this; }
  void synchronize() override {}
  std::uint64_t free_bytes() override { return 0; }

  /// Where a kernel runs, and where a loader thread writes at any time.
  void open(bool on) {
    const std::lock_guard lock(mutex);
    opened = on;
    for (const auto& [base, region] : regions)
      if (!region.for_ever) ::mprotect(base, region.bytes, on ? PROT_READ | PROT_WRITE : PROT_NONE);
  }
  void open_for_ever(void* inside) {
    const std::lock_guard lock(mutex);
    auto region = std::prev(regions.upper_bound(static_cast<std::byte*>(inside)));
    region->second.for_ever = true;
    ::mprotect(region->first, region->second.bytes, PROT_READ | PROT_WRITE);
  }
  bool owns(const void* data) {
    const std::lock_guard lock(mutex);
    const auto after = regions.upper_bound(static_cast<std::byte*>(const_cast<void*>(data)));
    return after != regions.begin() && data < std::prev(after)->first + std::prev(after)->second.bytes;
  }

  struct Region {
    std::uint64_t bytes;
    bool for_ever;
  };
  std::mutex mutex;
  std::map<std::byte*, Region> regions;
  bool opened = false;

 private:
  struct Window {
    Window(FakeDevice& d, const void* data, std::uint64_t bytes) : region(*std::prev(d.regions.upper_bound(static_cast<std::byte*>(const_cast<void*>(data))))) {
      if (static_cast<const std::byte*>(data) + bytes > region.first + region.second.bytes) throw Error(Code::INTERNAL, "a copy outside the device's memory");
      ::mprotect(region.first, region.second.bytes, PROT_READ | PROT_WRITE);
      closes = !d.opened && !region.second.for_ever;
    }
    ~Window() {
      if (closes) ::mprotect(region.first, region.second.bytes, PROT_NONE);
    }
    std::pair<std::byte* const, Region>& region;
    bool closes = false;
  };
};

FakeDevice& fake() {
  static FakeDevice device;
  return device;
}

/// What the fake implementation does besides computing.
struct Misdeeds {
  bool write_after_output = false;  // a byte behind y
  bool write_to_input = false;      // the first byte of x
} misdeeds;

std::optional<Implementation> inner;
sq_allocator given_allocator{};

struct KernelTime {
  KernelTime() { fake().open(true); }
  ~KernelTime() { fake().open(false); }
};

/// A tensor that a call gets must be on the device. The copies are the placement's own: they may be changed to what the reference takes.
bool flip(const sq_tensor* t) {
  if (!t) return true;
  const bool good = t->device.kind == SQ_CUDA && (!t->data || fake().owns(t->data));
  const_cast<sq_tensor*>(t)->device = {SQ_CPU, 0};
  return good;
}
bool flip(const sq_part* parts, std::uint32_t count) {
  bool good = true;
  for (std::uint32_t i = 0; parts && i < count; ++i) good = flip(&parts[i].tensor) && good;
  return good;
}
bool flip(const sq_weight_ref* ref) { return !ref || !ref->weight || flip(ref->weight->parts, ref->weight->part_count); }
bool flip(const sq_lora* lora) { return !lora || (static_cast<int>(flip(lora->a_t)) & flip(lora->b_t) & flip(lora->x)); }

sq_status off_device(sq_error* e) {
  if (e) {
    e->code = SQ_CALL_DEVICE;
    std::strcpy(e->message, "a tensor is not on the device, or the stream is not the suite's");
  }
  return SQ_CALL_DEVICE;
}

template <class Args>
bool flip_all(const Args& a);
template <>
bool flip_all(const sq_quantize_args& a) { return static_cast<int>(flip(a.w)) & flip(a.out, a.out_count); }
template <>
bool flip_all(const sq_dequantize_args& a) { return static_cast<int>(flip(a.weight)) & flip(a.out); }
template <>
bool flip_all(const sq_linear_forward_args& a) {
  return static_cast<int>(flip(a.weight)) & flip(a.x) & (!a.xq || flip(a.xq->parts, a.xq->part_count)) & flip(a.lora) & flip(a.y) & flip(a.preactivation) & flip(a.h);
}
template <>
bool flip_all(const sq_linear_backward_args& a) {
  return static_cast<int>(flip(a.weight)) & flip(a.dy) & flip(a.preactivation) & flip(a.x) & flip(a.lora) & flip(a.h) & flip(a.dx) & flip(a.dx_lora) & flip(a.da_t) & flip(a.db_t);
}
template <>
bool flip_all(const sq_rms_norm_rope_forward_args& a) { return static_cast<int>(flip(a.x)) & flip(a.weight) & flip(a.rope) & flip(a.y); }
template <>
bool flip_all(const sq_rms_norm_rope_backward_args& a) { return static_cast<int>(flip(a.dy)) & flip(a.x) & flip(a.weight) & flip(a.rope) & flip(a.dx); }

template <class Args, auto operation>
sq_status operate(sq_context* context, const Args* args, sq_error* error) {
  if (args && (!flip_all(*args) || args->stream != fake().stream())) return off_device(error);
  const KernelTime running;
  const sq_status status = ((*inner)->linear->*operation)(context, args, error);
  if constexpr (std::is_same_v<Args, sq_linear_forward_args>) {
    if (status != SQ_OK) return status;
    if (misdeeds.write_after_output) static_cast<std::byte*>(args->y->data)[static_cast<std::size_t>(args->y->shape[0] * args->y->strides[0]) * 4] = std::byte{1};
    if (misdeeds.write_to_input) static_cast<std::byte*>(args->x->data)[0] ^= std::byte{1};
  }
  return status;
}

sq_status fake_create(const sq_host* host, sq_context** context, sq_error* error) {
  if (host->device.kind != SQ_CUDA) return off_device(error);
  sq_host copy = *host;
  copy.device.kind = SQ_CPU;
  if (!host->allocator) return (*inner)->create(&copy, context, error);
  static sq_allocator table{};
  given_allocator = *host->allocator;
  table = given_allocator;
  if (table.allocate) table.allocate = [](void*, std::int32_t kind, std::uint64_t bytes, std::uint64_t alignment, sq_stream_handle stream, const char* tag) -> void* {
    void* memory = given_allocator.allocate(given_allocator.user, kind, bytes, alignment, stream, tag);
    if (memory && kind == SQ_MEM_DEVICE) fake().open_for_ever(memory);
    return memory;
  };
  if (table.release) table.release = [](void*, void* memory, std::int32_t kind, std::uint64_t bytes, sq_stream_handle stream) {
    given_allocator.release(given_allocator.user, memory, kind, bytes, stream);
  };
  copy.allocator = &table;
  return (*inner)->create(&copy, context, error);
}

sq_status fake_acquire(sq_context* c, std::uint64_t session, std::uint32_t block, sq_stream_handle stream, sq_lease* lease, sq_error* e) {
  return stream == fake().stream() ? (*inner)->stream->acquire(c, session, block, nullptr, lease, e) : off_device(e);
}
sq_status fake_release(sq_context* c, std::uint64_t session, sq_lease lease, sq_stream_handle stream, sq_error* e) {
  return stream == fake().stream() ? (*inner)->stream->release(c, session, lease, nullptr, e) : off_device(e);
}
sq_status fake_lease_weight(sq_context* c, std::uint64_t session, sq_lease lease, std::uint32_t layer, sq_weight* weight, sq_error* e) {
  static std::deque<std::vector<sq_part>> kept;
  const sq_status status = (*inner)->stream->lease_weight(c, session, lease, layer, weight, e);
  if (status != SQ_OK) return status;
  std::vector<sq_part>& parts = kept.emplace_back(weight->parts, weight->parts + weight->part_count);
  for (sq_part& part : parts) part.tensor.device = {SQ_CUDA, 0};
  weight->parts = parts.data();
  return status;
}

/// The reference as if it were on the fake device: forward, backward, quantize, dequantize, queries and keys, streaming.
const sq_implementation* fake_implementation() {
  static sq_linear_group linear{};
  static sq_stream_group stream{};
  static sq_implementation table{};
  inner.emplace(Implementation::load(find_backend("reference")));
  using G = sq_linear_group;
  linear = {sizeof linear, 0, operate<sq_quantize_args, &G::quantize>, operate<sq_dequantize_args, &G::dequantize>, operate<sq_linear_forward_args, &G::linear_forward>,
            operate<sq_linear_backward_args, &G::linear_backward>, nullptr, nullptr, nullptr, operate<sq_rms_norm_rope_forward_args, &G::rms_norm_rope_forward>, operate<sq_rms_norm_rope_backward_args, &G::rms_norm_rope_backward>};
  stream = *(*inner)->stream;
  stream.acquire = fake_acquire;
  stream.release = fake_release;
  stream.lease_weight = fake_lease_weight;
  table = inner->table();
  table.create = fake_create;
  table.linear = &linear;
  table.stream = &stream;
  return &table;
}

class Placement : public ::testing::Test {
 protected:
  Placement() : subject_(Subject::on(Implementation(fake_implementation()), fake())), description_(subject_.describe()) { misdeeds = {}; }
  ~Placement() override { use_device(nullptr); }

  Verdict run(const Case& c) const { return run_here(c, subject_, description_, 1); }
  Verdict run(std::string_view id) const {
    for (const Case& c : all_cases())
      if (c.id == id) return run(c);
    throw std::out_of_range("no case " + std::string(id));
  }

  Subject subject_;
  Description description_;
};

TEST_F(Placement, cases_run_on_a_device_as_they_do_on_the_host) {  // SQ-CNF-017
  int ran = 0;
  for (const Case& c : all_cases()) {
    const bool wanted = c.id.starts_with("dequantize.") || c.id.starts_with("loading.lease.") || c.id.starts_with("forward.strided") || c.id.starts_with("lora.") || c.id.starts_with("rms_norm_rope.") || c.id == "errors.rms_norm_rope" ||
                        c.id == "forward.refusals" || c.id == "linear.no_rows" || c.id == "forward.differential.bf16" || c.id == "memory.refused" || c.id == "memory.stream_bytes" || c.id == "registry.described" ||
                        c.id == "training.streamed.slots2.lookahead1.late_reads.residents" || c.id == "training.released_lease" || c.id == "training.failed_read" ||
                        c.id == "training.two_sessions" || c.id == "training.differential" || c.id.starts_with("vector.forward");
    if (!wanted) continue;
    const Verdict v = run(c);
    EXPECT_EQ(v.status, Status::pass) << c.id << ": " << v.message;
    ++ran;
  }
  EXPECT_GE(ran, 30);
  EXPECT_TRUE(fake().regions.empty()) << "device memory left behind";
}

TEST_F(Placement, instances_are_made_on_the_device_and_on_no_other) {  // SQ-CNF-017
  for (const char* id : {"linear.create", "linear.own_allocation"}) {
    const Verdict v = run(id);
    EXPECT_EQ(v.status, Status::pass) << id << ": " << v.message;
  }
}

TEST_F(Placement, a_byte_behind_an_output_on_the_device_is_seen) {  // SQ-CNF-013, SQ-CNF-017
  misdeeds.write_after_output = true;
  const Verdict v = run("forward.strided_y");
  EXPECT_EQ(v.status, Status::fail);
  EXPECT_NE(v.message.find("wrote outside the tensor"), std::string::npos) << v.message;
}

TEST_F(Placement, an_input_changed_on_the_device_is_seen) {
  misdeeds.write_to_input = true;
  const Verdict v = run("forward.strided_x.f32");
  EXPECT_EQ(v.status, Status::fail);
  EXPECT_NE(v.message.find("input changed"), std::string::npos) << v.message;
}

TEST_F(Placement, a_byte_behind_scratch_on_the_device_is_seen) {  // SQ-CNF-014, SQ-CNF-017
  Meter meter(&fake());
  void* memory = meter.table()->allocate(meter.table()->user, SQ_MEM_SCRATCH, 100, 256, nullptr, "scratch");
  ASSERT_NE(memory, nullptr);
  EXPECT_TRUE(fake().owns(memory));
  EXPECT_EQ(meter.held(SQ_MEM_SCRATCH), 100u);
  const unsigned char one = 1;
  fake().to_device(static_cast<std::byte*>(memory) + 100, &one, 1);
  meter.table()->release(meter.table()->user, memory, SQ_MEM_SCRATCH, 100, nullptr);
  EXPECT_NE(meter.misuse().find("wrote outside its allocation"), std::string::npos) << meter.misuse();
}

TEST_F(Placement, a_harness_that_touches_device_memory_crashes_here) {
  void* memory = fake().allocate(64);
  EXPECT_DEATH(static_cast<volatile unsigned char*>(memory)[3] = 1, "");
  EXPECT_DEATH(static_cast<void>(static_cast<volatile unsigned char*>(memory)[3]), "");
  fake().release(memory);
}

TEST(DeviceMemory, a_machine_without_a_gpu_is_refused_and_never_passes) {  // SQ-CNF-018
  try {
    cuda_device_memory();
    GTEST_SKIP() << "not run: this machine has a GPU";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::CFG_BACKEND) << e.what();
    EXPECT_NE(std::string(e.what()).find("GPU"), std::string::npos);
  }
}

}  // namespace
}  // namespace squareq::gates
