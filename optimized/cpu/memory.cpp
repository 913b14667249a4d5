#include "optimized/cpu/memory.hpp"

#include <new>
#include <string>
#include <utility>

#include "squareq/error.hpp"

namespace squareq::cpu {
namespace {

void* plain_allocate(void*, std::int32_t, std::uint64_t bytes, std::uint64_t alignment, sq_stream_handle, const char*) {
  return ::operator new(bytes, std::align_val_t(alignment), std::nothrow);
}

void plain_release(void*, void* pointer, std::int32_t, std::uint64_t, sq_stream_handle) {
  ::operator delete(pointer, std::align_val_t(kAlignment));
}

}  // namespace

Allocator::Allocator(const sq_allocator* table) {
  if (table != nullptr) {
    table_ = *table;
  } else {
    table_.allocate = plain_allocate;
    table_.release = plain_release;
  }
}

void* Allocator::allocate(std::int32_t kind, std::uint64_t bytes, const char* tag, sq_status failure) const {
  void* pointer = table_.allocate(table_.user, kind, bytes, kAlignment, nullptr, tag);
  if (pointer == nullptr) throw Error(static_cast<Code>(failure), "allocation of " + std::to_string(bytes) + " bytes for " + tag + " failed");
  return pointer;
}

void Allocator::release(void* pointer, std::int32_t kind, std::uint64_t bytes) const {
  table_.release(table_.user, pointer, kind, bytes, nullptr);
}

Block::Block(const Allocator& allocator, std::int32_t kind, std::uint64_t bytes, const char* tag, sq_status failure)
    : allocator_(&allocator), data_(allocator.allocate(kind, bytes, tag, failure)), kind_(kind), bytes_(bytes) {}

Block::Block(Block&& other) noexcept { *this = std::move(other); }

Block& Block::operator=(Block&& other) noexcept {
  if (this == &other) return *this;
  reset();
  allocator_ = other.allocator_;
  data_ = std::exchange(other.data_, nullptr);
  kind_ = other.kind_;
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

void Block::reset() {
  if (data_ != nullptr) allocator_->release(data_, kind_, bytes_);
  data_ = nullptr;
  bytes_ = 0;
}

void Scratch::add(void** pointer, std::uint64_t bytes) {
  if (bytes == 0) return;
  parts_.push_back({pointer, total_});
  total_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

void Scratch::commit() {
  if (total_ == 0) return;
  block_ = Block(allocator_, SQ_MEM_SCRATCH, total_, "cpu.scratch", SQ_HOST_OOM);
  for (const Part& p : parts_) *p.pointer = block_.data() + p.offset;
}

}  // namespace squareq::cpu
