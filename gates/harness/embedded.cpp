#include "gates/harness/embedded.hpp"

#include <algorithm>
#include <cstddef>
#include <string>

#include "squareq/error.hpp"

namespace squareq::gates {

struct EmbeddedFile {
  const char* name;
  const char* begin;
  const char* end;
};
extern const EmbeddedFile embedded_files[];
extern const std::size_t embedded_file_count;

std::string_view embedded(std::string_view name) {
  for (std::size_t i = 0; i < embedded_file_count; ++i)
    if (embedded_files[i].name == name)
      return {embedded_files[i].begin, static_cast<std::size_t>(embedded_files[i].end - embedded_files[i].begin)};
  throw Error(Code::INTERNAL, "no embedded file '" + std::string(name) + "'");
}

std::vector<std::string_view> embedded_names(std::string_view prefix) {
  std::vector<std::string_view> names;
  for (std::size_t i = 0; i < embedded_file_count; ++i)
    if (std::string_view(embedded_files[i].name).starts_with(prefix)) names.emplace_back(embedded_files[i].name);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace squareq::gates
