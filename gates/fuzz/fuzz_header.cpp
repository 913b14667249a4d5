// Any bytes as a whole safetensors file. Beyond not crashing: what is accepted is accepted by the official package's rules too and obeys
// its layout, and the writer reproduces what the reader understood.

#include <cstdint>
#include <span>
#include <string>

#include "gates/fuzz/common.hpp"
#include "gates/fuzz/official_rules.hpp"
#include "squareq/slab/checked.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/slab/writer.hpp"

using namespace squareq;
using fuzz::require;

namespace {

void check_accepted(const Header& header) {
  std::uint64_t expected = 0;
  for (const TensorRecord& t : header.tensors) {
    const TensorExtent extent = tensor_extent(t.shape, dtype_bits(t.dtype));
    require(t.begin == expected && t.end >= t.begin && !extent.overflow && extent.whole && extent.bytes == t.bytes());
    require(header.find(t.name) == &t);
    expected = t.end;
  }
  require(header.data_start + expected == header.file_bytes);

  const FileLayout layout = make_layout(header);
  Report report;
  const std::string_view text = std::string_view(layout.prefix).substr(8);
  const auto again = parse_header(std::as_bytes(std::span(text.data(), text.size())), layout.header.file_bytes, report);
  require(again && again->tensors.size() == header.tensors.size() && again->metadata == header.metadata);
  for (const TensorRecord& t : header.tensors) {
    const TensorRecord* other = again->find(t.name);
    require(other && other->dtype == t.dtype && other->shape == t.shape);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // The first 8 bytes are the length, as in a file; a length that does not fit is replaced, so that the parser is what gets fuzzed.
  if (size < 8) return 0;
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = (length << 8) | data[i];
  if (length > size - 8) length = size - 8;
  Report report;
  const auto header = parse_header(std::as_bytes(std::span(data + 8, static_cast<std::size_t>(length))), size, report, "fuzz");
  require(header.has_value() == report.ok());
  fuzz::require_report(report);
  if (!header) return 0;
  check_accepted(*header);
  std::string file(reinterpret_cast<const char*>(data), size);
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(length >> (8 * i));
  require(fuzz::official_accepts(file));
  return 0;
}
