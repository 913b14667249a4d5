#include "gates/harness/placement.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "squareq/tensor.hpp"

namespace squareq::gates {
namespace {

constexpr std::uint64_t kAlignment = 256;

/// A guarded buffer and its copy on the device.
struct Buffer {
  std::byte* host = nullptr;
  std::size_t bytes = 0;
  std::byte* device = nullptr;
};

std::mutex buffers_mutex;
std::map<std::uintptr_t, Buffer>& buffers() {
  static std::map<std::uintptr_t, Buffer> all;  // by host address
  return all;
}

std::optional<Buffer> buffer_of(const void* data) {
  const std::lock_guard lock(buffers_mutex);
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  auto after = buffers().upper_bound(address);
  if (after == buffers().begin()) return std::nullopt;
  const Buffer& b = (--after)->second;
  return address <= after->first + b.bytes ? std::optional(b) : std::nullopt;  // one past the end: an empty tensor may point there
}

/// The implementation behind the table, and its tables as they are handed out.
struct Placed {
  Implementation inner;
  DeviceMemory& device;
  sq_implementation table{};
  sq_linear_group linear{};
  sq_stream_group stream{};
  sq_module_group module{};
};
std::optional<Placed> placed;

constexpr sq_device kDevice{SQ_CUDA, 0};

/// One call: its tensors as they stand on the device, and the buffers that go there and back.
class Call {
 public:
  sq_tensor translate(const sq_tensor& host) {
    sq_tensor t = host;
    if (t.device.kind != SQ_CPU) {  // a case that names the wrong device: here that is the host
      t.device = {SQ_CPU, 0};
      return t;
    }
    if (!t.data) {
      t.device = kDevice;
      return t;
    }
    const auto buffer = buffer_of(t.data);
    if (!buffer || !buffer->device) return t;  // memory of the host's that no buffer holds: the implementation must refuse it
    used_.emplace(buffer->host, *buffer);
    t.data = buffer->device + (static_cast<const std::byte*>(t.data) - buffer->host);
    t.device = kDevice;
    return t;
  }
  void tensor(const sq_tensor*& pointer) {
    if (pointer) pointer = &tensors_.emplace_back(translate(*pointer));
  }
  void parts(const sq_part*& pointer, std::uint32_t count) {
    if (!pointer) return;
    std::vector<sq_part>& copy = parts_.emplace_back(pointer, pointer + count);
    for (sq_part& part : copy) part.tensor = translate(part.tensor);
    pointer = copy.data();
  }
  void weight(const sq_weight_ref*& pointer) {
    if (!pointer) return;
    sq_weight_ref& ref = refs_.emplace_back(full(*pointer));
    pointer = &ref;
    if (!ref.weight) return;
    sq_weight& copy = weights_.emplace_back(full(*ref.weight));
    parts(copy.parts, copy.part_count);
    ref.weight = &copy;
  }
  void activation(const sq_quantized_activation*& pointer) {
    if (!pointer) return;
    sq_quantized_activation& copy = activations_.emplace_back(full(*pointer));
    parts(copy.parts, copy.part_count);
    pointer = &copy;
  }
  void lora(const sq_lora*& pointer) {
    if (!pointer) return;
    sq_lora& copy = loras_.emplace_back(full(*pointer));
    tensor(copy.a_t);
    tensor(copy.b_t);
    tensor(copy.x);
    pointer = &copy;
  }

  /// A struct of the caller's version as one of ours; `size` stays the caller's.
  template <class T>
  static T full(const T& given) {
    T value{};
    std::memcpy(&value, &given, std::min<std::size_t>(given.size, sizeof(T)));
    value.size = given.size;
    return value;
  }

  template <class F>
  sq_status run(const F& call) const {
    DeviceMemory& device = placed->device;
    for (const auto& [host, b] : used_) device.to_device(b.device, b.host, b.bytes);
    const sq_status status = call();
    device.synchronize();
    for (const auto& [host, b] : used_) device.to_host(b.host, b.device, b.bytes);
    return status;
  }

