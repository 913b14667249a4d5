// Steps 4 to 22 of the container checks (SQ-FMT-010 to 030): text, JSON, records, layout.

#include <algorithm>
#include <numeric>
#include <tuple>

#include "squareq/slab/checked.hpp"
#include "squareq/slab/limits.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/slab/strict_json.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

class HeaderHandler final : public StrictJson {
 public:
  HeaderHandler(std::string_view text, Report& report, const std::string& file) : report_(report), file_(file) {
    // One allocation, and never more records than the text can hold.
    const auto braces = static_cast<std::size_t>(std::count(text.begin(), text.end(), '{'));
    header.tensors.reserve(std::min(braces, text.size() / limits::smallest_record_bytes + 1));
  }

  Header header;
  bool root_is_object = false;
  bool records_good = true;  // every record complete and no key twice: the layout can be judged

  bool inside_integers() const { return field_ == Field::shape || field_ == Field::offsets; }

 private:
  enum class Field { none, dtype, shape, offsets, unknown };
  static constexpr std::size_t field_count = 3;
  struct FieldState {
    bool seen = false, good = true;
  };

  void on_value(std::uint32_t depth, JsonValue v) override {
    if (depth == 0) root_is_object = v.kind == JsonValue::Kind::object;
    if (!root_is_object) return;
    if (in_metadata_) return metadata_value(depth, v);
    if (depth == 1) return record_value(v);
    if (!record_is_object_) return;
    if (depth == 2) return field_value(v);
    if (depth == 3 && inside_integers()) element(v);
  }

  void on_key(std::uint32_t depth, std::string& key) override {
    if (!root_is_object) return;
    if (depth == 1) {
      in_metadata_ = key == "__metadata__";
      if (in_metadata_) metadata_told_ = false;
      else record_.name = std::move(key);
    } else if (depth == 2 && in_metadata_) {
      metadata_key_ = std::move(key);
    } else if (depth == 2 && record_is_object_) {
      field_ = key == "dtype" ? Field::dtype : key == "shape" ? Field::shape : key == "data_offsets" ? Field::offsets : Field::unknown;
      if (field_ == Field::unknown)
        report_.add(Code::ST_FIELD_UNKNOWN, "tensor " + in_quotes(record_.name) + " has an unknown field " + in_quotes(key), file_, {}, record_.name);
    }
  }

  void on_end(std::uint32_t depth) override {
    if (depth == 2 && record_is_object_ && inside_integers()) finish_array();
    if (depth == 1 && record_is_object_) end_record();
    if (depth == 1) in_metadata_ = false;
  }

  void on_duplicate(std::uint32_t depth, std::string_view key) override {
    records_good = false;
    const std::string where = depth == 1 ? "the header" : in_metadata_ ? "__metadata__" : "tensor " + in_quotes(record_.name);
    report_.add(Code::ST_DUP, where + " holds the key " + in_quotes(key) + " twice", file_, {}, depth == 1 ? std::string(key) : std::string());
  }

  void metadata_value(std::uint32_t depth, const JsonValue& v) {
    const bool good = depth == 1 ? v.kind == JsonValue::Kind::object : depth != 2 || v.kind == JsonValue::Kind::string;
    if (depth == 2 && good) header.metadata.emplace_back(std::move(metadata_key_), std::move(*v.text));
    if (!good && !metadata_told_) {
      metadata_told_ = true;
      report_.add(Code::ST_META_TYPE, "__metadata__ must be an object of strings; " +
                                          (depth == 1 ? std::string("it is ") : "the value of " + in_quotes(metadata_key_) + " is ") +
                                          std::string(kind_name(v.kind)), file_);
    }
    if (depth == 1 && v.kind != JsonValue::Kind::object) in_metadata_ = v.kind == JsonValue::Kind::array;
  }

  void record_value(const JsonValue& v) {
    record_is_object_ = v.kind == JsonValue::Kind::object;
    fields_ = {};
    field_ = Field::none;
    record_.shape.clear();
    if (!record_is_object_) bad(Code::ST_FIELD_TYPE, "the record of tensor " + in_quotes(record_.name) + " is " + std::string(kind_name(v.kind)) + ", not an object");
  }

  FieldState& state(Field field) { return fields_[static_cast<std::size_t>(field) - 1]; }

