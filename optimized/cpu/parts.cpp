#include "optimized/cpu/parts.hpp"

#include <algorithm>
#include <set>

#include "optimized/cpu/matrix.hpp"
#include "squareq/text.hpp"

namespace squareq::cpu {

std::string require_name(const char* given, const char* owner) {
  if (given == nullptr) refuse(SQ_CALL_NULL, "", "", std::string(owner) + ".name is null, expected the layer's name");
  return given;
}

void require_format(const char* given, std::string_view offered, const std::string& layer, const std::string& subject) {
  const std::string expected = ", expected '" + std::string(offered) + "'";
  if (given == nullptr) refuse(SQ_CALL_NULL, layer, subject, "format is null" + expected);
  if (given != offered) refuse(SQ_CALL_UNSUPPORTED, layer, subject, "format is '" + printable(given) + "'" + expected);
}

Parts::Parts(const sq_part* parts, std::uint32_t count, const std::string& layer, std::string_view format,
             std::initializer_list<std::string_view> required, std::initializer_list<std::string_view> optional)
    : parts_(parts), count_(count) {
  if (parts == nullptr && count > 0) refuse(SQ_CALL_NULL, layer, "", "the list of parts is null, its count is " + std::to_string(count));
  std::set<std::string_view> seen;
  for (std::uint32_t i = 0; i < count; ++i) {
    if (parts[i].name == nullptr) refuse(SQ_CALL_NULL, layer, "", "name of part " + std::to_string(i) + " is null");
    const std::string_view name = parts[i].name;
    const auto in = [&](const auto& names) { return std::find(names.begin(), names.end(), name) != names.end(); };
    if (!in(required) && !in(optional)) refuse(SQ_CALL_VALUE, layer, printable(name), "format " + std::string(format) + " has no such part");
    if (!seen.insert(name).second) refuse(SQ_CALL_VALUE, layer, printable(name), "is given twice, expected once");
  }
  for (const std::string_view name : required)
    if (!seen.contains(name)) refuse(SQ_CALL_PART, layer, std::string(name), "format " + std::string(format) + " requires this part and it is not given");
}

const sq_tensor* Parts::operator[](std::string_view name) const {
  const sq_part* found = find_part(parts_, count_, name);
  return found == nullptr ? nullptr : &found->tensor;
}

}  // namespace squareq::cpu