 private:
  std::map<std::byte*, Buffer> used_;
  std::deque<sq_tensor> tensors_;
  std::deque<std::vector<sq_part>> parts_;
  std::deque<sq_weight_ref> refs_;
  std::deque<sq_weight> weights_;
  std::deque<sq_quantized_activation> activations_;
  std::deque<sq_lora> loras_;
};

sq_stream_handle stream_for(sq_stream_handle given) { return given ? given : placed->device.stream(); }

void translate(Call& call, sq_quantize_args& a) {
  call.tensor(a.w);
  call.parts(a.out, a.out_count);
}
void translate(Call& call, sq_dequantize_args& a) {
  call.weight(a.weight);
  call.tensor(a.out);
}
void translate(Call& call, sq_linear_forward_args& a) {
  call.weight(a.weight);
  call.activation(a.xq);
  call.lora(a.lora);
  for (const sq_tensor** t : {&a.x, &a.y, &a.preactivation, &a.h}) call.tensor(*t);
}
void translate(Call& call, sq_linear_backward_args& a) {
  call.weight(a.weight);
  call.lora(a.lora);
  for (const sq_tensor** t : {&a.dy, &a.preactivation, &a.x, &a.h, &a.dx, &a.dx_lora, &a.da_t, &a.db_t}) call.tensor(*t);
}
void translate(Call& call, sq_quantize_activation_args& a) {
  for (const sq_tensor** t : {&a.x, &a.shift, &a.scale}) call.tensor(*t);
  call.parts(a.out, a.out_count);
}
void translate(Call& call, sq_numeric_guard_args& a) {
  call.tensor(a.x);
  call.tensor(a.counts);
}
void translate(Call& call, sq_rms_norm_rope_forward_args& a) {
  for (const sq_tensor** t : {&a.x, &a.weight, &a.rope, &a.y}) call.tensor(*t);
}
void translate(Call& call, sq_rms_norm_rope_backward_args& a) {
  for (const sq_tensor** t : {&a.dy, &a.x, &a.weight, &a.rope, &a.dx}) call.tensor(*t);
}

template <class Args>
Args placed_args(Call& call, const Args& given) {
  Args args = Call::full(given);
  translate(call, args);
  args.stream = stream_for(args.stream);
  return args;
}

template <class Args, auto operation>
sq_status linear_call(sq_context* context, const Args* given, sq_error* error) {
  const auto inner = placed->inner->linear->*operation;
  if (!given) return inner(context, nullptr, error);
  Call call;
  const Args args = placed_args(call, *given);
  return call.run([&] { return inner(context, &args, error); });
}

template <class Args>
sq_status explain_call(sq_context* context, std::int32_t op, const void* given, sq_text_sink sink, void* user, sq_error* error) {
  Call call;
  const Args args = placed_args(call, *static_cast<const Args*>(given));
  return call.run([&] { return placed->inner->linear->explain(context, op, &args, sink, user, error); });
}

sq_status explain(sq_context* context, std::int32_t op, const void* args, sq_text_sink sink, void* user, sq_error* error) {
  if (args) switch (op) {
      case SQ_OP_QUANTIZE: return explain_call<sq_quantize_args>(context, op, args, sink, user, error);
      case SQ_OP_DEQUANTIZE: return explain_call<sq_dequantize_args>(context, op, args, sink, user, error);
      case SQ_OP_LINEAR_FORWARD: return explain_call<sq_linear_forward_args>(context, op, args, sink, user, error);
      case SQ_OP_LINEAR_BACKWARD: return explain_call<sq_linear_backward_args>(context, op, args, sink, user, error);
      case SQ_OP_QUANTIZE_ACTIVATION: return explain_call<sq_quantize_activation_args>(context, op, args, sink, user, error);
      case SQ_OP_NUMERIC_GUARD: return explain_call<sq_numeric_guard_args>(context, op, args, sink, user, error);
      case SQ_OP_RMS_NORM_ROPE_FORWARD: return explain_call<sq_rms_norm_rope_forward_args>(context, op, args, sink, user, error);
      case SQ_OP_RMS_NORM_ROPE_BACKWARD: return explain_call<sq_rms_norm_rope_backward_args>(context, op, args, sink, user, error);
      default: break;
    }
  return placed->inner->linear->explain(context, op, args, sink, user, error);
}

/// The layers of one lease as host memory: what the device held when they were asked for, at the distances from each other and with the
/// alignment that they have there, so that cases can judge where parts lie.
class Mirror {
 public:
  Mirror() : memory_(static_cast<std::byte*>(mmap(nullptr, 2 * kReach, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (memory_ == MAP_FAILED) throw Error(Code::HOST_OOM, "the suite got no address space for the layers of a lease");
  }
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;
  ~Mirror() {
    for (std::byte* start : placed_) unplace(start);
    munmap(memory_, 2 * kReach);
  }

  /// Copies the parts of `weight` here; valid as long as the mirror.
  const sq_part* parts(const sq_weight& weight) {
    std::vector<sq_part>& copies = parts_.emplace_back(weight.parts, weight.parts + weight.part_count);
    for (sq_part& part : copies) {
      std::uint64_t bytes = dtype_bytes(part.tensor.dtype);
      for (std::int32_t d = 0; d < part.tensor.rank; ++d) bytes *= static_cast<std::uint64_t>(part.tensor.shape[d]);
      const auto on_device = reinterpret_cast<std::uintptr_t>(part.tensor.data);
      if (!first_) first_ = on_device;
      const auto distance = static_cast<std::int64_t>(on_device - *first_);
      const auto reach = static_cast<std::int64_t>(kReach);
      if (distance < -reach || distance + static_cast<std::int64_t>(bytes + kPage) > reach)
        throw Error(Code::INTERNAL, "part '" + std::string(part.name) + "' lies " + std::to_string(distance) + " bytes from the first part of its lease");
      std::byte* host = memory_ + kReach + *first_ % kPage + distance;
      std::byte* start = host - reinterpret_cast<std::uintptr_t>(host) % kAlignment;
      if (placed_.insert(start).second) place(start, bytes + static_cast<std::size_t>(host - start));
      placed->device.to_host(host, part.tensor.data, bytes);
      part.tensor.data = host;
      part.tensor.device = {SQ_CPU, 0};
    }
    return copies.data();
  }

 private:
  static constexpr std::uint64_t kPage = 4096;
  static constexpr std::uint64_t kReach = 1ull << 30;  // to either side of the first part; address space, not memory
  std::byte* memory_;
  std::optional<std::uintptr_t> first_;
  std::set<std::byte*> placed_;
  std::deque<std::vector<sq_part>> parts_;
};

/// By session and lease; gone with either.
std::mutex mirrors_mutex;
std::map<std::pair<std::uint64_t, sq_lease>, Mirror>& mirrors() {
  static std::map<std::pair<std::uint64_t, sq_lease>, Mirror> all;
  return all;
}

sq_status acquire(sq_context* context, std::uint64_t session, std::uint32_t block, sq_stream_handle stream, sq_lease* lease, sq_error* error) {
  return placed->inner->stream->acquire(context, session, block, stream_for(stream), lease, error);
}

sq_status release(sq_context* context, std::uint64_t session, sq_lease lease, sq_stream_handle stream, sq_error* error) {
  const sq_status status = placed->inner->stream->release(context, session, lease, stream_for(stream), error);
  if (status == SQ_OK) {
    const std::lock_guard lock(mirrors_mutex);
    mirrors().erase({session, lease});
  }
  return status;
}

sq_status lease_weight(sq_context* context, std::uint64_t session, sq_lease lease, std::uint32_t layer, sq_weight* weight, sq_error* error) {
  const sq_status status = placed->inner->stream->lease_weight(context, session, lease, layer, weight, error);
  if (status != SQ_OK) return status;
  placed->device.synchronize();  // the stream has passed the lease's copy
  const std::lock_guard lock(mirrors_mutex);
  weight->parts = mirrors()[{session, lease}].parts(*weight);
  return status;
}

sq_status close(sq_context* context, std::uint64_t session, sq_error* error) {
  {
    const std::lock_guard lock(mirrors_mutex);
    std::erase_if(mirrors(), [session](const auto& entry) { return entry.first.first == session; });
  }
  return placed->inner->stream->close(context, session, error);
}

template <auto operation>
sq_status module_tensor(sq_context* context, std::uint64_t module, const char* name, const sq_tensor* tensor, sq_error* error) {
  Call call;
  call.tensor(tensor);
  return call.run([&] { return (placed->inner->module->*operation)(context, module, name, tensor, error); });
}

sq_status module_forward(sq_context* context, std::uint64_t module, const char* layer, const sq_tensor* x, const sq_tensor* y, sq_error* error) {
  Call call;
  call.tensor(x);
  call.tensor(y);
  return call.run([&] { return placed->inner->module->forward(context, module, layer, x, y, error); });
}

sq_status create(const sq_host* given, sq_context** context, sq_error* error) {
  if (!given) return placed->inner->create(nullptr, context, error);
  sq_host host = Call::full(*given);
  host.device.kind = host.device.kind == SQ_CPU ? kDevice.kind : SQ_CPU;  // a case that names the wrong kind, or a wrong index, keeps doing so
  return placed->inner->create(&host, context, error);
}

template <class Group, class Entry>
void replace(Group& group, Entry Group::*entry, Entry with) {
  if (group.*entry) group.*entry = with;
}

}  // namespace

void place(std::byte* data, std::size_t bytes) {
  Buffer buffer{data, bytes, nullptr};
  if (DeviceMemory* device = device_in_use()) {
    buffer.device = static_cast<std::byte*>(device->allocate(bytes));
    if (!buffer.device) throw Error(Code::GPU_OOM, "the suite got no " + std::to_string(bytes) + " bytes of device memory for a tensor");
  }
  const std::lock_guard lock(buffers_mutex);
  buffers()[reinterpret_cast<std::uintptr_t>(data)] = buffer;
}

void unplace(std::byte* data) {
  const std::lock_guard lock(buffers_mutex);
  const auto found = buffers().find(reinterpret_cast<std::uintptr_t>(data));
  if (found == buffers().end()) return;
  if (found->second.device) device_in_use()->release(found->second.device);
  buffers().erase(found);
}

Implementation placed_on(const Implementation& inner, DeviceMemory& device) {
  placed.emplace(Placed{inner, device});
  Placed& p = *placed;
  p.table = *inner.operator->();
  p.table.create = create;
  if (inner->linear) {
    std::memcpy(&p.linear, inner->linear, std::min<std::size_t>(inner->linear->size, sizeof p.linear));  // a table of before ends earlier
    p.linear.size = sizeof p.linear;
    using G = sq_linear_group;
    replace(p.linear, &G::quantize, linear_call<sq_quantize_args, &G::quantize>);
    replace(p.linear, &G::dequantize, linear_call<sq_dequantize_args, &G::dequantize>);
    replace(p.linear, &G::linear_forward, linear_call<sq_linear_forward_args, &G::linear_forward>);
    replace(p.linear, &G::linear_backward, linear_call<sq_linear_backward_args, &G::linear_backward>);
    replace(p.linear, &G::quantize_activation, linear_call<sq_quantize_activation_args, &G::quantize_activation>);
    replace(p.linear, &G::numeric_guard, linear_call<sq_numeric_guard_args, &G::numeric_guard>);
    replace(p.linear, &G::rms_norm_rope_forward, linear_call<sq_rms_norm_rope_forward_args, &G::rms_norm_rope_forward>);
    replace(p.linear, &G::rms_norm_rope_backward, linear_call<sq_rms_norm_rope_backward_args, &G::rms_norm_rope_backward>);
    replace(p.linear, &G::explain, explain);
    p.table.linear = &p.linear;
  }
  if (inner->stream) {
    p.stream = *inner->stream;
    replace(p.stream, &sq_stream_group::acquire, acquire);
    replace(p.stream, &sq_stream_group::release, release);
    replace(p.stream, &sq_stream_group::lease_weight, lease_weight);
    replace(p.stream, &sq_stream_group::close, close);
    p.table.stream = &p.stream;
  }
  if (inner->module) {
    p.module = *inner->module;
    replace(p.module, &sq_module_group::read, module_tensor<&sq_module_group::read>);
    replace(p.module, &sq_module_group::write, module_tensor<&sq_module_group::write>);
    replace(p.module, &sq_module_group::forward, module_forward);
    p.table.module = &p.module;
  }
  return Implementation(&p.table);
}

DeviceMemory* device_of(const Implementation& implementation) {
  return placed && implementation.operator->() == &placed->table ? &placed->device : nullptr;
}

}  // namespace squareq::gates
