#include "gates/adapter/answer.hpp"

#include <array>
#include <optional>

#include "squareq/slab/strict_json.hpp"
#include "squareq/text.hpp"

namespace squareq::gates::adapter {
namespace {

using nlohmann::json;

[[noreturn]] void broken(const std::string& text) { throw Fault(Fault::Kind::protocol, text); }

std::string in_marks(std::string_view text) { return "'" + printable(text, 120) + "'"; }

/// Finds what nlohmann's tree would hide: a key that stands twice, nesting without end.
class Strict final : public StrictJson {
 public:
  std::optional<std::string> duplicate;

 private:
  void on_value(std::uint32_t, JsonValue) override {}
  void on_key(std::uint32_t, std::string&) override {}
  void on_end(std::uint32_t) override {}
  void on_duplicate(std::uint32_t, std::string_view key) override { duplicate = std::string(key); }
};

json strict_object(std::string_view line) {
  if (line.size() > max_answer_bytes) broken("the answer is longer than " + std::to_string(max_answer_bytes) + " bytes");
  if (find_control_byte(line) != std::string_view::npos) broken("the answer holds a control byte: " + in_marks(line));
  if (find_invalid_utf8(line) != std::string_view::npos) broken("the answer is not UTF-8: " + in_marks(line));
  Strict strict;
  if (const auto failure = strict.scan(line)) broken((failure->too_deep ? "the answer nests too deep: " : "the answer is not JSON: ") + in_marks(line));
  if (strict.duplicate) broken("the answer holds the key " + in_marks(*strict.duplicate) + " twice");
  json object = json::parse(line, nullptr, false);
  if (!object.is_object()) broken("the answer is no JSON object: " + in_marks(line));
  return object;
}

std::string text_of(const json& object, const char* key, bool required) {
  const auto found = object.find(key);
  if (found == object.end() && !required) return {};
  if (found == object.end() || !found->is_string()) broken(std::string("the answer has no string '") + key + "'");
  return found->get<std::string>();
}

void only(const json& object, std::initializer_list<std::string_view> keys) {
  for (const auto& [key, value] : object.items()) {
    bool known = false;
    for (const std::string_view k : keys) known = known || k == key;
    if (!known) broken("the answer holds an unknown key " + in_marks(key));
  }
}

Code code_of(const std::string& name) {
#define SQ_CODE(code, number, klass, meaning) \
  if (name == #code) return Code::code;
#include "squareq/error_codes.inc"
#undef SQ_CODE
  broken("the answer refuses with " + in_marks(name) + ", which is no code of the registry");
}

}  // namespace

Answer parse_answer(std::string_view line, std::uint64_t id) {
  const json object = strict_object(line);
  const auto given = object.find("id");
  if (given == object.end() || !given->is_number_unsigned()) broken("the answer has no whole number 'id': " + in_marks(line));
  if (given->get<std::uint64_t>() != id) broken("the answer's id is " + std::to_string(given->get<std::uint64_t>()) + ", the request's " + std::to_string(id));
  const std::string kind = text_of(object, "answer", true);
  Answer answer;
  if (kind == "ok") {
    only(object, {"id", "answer", "result"});
    if (const auto result = object.find("result"); result != object.end()) {
      if (!result->is_object()) broken("the answer's 'result' is no object");
      answer.result = *result;
    }
  } else if (kind == "refused") {
    only(object, {"id", "answer", "code", "message", "layer", "tensor"});
    answer.kind = Answer::Kind::refused;
    answer.code = code_of(text_of(object, "code", true));
    answer.message = text_of(object, "message", true);
    answer.layer = text_of(object, "layer", false);
    answer.tensor = text_of(object, "tensor", false);
  } else if (kind == "unsupported") {
    only(object, {"id", "answer", "message"});
    answer.kind = Answer::Kind::unsupported;
    answer.code = Code::CALL_UNSUPPORTED;
    answer.message = text_of(object, "message", false);
  } else {
    broken("the answer's kind is " + in_marks(kind) + ", must be ok, refused or unsupported");
  }
  return answer;
}

}  // namespace squareq::gates::adapter
