#include "gates/harness/tensor_file.hpp"

#include <cstring>
#include <nlohmann/json.hpp>

#include "squareq/error.hpp"

namespace squareq::gates {
namespace {

constexpr std::pair<std::string_view, std::int32_t> dtypes[] = {{"F32", SQ_F32}, {"F16", SQ_F16}, {"BF16", SQ_BF16}, {"F64", SQ_F64},
                                                                {"I8", SQ_I8},   {"U8", SQ_U8},   {"I32", SQ_I32},   {"I64", SQ_I64}};

}  // namespace

std::int32_t contract_dtype(std::string_view name) {
  for (const auto& [text, dtype] : dtypes)
    if (text == name) return dtype;
  throw Error(Code::INTERNAL, "vector of dtype " + std::string(name));
}

std::map<std::string, FileTensor> read_tensors(std::string_view file) {
  std::uint64_t header = 0;
  std::memcpy(&header, file.data(), sizeof header);
  const auto object = nlohmann::json::parse(file.substr(8, header));
  const auto* data = reinterpret_cast<const std::byte*>(file.data()) + 8 + header;
  std::map<std::string, FileTensor> tensors;
  for (const auto& [name, record] : object.items()) {
    if (name == "__metadata__") continue;
    const auto begin = record["data_offsets"][0].get<std::size_t>(), end = record["data_offsets"][1].get<std::size_t>();
    tensors[name] = {record["dtype"].get<std::string>(), record["shape"].get<std::vector<std::int64_t>>(), {data + begin, end - begin}};
  }
  return tensors;
}

Guarded guarded(const std::string& name, Role role, const FileTensor& tensor, std::int64_t row_stride) {
  Guarded g(name, role, contract_dtype(tensor.dtype), tensor.shape, row_stride);
  if (role != Role::out) g.set_bytes(tensor.bytes);
  return g;
}

std::string write_tensors(const std::vector<std::pair<std::string, const Guarded*>>& tensors) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const std::vector<std::byte> bytes = tensor->bytes();
    const sq_tensor& t = *tensor->tensor();
    header[name] = {{"dtype", "F32"}, {"shape", std::vector<std::int64_t>(t.shape, t.shape + t.rank)}, {"data_offsets", {data.size(), data.size() + bytes.size()}}};
    data.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + text + data;
}

}  // namespace squareq::gates
