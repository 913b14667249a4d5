// One pass over untrusted JSON text: what nlohmann's parser lets through is closed here (BOM, control bytes, NUL as end of input,
// duplicate keys, unbounded nesting, numbers that pass through double). Derived handlers see values with their depth, never a tree.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace squareq {

/// Byte position of the first byte that makes `text` unusable, or npos.
std::size_t find_control_byte(std::string_view text);  ///< < 0x20 other than tab, LF, CR; covers NUL
std::size_t find_invalid_utf8(std::string_view text);

struct JsonValue {
  enum class Kind { null, boolean, natural, negative, other_number, string, object, array };
  Kind kind;
  std::uint64_t natural = 0;      ///< Kind::natural: 0 .. 2^64 - 1
  std::int64_t negative = 0;      ///< Kind::negative: < 0, or -0
  std::string* text = nullptr;    ///< Kind::string: unescaped, may be moved from
};

/// "a string", "null", ... for messages.
std::string_view kind_name(JsonValue::Kind kind);

/// Derive, then call scan(). Values beyond the depth limit are not shown. Memory: the keys of the objects that are open.
class StrictJson : public nlohmann::json_sax<nlohmann::json> {
 public:
  struct Failure {
    bool syntax = false;
    bool number_range = false;  ///< the syntax error is a number outside double's range
    bool too_deep = false;
    std::size_t position = 0;   ///< byte of the syntax error, or where the depth was first exceeded
  };

  /// The text must hold no control byte and be UTF-8. Iterative; returns what stopped or spoiled the pass, if anything did.
  std::optional<Failure> scan(std::string_view text);

 protected:
  /// A scalar, or the start of a container. `depth` containers are open around it (0: the root value).
  virtual void on_value(std::uint32_t depth, JsonValue value) = 0;
  /// A key of the object that is the depth-th open container.
  virtual void on_key(std::uint32_t depth, std::string& key) = 0;
  /// A container closed; `depth` are still open.
  virtual void on_end(std::uint32_t depth) = 0;
  /// A key stands twice in one object of that depth; told when the object closes.
  virtual void on_duplicate(std::uint32_t depth, std::string_view key) = 0;

  /// Elements of the flat array that was just opened, counted ahead so that a vector is allocated once; 0 where it is not flat.
  std::size_t elements_ahead() const;
  /// Bytes consumed so far.
  std::size_t position() const { return static_cast<std::size_t>(cursor_ - text_.data()); }

 private:
  bool null() override { return value({JsonValue::Kind::null}); }
  bool boolean(bool) override { return value({JsonValue::Kind::boolean}); }
  bool number_integer(number_integer_t n) override;
  bool number_unsigned(number_unsigned_t n) override;
  bool number_float(number_float_t, const string_t&) override { return value({JsonValue::Kind::other_number}); }
  bool string(string_t& text) override;
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open({JsonValue::Kind::object}); }
  bool start_array(std::size_t) override { return open({JsonValue::Kind::array}); }
  bool end_object() override { return close(true); }
  bool end_array() override { return close(false); }
  bool key(string_t& text) override;
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) override;

  bool value(JsonValue v);
  bool open(JsonValue v);
  bool close(bool object);

  struct Key {
    std::uint32_t begin, bytes;
  };
  struct Frame {
    std::size_t first_key, arena_bytes;
  };
  static constexpr std::size_t max_depth = 64;

  std::string_view text_;
  const char* cursor_ = nullptr;
  Failure failure_;
  std::uint64_t depth_ = 0;
  std::array<Frame, max_depth> frames_{};
  std::vector<Key> keys_;
  std::string arena_;
};

}  // namespace squareq
