// Header text of the writer: the bytes of the reference serializer (SQ-FMT-031 to 036).

#include <algorithm>
#include <numeric>

#include "squareq/slab/checked.hpp"
#include "squareq/slab/limits.hpp"
#include "squareq/slab/strict_json.hpp"
#include "squareq/slab/writer.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

// As serde_json writes strings: only what must be escaped is; everything else stays raw UTF-8.
void append_string(std::string& out, std::string_view text) {
  static constexpr char hex[] = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    const auto b = static_cast<unsigned char>(c);
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\b': out += "\\b"; break;
      case '\f': out += "\\f"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      default:
        if (b < 0x20) {
          out += "\\u00";
          out += hex[b >> 4];
          out += hex[b & 15];
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

void append_record(std::string& out, const TensorRecord& t) {
  append_string(out, t.name);
  out += ":{\"dtype\":\"";
  out += dtype_name(t.dtype);
  out += "\",\"shape\":[";
  for (std::size_t i = 0; i < t.shape.size(); ++i) out += (i ? "," : "") + std::to_string(t.shape[i]);
  out += "],\"data_offsets\":[" + std::to_string(t.begin) + "," + std::to_string(t.end) + "]}";
}

[[noreturn]] void refuse(const std::string& message) { throw Error(Code::CALL_VALUE, message); }

void require_utf8(std::string_view text, const char* what) {
  if (find_invalid_utf8(text) != std::string_view::npos) refuse(std::string(what) + " " + in_quotes(text) + " is not valid UTF-8");
}

void require_unique(std::vector<std::string_view> names, const char* what) {
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) refuse(std::string(what) + " " + in_quotes(*twice) + " was given twice");
}

// Serializes records that already have their order and offsets.
FileLayout serialize(std::vector<TensorRecord> tensors, const Metadata& metadata) {
  std::string text = "{";
  if (!metadata.empty()) {
    text += "\"__metadata__\":{";
    for (std::size_t i = 0; i < metadata.size(); ++i) {
      if (i) text += ',';
      append_string(text, metadata[i].first);
      text += ':';
      append_string(text, metadata[i].second);
    }
    text += '}';
  }
  for (const TensorRecord& t : tensors) {
    if (text.size() > 1) text += ',';
    append_record(text, t);
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > limits::header_bytes) refuse("a header of " + std::to_string(text.size()) + " bytes is over the format's limit of " + std::to_string(limits::header_bytes));

  FileLayout layout;
  for (int i = 0; i < 8; ++i) layout.prefix += static_cast<char>((text.size() >> (8 * i)) & 0xFF);
  layout.prefix += text;
  Header& header = layout.header;
  header.data_start = layout.prefix.size();
  const auto total = checked_add(header.data_start, tensors.empty() ? 0 : tensors.back().end);
  if (!total) refuse("the tensors overflow 64 bits");
  header.file_bytes = *total;
  header.tensors = std::move(tensors);
  header.metadata = metadata;
  header.by_name.resize(header.tensors.size());
  std::iota(header.by_name.begin(), header.by_name.end(), 0u);
  std::sort(header.by_name.begin(), header.by_name.end(), [&](std::uint32_t a, std::uint32_t b) { return header.tensors[a].name < header.tensors[b].name; });
  return layout;
}

}  // namespace

FileLayout make_layout(std::vector<TensorSpec> specs, const Metadata& metadata) {
  std::vector<std::string_view> names, keys;
  for (const TensorSpec& spec : specs) {
    require_utf8(spec.name, "tensor name");
    if (spec.name == "__metadata__") refuse("a tensor may not be named '__metadata__'");
    names.push_back(spec.name);
  }
  for (const auto& [key, value] : metadata) {
    require_utf8(key, "metadata key");
    require_utf8(value, "metadata value");
    keys.push_back(key);
  }
  require_unique(std::move(names), "tensor");
  require_unique(std::move(keys), "metadata key");

  std::sort(specs.begin(), specs.end(), [](const TensorSpec& a, const TensorSpec& b) { return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name; });
  std::vector<TensorRecord> tensors;
  tensors.reserve(specs.size());
  std::uint64_t at = 0;
  for (TensorSpec& spec : specs) {
    const TensorExtent extent = tensor_extent(spec.shape, dtype_bits(spec.dtype));
    const auto end = checked_add(at, extent.bytes);
    if (extent.overflow || !end) refuse("the shape of tensor " + in_quotes(spec.name) + " overflows 64 bits");
    if (!extent.whole) refuse("tensor " + in_quotes(spec.name) + " of dtype " + std::string(dtype_name(spec.dtype)) + " does not fill whole bytes");
    tensors.push_back({std::move(spec.name), spec.dtype, std::move(spec.shape), at, *end});
    at = *end;
  }
  return serialize(std::move(tensors), metadata);
}

FileLayout make_layout(const Header& header) {
  std::vector<TensorSpec> specs;
  specs.reserve(header.tensors.size());
  for (const TensorRecord& t : header.tensors) specs.push_back({t.name, t.dtype, t.shape});
  return make_layout(std::move(specs), header.metadata);
}

}  // namespace squareq