  void field_value(JsonValue& v) {
    if (field_ == Field::unknown) return;
    FieldState& s = state(field_);
    s = {true, true};
    const bool wants_string = field_ == Field::dtype;
    if (v.kind != (wants_string ? JsonValue::Kind::string : JsonValue::Kind::array)) {
      bad_field(Code::ST_FIELD_TYPE, std::string("is ") + std::string(kind_name(v.kind)) + (wants_string ? ", not a string" : ", not an array"));
      field_ = Field::none;
    } else if (wants_string) {
      const auto dtype = parse_dtype(*v.text);
      if (dtype) record_.dtype = *dtype;
      else bad_field(Code::ST_DTYPE, "is " + in_quotes(*v.text) + ", which is no known dtype");
    } else if (field_ == Field::shape) {
      record_.shape = {};
      record_.shape.reserve(elements_ahead());
    } else {
      offset_count_ = 0;
    }
  }

  void element(const JsonValue& v) {
    FieldState& s = state(field_);
    if (v.kind == JsonValue::Kind::negative || v.kind == JsonValue::Kind::other_number) {
      if (s.good) bad_field(Code::ST_INT, "holds a number that is not a plain unsigned 64-bit integer");
    } else if (v.kind != JsonValue::Kind::natural) {
      if (s.good) bad_field(Code::ST_FIELD_TYPE, "holds " + std::string(kind_name(v.kind)) + "; only integers may stand there");
    } else if (s.good && field_ == Field::shape) {
      record_.shape.push_back(v.natural);
    }
    if (field_ == Field::offsets) {
      if (offset_count_ < 2 && v.kind == JsonValue::Kind::natural) (offset_count_ == 0 ? record_.begin : record_.end) = v.natural;
      ++offset_count_;
    }
  }

  void finish_array() {
    if (field_ == Field::offsets && offset_count_ != 2)
      bad_field(Code::ST_FIELD_TYPE, "holds " + std::to_string(offset_count_) + " elements, not 2");
    field_ = Field::none;
  }

  void end_record() {
    record_is_object_ = false;
    bool good = true;
    for (const Field field : {Field::dtype, Field::shape, Field::offsets}) {
      if (!state(field).seen) bad(Code::ST_FIELD_MISSING, "tensor " + in_quotes(record_.name) + " has no " + std::string(field_name(field)));
      good = good && state(field).seen && state(field).good;
    }
    if (good) header.tensors.push_back(std::move(record_));
    record_ = {};
  }

  static std::string_view field_name(Field field) {
    return field == Field::dtype ? "dtype" : field == Field::shape ? "shape" : "data_offsets";
  }

  void bad(Code code, std::string message) {
    records_good = false;
    report_.add(code, std::move(message), file_, {}, record_.name);
  }

  void bad_field(Code code, const std::string& what) {
    state(field_).good = false;
    bad(code, std::string(field_name(field_)) + " of tensor " + in_quotes(record_.name) + " " + what);
  }

  Report& report_;
  const std::string& file_;
  bool in_metadata_ = false, metadata_told_ = false, record_is_object_ = false;
  std::string metadata_key_;
  TensorRecord record_;
  Field field_ = Field::none;
  std::array<FieldState, field_count> fields_{};
  std::uint64_t offset_count_ = 0;
};

// Steps 5, 7 and 8: what must hold of the raw bytes before a parser sees them.
bool text_is_clean(std::string_view text, Report& report, const std::string& file) {
  if (text.empty()) {
    report.add(Code::ST_JSON, "the header is empty", file);
    return false;
  }
  const bool bom = text.starts_with("\xEF\xBB\xBF");
  if (bom || text[0] == ' ' || text[0] == '\t' || text[0] == '\n' || text[0] == '\r') {
    report.add(Code::ST_BAD_START, bom ? "the header starts with a byte order mark, not with '{'" : "the header starts with white space, not with '{'", file);
    return false;
  }
  if (const std::size_t at = find_control_byte(text); at != std::string_view::npos) {
    report.add(Code::ST_CONTROL_BYTES, "the header holds the control byte " + std::to_string(static_cast<unsigned>(text[at])) + " at byte " + std::to_string(at), file);
    return false;
  }
  if (const std::size_t at = find_invalid_utf8(text); at != std::string_view::npos) {
    report.add(Code::ST_UTF8, "the header is not valid UTF-8 at byte " + std::to_string(at), file);
    return false;
  }
  return true;
}

