#include "gates/adapter/exchange_files.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "gates/adapter/answer.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/tensor.hpp"
#include "squareq/text.hpp"

namespace squareq::gates::adapter {
namespace {

constexpr std::uint64_t max_header_bytes = 1u << 20;
constexpr std::size_t buffer_bytes = 1u << 20;

std::int64_t count(const sq_tensor& t) {
  std::int64_t n = 1;
  for (std::int32_t i = 0; i < t.rank; ++i) n *= t.shape[i];
  return n;
}

std::uint64_t bytes_of(const sq_tensor& t) { return static_cast<std::uint64_t>(count(t)) * dtype_bytes(t.dtype); }

/// Calls `run(first element of a run, elements in it, stride)` for every innermost row, in row-major order.
template <class F>
void for_each_row(const sq_tensor& t, F&& run) {
  if (count(t) == 0) return;
  auto* base = static_cast<std::byte*>(t.data);
  const auto element = static_cast<std::int64_t>(dtype_bytes(t.dtype));
  if (t.rank == 0) return run(base, 1, 1);
  const std::int32_t last = t.rank - 1;
  std::int64_t index[SQ_MAX_RANK] = {};
  for (;;) {
    std::int64_t offset = 0;
    for (std::int32_t i = 0; i < last; ++i) offset += index[i] * t.strides[i];
    run(base + offset * element, t.shape[last], t.strides[last]);
    std::int32_t i = last - 1;
    while (i >= 0 && ++index[i] == t.shape[i]) index[i--] = 0;
    if (i < 0) return;
  }
}

class Output {
 public:
  explicit Output(const std::filesystem::path& path) : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) {
    if (!fd_) throw_errno(errno, "write", path_);
    buffer_.reserve(buffer_bytes);
  }
  void write(const void* data, std::size_t bytes) {
    if (buffer_.size() + bytes > buffer_bytes) flush();
    if (bytes > buffer_bytes) return direct(data, bytes);
    const auto* from = static_cast<const char*>(data);
    buffer_.insert(buffer_.end(), from, from + bytes);
  }
  void flush() {
    direct(buffer_.data(), buffer_.size());
    buffer_.clear();
  }

 private:
  void direct(const void* data, std::size_t bytes) {
    const auto* from = static_cast<const char*>(data);
    while (bytes) {
      const ssize_t n = ::write(fd_.get(), from, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw_errno(errno, "write", path_);
      from += n;
      bytes -= static_cast<std::size_t>(n);
    }
  }

  std::filesystem::path path_;
  UniqueFd fd_;
  std::vector<char> buffer_;
};

[[noreturn]] void broken(const std::string& text) { throw Fault(Fault::Kind::protocol, "the adapter's output file " + text); }

}  // namespace

std::string protocol_dtype(std::int32_t dtype) {
  if (dtype < SQ_F32 || dtype > SQ_I64) return "#" + std::to_string(dtype);
  return std::string(dtype_name(from_sq_dtype(static_cast<sq_dtype>(dtype))));
}

void write_inputs(const std::filesystem::path& path, const std::vector<NamedTensor>& inputs) {
  // Wide elements first: every tensor then lies at a multiple of its element size, which some readers rely on.
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& t : inputs) order.push_back(&t);
  std::stable_sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) { return dtype_bytes(a->tensor->dtype) > dtype_bytes(b->tensor->dtype); });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::uint64_t position = 0;
  for (const NamedTensor* t : order) {
    const std::uint64_t end = position + bytes_of(*t->tensor);
    header[t->name] = {{"dtype", protocol_dtype(t->tensor->dtype)}, {"shape", std::vector<std::int64_t>(t->tensor->shape, t->tensor->shape + t->tensor->rank)}, {"data_offsets", {position, end}}};
    position = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  Output out(path);
  const std::uint64_t length = text.size();
  out.write(&length, sizeof length);
  out.write(text.data(), text.size());
  for (const NamedTensor* t : order) {
    const auto element = static_cast<std::int64_t>(dtype_bytes(t->tensor->dtype));
    if (t->blank) {
      const std::vector<std::byte> zeros(bytes_of(*t->tensor));
      out.write(zeros.data(), zeros.size());
      continue;
    }
    for_each_row(*t->tensor, [&](const std::byte* row, std::int64_t elements, std::int64_t stride) {
      if (stride == 1) return out.write(row, static_cast<std::size_t>(elements * element));
      for (std::int64_t i = 0; i < elements; ++i) out.write(row + i * stride * element, static_cast<std::size_t>(element));
    });
  }
  out.flush();
}

void read_outputs(const std::filesystem::path& path, const std::vector<NamedTensor>& outputs) {
  std::uint64_t expected = 8 + max_header_bytes;
  for (const NamedTensor& t : outputs) expected += bytes_of(*t.tensor);
  std::error_code ignored;
  if (!std::filesystem::exists(std::filesystem::symlink_status(path, ignored))) broken("is missing");
  try {
    InputFile input = InputFile::open(path);
    if (input.bytes() > expected) broken("holds " + std::to_string(input.bytes()) + " bytes, at most " + std::to_string(expected) + " can be right");
    const SafetensorsFile file = SafetensorsFile::open(std::move(input));
    for (const TensorRecord& record : file.header().tensors)
      if (std::none_of(outputs.begin(), outputs.end(), [&](const NamedTensor& t) { return t.name == record.name; })) broken("holds a tensor '" + printable(record.name, 60) + "' that was not asked for");
    std::vector<std::vector<std::byte>> data;
    for (const NamedTensor& t : outputs) {
      const TensorRecord* record = file.header().find(t.name);
      if (!record) broken("lacks '" + t.name + "'");
      const std::string wanted = protocol_dtype(t.tensor->dtype);
      if (dtype_name(record->dtype) != wanted) broken("holds '" + t.name + "' with dtype " + std::string(dtype_name(record->dtype)) + ", asked for " + wanted);
      const std::vector<std::int64_t> shape(record->shape.begin(), record->shape.end());
      if (shape != std::vector<std::int64_t>(t.tensor->shape, t.tensor->shape + t.tensor->rank)) broken("holds '" + t.name + "' with shape " + shape_text(shape) + ", asked for " + shape_text(*t.tensor));
      data.push_back(file.read_all(t.name));
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const std::byte* from = data[i].data();
      const auto element = static_cast<std::int64_t>(dtype_bytes(outputs[i].tensor->dtype));
      for_each_row(*outputs[i].tensor, [&](std::byte* row, std::int64_t elements, std::int64_t stride) {
        for (std::int64_t e = 0; e < elements; ++e, from += element) std::memcpy(row + e * stride * element, from, static_cast<std::size_t>(element));
      });
    }
  } catch (const Error& error) {
    broken("cannot be read: " + std::string(code_name(error.code())) + ": " + error.what());
  }
}

}  // namespace squareq::gates::adapter
