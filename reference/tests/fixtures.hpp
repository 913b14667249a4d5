// The vectors of fixtures/linear: index and safetensors files. The reader trusts them: they are ours.
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>

#include "fixtures/places.hpp"
#include "reference/tests/harness.hpp"

namespace squareq::tests {

inline std::string fixture_path(const std::string& name) { return test::fixtures() / "linear" / name; }

inline nlohmann::json read_index() {
  std::ifstream file(fixture_path("index.json"));
  return nlohmann::json::parse(file).at("cases");
}

/// All tensors of a case; `row_stride` spreads the rows of the named ones.
inline std::map<std::string, Tensor> read_case(const std::string& name, const nlohmann::json& row_stride) {
  static const std::map<std::string, std::int32_t> dtypes = {{"F32", SQ_F32}, {"F16", SQ_F16}, {"BF16", SQ_BF16}, {"F64", SQ_F64}, {"I8", SQ_I8}, {"I64", SQ_I64}};
  std::ifstream file(fixture_path("cases/" + name + ".safetensors"), std::ios::binary);
  std::uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), 8);
  std::string header(header_bytes, ' ');
  file.read(header.data(), static_cast<std::streamsize>(header_bytes));
  std::map<std::string, Tensor> tensors;
  const auto records = nlohmann::json::parse(header);
  for (const auto& [key, record] : records.items()) {
    Tensor t(dtypes.at(record.at("dtype")), record.at("shape").get<std::vector<std::int64_t>>(), row_stride.value(key, std::int64_t{0}));
    file.seekg(static_cast<std::streamoff>(8 + header_bytes + record.at("data_offsets")[0].get<std::uint64_t>()));
    const auto row_bytes = static_cast<std::streamsize>(static_cast<std::size_t>(t.columns()) * dtype_bytes(t.view.dtype));
    for (std::int64_t r = 0; r < t.rows(); ++r) file.read(reinterpret_cast<char*>(t.bytes.data() + t.offset(r, 0)), row_bytes);
    tensors.emplace(key, std::move(t));
  }
  return tensors;
}

}  // namespace squareq::tests