std::string range_text(const TensorRecord& t) { return "[" + std::to_string(t.begin) + ", " + std::to_string(t.end) + ")"; }

// Steps 17 to 19 for one tensor; `expected` is where the previous one ended.
void check_extent(const TensorRecord& t, std::uint64_t expected, Report& report, const std::string& file) {
  if (t.end < t.begin)
    report.add(Code::ST_OFFSETS, "tensor " + in_quotes(t.name) + " has the reversed range " + range_text(t), file, {}, t.name);
  else if (t.begin != expected)
    report.add(Code::ST_OFFSETS, "tensor " + in_quotes(t.name) + " starts at byte " + std::to_string(t.begin) + (t.begin < expected ? ", inside the one before it, which ends at " : ", and the one before it ends at ") +
                                     std::to_string(expected), file, {}, t.name);
  const TensorExtent extent = tensor_extent(t.shape, dtype_bits(t.dtype));
  if (extent.overflow)
    report.add(Code::ST_OVERFLOW, "the shape of tensor " + in_quotes(t.name) + " overflows 64 bits", file, {}, t.name);
  else if (!extent.whole)
    report.add(Code::ST_SIZE, "tensor " + in_quotes(t.name) + " of dtype " + std::string(dtype_name(t.dtype)) + " does not fill whole bytes", file, {}, t.name);
  else if (t.end >= t.begin && t.bytes() != extent.bytes)
    report.add(Code::ST_SIZE, "tensor " + in_quotes(t.name) + " has the range " + range_text(t) + " of " + std::to_string(t.bytes()) +
                                  " bytes; its dtype and shape need " + std::to_string(extent.bytes), file, {}, t.name);
}

void check_layout(const Header& header, Report& report, const std::string& file) {
  const std::uint64_t data_bytes = header.file_bytes - header.data_start;
  std::uint64_t expected = 0;
  std::uint64_t last = 0;
  for (const TensorRecord& t : header.tensors) {
    check_extent(t, expected, report, file);
    if (t.end >= t.begin) expected = t.end;
    last = std::max(last, t.end);
  }
  if (last > data_bytes)
    report.add(Code::ST_TRUNCATED, "the tensors need " + std::to_string(last) + " bytes of data and the file has " + std::to_string(data_bytes), file);
  else if (last < data_bytes && !report.has(Code::ST_OFFSETS))
    report.add(Code::ST_TRAILING, "the tensors end after " + std::to_string(last) + " bytes of data and the file has " + std::to_string(data_bytes), file);
}

}  // namespace

std::optional<Header> parse_header(std::span<const std::byte> bytes, std::uint64_t file_bytes, Report& report, const std::string& file) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!text_is_clean(text, report, file)) return std::nullopt;

  Report found;
  HeaderHandler handler(text, found, file);
  if (const auto failure = handler.scan(text)) {
    if (failure->syntax)
      report.add(Code::ST_JSON, "the header is not valid JSON at byte " + std::to_string(failure->position), file);
    if (failure->number_range && handler.inside_integers())
      report.add(Code::ST_INT, "the header holds a number beyond any range at byte " + std::to_string(failure->position), file);
    if (failure->too_deep)
      report.add(Code::ST_DEPTH, "the header nests deeper than " + std::to_string(limits::json_depth) + " levels", file);
    return std::nullopt;
  }
  if (!handler.root_is_object) {
    report.add(Code::ST_ROOT, "the header is valid JSON, but not an object", file);
    return std::nullopt;
  }

  Header header = std::move(handler.header);
  header.data_start = 8 + static_cast<std::uint64_t>(bytes.size());
  header.file_bytes = file_bytes;
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorRecord& a, const TensorRecord& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  header.by_name.resize(header.tensors.size());
  std::iota(header.by_name.begin(), header.by_name.end(), 0u);
  std::sort(header.by_name.begin(), header.by_name.end(),
            [&](std::uint32_t a, std::uint32_t b) { return header.tensors[a].name < header.tensors[b].name; });

  // Most structural first; codes are numbered in the order of the checks.
  std::stable_sort(found.problems.begin(), found.problems.end(), [](const Problem& a, const Problem& b) { return a.code < b.code; });
  if (handler.records_good) check_layout(header, found, file);
  const bool good = found.ok();
  report.append(std::move(found));
  if (!good) return std::nullopt;
  return header;
}

}  // namespace squareq
