#include "squareq/slab/strict_json.hpp"

#include <algorithm>

#include "squareq/slab/limits.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

// Walks the text for the parser and tells where it is, so that positions and look-ahead need no second lexer.
class Cursor {
 public:
  using iterator_category = std::forward_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  Cursor(const char* at, const char** shared) : at_(at), shared_(shared) {}
  reference operator*() const { return *at_; }
  Cursor& operator++() {
    *shared_ = ++at_;
    return *this;
  }
  Cursor operator++(int) {
    Cursor before = *this;
    ++*this;
    return before;
  }
  bool operator==(const Cursor& other) const { return at_ == other.at_; }
  bool operator!=(const Cursor& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  const char** shared_;
};

}  // namespace

std::size_t find_control_byte(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto b = static_cast<unsigned char>(text[i]);
    if (b < 0x20 && b != 0x09 && b != 0x0A && b != 0x0D) return i;
  }
  return std::string_view::npos;
}

std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    std::uint32_t code_point = 0;
    const std::size_t length = decode_utf8(text, i, code_point);
    if (length == 0) return i;
    i += length;
  }
  return std::string_view::npos;
}

std::string_view kind_name(JsonValue::Kind kind) {
  switch (kind) {
    case JsonValue::Kind::null: return "null";
    case JsonValue::Kind::boolean: return "a boolean";
    case JsonValue::Kind::natural: return "an integer";
    case JsonValue::Kind::negative: return "a negative integer";
    case JsonValue::Kind::other_number: return "a number with fraction or exponent, or beyond 64 bits";
    case JsonValue::Kind::string: return "a string";
    case JsonValue::Kind::object: return "an object";
    case JsonValue::Kind::array: return "an array";
  }
  return "unknown";
}

std::optional<StrictJson::Failure> StrictJson::scan(std::string_view text) {
  static_assert(max_depth == limits::json_depth);
  text_ = text;
  cursor_ = text.data();
  const Cursor first(text.data(), &cursor_);
  const Cursor last(text.data() + text.size(), &cursor_);
  nlohmann::json::sax_parse(first, last, static_cast<nlohmann::json_sax<nlohmann::json>*>(this), nlohmann::json::input_format_t::json, true);
  if (failure_.syntax || failure_.too_deep) return failure_;
  return std::nullopt;
}

std::size_t StrictJson::elements_ahead() const {
  const char* const end = text_.data() + text_.size();
  std::size_t commas = 0;
  for (const char* p = cursor_; p != end; ++p) {
    if (*p == ']') return commas + 1;
    if (*p == ',') ++commas;
    if (*p == '"' || *p == '[' || *p == '{') return 0;
  }
  return 0;
}

bool StrictJson::number_integer(number_integer_t n) {
  JsonValue v{JsonValue::Kind::negative};
  v.negative = n;
  return value(v);
}

bool StrictJson::number_unsigned(number_unsigned_t n) {
  JsonValue v{JsonValue::Kind::natural};
  v.natural = n;
  return value(v);
}

bool StrictJson::string(string_t& text) {
  JsonValue v{JsonValue::Kind::string};
  v.text = &text;
  return value(v);
}

bool StrictJson::value(JsonValue v) {
  if (depth_ <= max_depth) on_value(static_cast<std::uint32_t>(depth_), v);
  return true;
}

bool StrictJson::open(JsonValue v) {
  value(v);
  if (depth_ < max_depth) {
    frames_[static_cast<std::size_t>(depth_)] = {keys_.size(), arena_.size()};
  } else if (!failure_.too_deep) {
    failure_.too_deep = true;
    failure_.position = position();
  }
  ++depth_;
  return true;
}

bool StrictJson::key(string_t& text) {
  if (depth_ > max_depth) return true;
  keys_.push_back({static_cast<std::uint32_t>(arena_.size()), static_cast<std::uint32_t>(text.size())});
  arena_ += text;
  on_key(static_cast<std::uint32_t>(depth_), text);
  return true;
}

bool StrictJson::close(bool object) {
  --depth_;
  if (depth_ >= max_depth) return true;
  const Frame frame = frames_[static_cast<std::size_t>(depth_)];
  if (object) {
    const auto view = [&](const Key& k) { return std::string_view(arena_).substr(k.begin, k.bytes); };
    const auto first = keys_.begin() + static_cast<std::ptrdiff_t>(frame.first_key);
    std::sort(first, keys_.end(), [&](const Key& a, const Key& b) { return view(a) < view(b); });
    for (auto k = first; k != keys_.end(); ++k) {
      const bool repeated = k != first && view(*k) == view(*(k - 1));
      const bool told = k - first >= 2 && repeated && view(*(k - 2)) == view(*k);
      if (repeated && !told) on_duplicate(static_cast<std::uint32_t>(depth_) + 1, view(*k));
    }
    keys_.resize(frame.first_key);
    arena_.resize(frame.arena_bytes);
  }
  on_end(static_cast<std::uint32_t>(depth_));
  return true;
}

bool StrictJson::parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
  failure_.syntax = true;
  failure_.number_range = error.id == 406;
  failure_.position = position;
  return false;
}

}  // namespace squareq
