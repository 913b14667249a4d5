// JSON of files that people or other programs wrote, read strictly: one root object, no key twice, at most 64 levels, no byte of the
// input in an error message.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/error.hpp"

namespace squareq::training {

/// Parses `text` or throws Error(code) that names `what` and the byte offset.
nlohmann::ordered_json parse_strict(const std::string& text, const std::string& what, Code code);

/// The candidate with the smallest edit distance, if that is at most 2 or a third of the length; else "".
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace squareq::training
