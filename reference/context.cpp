#include "reference/context.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "reference/arguments.hpp"

namespace squareq::reference {
namespace {

constexpr std::uint64_t alignment = 256;  // of every slot and scratch buffer, as SQ-STR fixes it for extents

void* plain_allocate(void*, std::int32_t, std::uint64_t bytes, std::uint64_t, sq_stream_handle, const char*) {
  return ::operator new(bytes, std::align_val_t{alignment}, std::nothrow);
}

void plain_release(void*, void* pointer, std::int32_t, std::uint64_t, sq_stream_handle) { ::operator delete(pointer, std::align_val_t{alignment}); }

}  // namespace

void configure(sq_context& context, const sq_host* given) {
  context.host = read_struct(given, "sq_host");
  const sq_host& host = context.host;
  if (host.abi_version != SQ_ABI_VERSION)
    throw Error(Code::CALL_VERSION, "host speaks contract version " + std::to_string(host.abi_version) + ", this implementation version " +
                                        std::to_string(SQ_ABI_VERSION));
  if (host.device.kind != SQ_CPU || host.device.index != 0) throw Error(Code::CALL_DEVICE, "reference runs on the CPU, not on " + device_text(host.device));
  context.allocator = {sizeof(sq_allocator), 0, nullptr, plain_allocate, plain_release};
  if (host.allocator) {
    context.allocator = read_struct(host.allocator, "sq_allocator");
    if (!context.allocator.allocate || !context.allocator.release) throw Error(Code::CALL_NULL, "sq_allocator: allocate and release are both required");
  }
  context.host.allocator = nullptr;  // the copy above is the one in use
  context.threads = host.threads ? host.threads : std::max(1u, std::thread::hardware_concurrency());
}

Memory::Memory(const sq_context& context, sq_memory_kind kind, std::uint64_t bytes, const std::string& tag)
    : context_(&context), kind_(kind), bytes_(bytes) {
  if (bytes == 0) return;
  void* pointer = context.allocator.allocate(context.allocator.user, kind, bytes, alignment, nullptr, tag.c_str());
  if (!pointer)
    throw Error(kind == SQ_MEM_HOST || kind == SQ_MEM_HOST_PINNED ? Code::HOST_OOM : Code::GPU_OOM,
                "allocation of " + std::to_string(bytes) + " bytes for '" + tag + "' failed");
  data_ = static_cast<std::byte*>(pointer);
}

Memory::~Memory() {
  if (data_) context_->allocator.release(context_->allocator.user, data_, kind_, bytes_, nullptr);
}

Matrix::Matrix(const sq_context& context, std::int64_t rows, std::int64_t columns, const char* tag)
    : memory_(context, SQ_MEM_SCRATCH, static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(columns) * sizeof(float), tag), columns_(columns) {
  if (memory_.bytes()) std::memset(memory_.data(), 0, memory_.bytes());
}

}  // namespace squareq::reference
