#include "squareq/training/trainer/strict_json.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "squareq/text.hpp"

namespace squareq::training {

using json = nlohmann::ordered_json;

namespace {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0]++;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t cost = std::min({row[j] + 1, row[j + 1] + 1, diagonal + (a[i] != b[j])});
      diagonal = row[j + 1];
      row[j + 1] = cost;
    }
  }
  return row.back();
}

}  // namespace

json parse_strict(const std::string& text, const std::string& what, Code code) {
  constexpr int max_depth = 64;
  if (text.starts_with("\xEF\xBB\xBF")) throw Error(code, what + ": starts with a byte order mark", what);
  // The parser takes a NUL for the end of its input and would ignore whatever follows.
  if (const std::size_t at = text.find('\0'); at != std::string::npos)
    throw Error(code, fmt::format("{}: NUL byte at offset {}", what, at), what);
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > max_depth) throw Error(code, fmt::format("{}: nests deeper than {} levels", what, max_depth), what);
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get_ref<const std::string&>()).second)
      throw Error(code, fmt::format("{}: key '{}' stands twice in one object", what, printable(value.get_ref<const std::string&>())), what);
    return true;
  };
  try {
    json root = json::parse(text, watch);
    if (!root.is_object() && !root.is_array())
      throw Error(code, fmt::format("{}: is a {}, expected an object or a list", what, root.type_name()), what);
    return root;
  } catch (const json::parse_error& e) {
    throw Error(code, fmt::format("{}: not valid JSON at byte {}", what, e.byte), what);
  } catch (const json::exception&) {
    throw Error(code, fmt::format("{}: holds a number outside the range of a double", what), what);
  }
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

}  // namespace squareq::training
