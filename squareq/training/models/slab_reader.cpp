#include "squareq/training/models/slab_reader.hpp"

#include <fmt/format.h>

#include <array>
#include <cstdio>

#include "squareq/error.hpp"
#include "squareq/slab/digest.hpp"

namespace squareq::training {

namespace {

constexpr std::uint32_t kParts = 4;

void fill(sq_error* error, const Problem& problem) {
  if (!error) return;
  error->code = static_cast<sq_status>(problem.code);
  const auto put = [](char* to, std::size_t size, const std::string& text) { std::snprintf(to, size, "%s", text.c_str()); };
  put(error->message, sizeof error->message, problem.message);
  put(error->layer, sizeof error->layer, problem.layer);
  put(error->tensor, sizeof error->tensor, problem.tensor);
  put(error->file, sizeof error->file, problem.file);
}

}  // namespace

sq_status guarded(sq_error* error, const std::function<void()>& work) {
  try {
    work();
    return SQ_OK;
  } catch (const Error& e) {
    fill(error, e.problem());
    return static_cast<sq_status>(e.code());
  } catch (const std::bad_alloc&) {
    fill(error, {Code::HOST_OOM, "host memory exhausted", {}, {}, {}});
    return SQ_HOST_OOM;
  } catch (const std::exception& e) {
    fill(error, {Code::INTERNAL, e.what(), {}, {}, {}});
    return SQ_INTERNAL;
  }
}

SlabReader::SlabReader(std::shared_ptr<const Slab> slab, std::vector<std::vector<std::size_t>> layers, bool verify, Progress progress)
    : slab_(std::move(slab)),
      layers_(std::move(layers)),
      verify_(verify),
      progress_(std::move(progress)),
      verified_(slab_->layer_count() * kParts) {
  for (const TensorRecord& record : slab_->file().header().tensors) total_bytes_ += record.bytes();
}

void SlabReader::verify(std::size_t layer, std::uint32_t part, const TensorRecord& record, const std::byte* data) const {
  const std::string file = slab_->paths().slab.string();
  if (const auto expected = slab_->expected_digest(record.name)) {
    const std::uint64_t found = xxh3(data, record.bytes());
    if (found != *expected)
      throw Error(Code::DT_CHECKSUM,
                  fmt::format("tensor '{}' has checksum {}, the companion says {}", record.name, digest_hex(found), digest_hex(*expected)),
                  file, slab_->layer(layer).canonical_name, record.name);
  }
  if (part != 0) return;
  Report report;
  check_codes(slab_->layer(layer), 0, record.shape[0], reinterpret_cast<const std::int8_t*>(data), file, report);
  if (!report.problems.empty()) throw Error(report.problems.front());
}

void SlabReader::read(std::uint32_t block, std::uint32_t layer, std::uint32_t part, std::uint64_t offset, void* destination,
                      std::uint64_t bytes) {
  const std::size_t index = layers_[block][layer];
  const LayerTensors& tensors = slab_->tensors(index);
  const std::array<const TensorRecord*, kParts> records{tensors.qweight, tensors.scale, tensors.zero_point, tensors.bias};
  const TensorRecord& record = *records[part];
  std::atomic<bool>& verified = verified_[index * kParts + part];
  slab_->file().read(record, offset, destination, bytes);
  if (verify_ && !verified.load()) {
    if (offset == 0 && bytes == record.bytes()) {
      verify(index, part, record, static_cast<const std::byte*>(destination));
    } else {
      std::vector<std::byte> all(record.bytes());
      slab_->file().read(record, 0, all.data(), all.size());
      verify(index, part, record, all.data());
    }
    verified = true;
  }
  const std::uint64_t done = read_bytes_ += bytes;
  if (progress_ && done <= total_bytes_) progress_(done, total_bytes_, "slab");
}

}  // namespace squareq::training
