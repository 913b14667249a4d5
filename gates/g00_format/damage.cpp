#include "gates/g00_format/damage.hpp"

#include <cstring>

namespace squareq::gates::g00 {

using nlohmann::json;
using nlohmann::ordered_json;

std::size_t header_bytes(const Pair& p) {
  std::uint64_t n = 0;
  std::memcpy(&n, p.slab.data(), 8);
  return static_cast<std::size_t>(n);
}

void set_header(Pair& p, std::string text, bool padded) {
  if (padded) text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t n = text.size();
  p.slab = std::string(reinterpret_cast<const char*>(&n), 8) + text + p.slab.substr(8 + header_bytes(p));
}

Damage header_text(const std::string& from, const std::string& to) {
  return [=](Pair& p) {
    std::string text = p.slab.substr(8, header_bytes(p));
    const std::size_t at = text.find(from);
    require(at != std::string::npos, "the suite's own damage does not apply: " + from);
    set_header(p, text.replace(at, from.size(), to));
  };
}

Damage manifest(const std::function<void(ordered_json&)>& edit) {
  return [=](Pair& p) {
    ordered_json object = ordered_json::parse(p.manifest);
    edit(object);
    p.manifest = object.dump(2, ' ', true);
  };
}

Damage top(const std::string& key, const ordered_json& value) {
  return manifest([=](ordered_json& m) { m[key] = value; });
}

Damage layer(const std::string& key, const ordered_json& value) {
  return manifest([=](ordered_json& m) { m["layers"][1][key] = value; });
}

Damage data(const std::string& tensor, std::size_t offset, const std::string& bytes) {
  return [=](Pair& p) {
    const std::size_t start = 8 + header_bytes(p);
    const auto header = json::parse(p.slab.substr(8, header_bytes(p)));
    const auto begin = header.at(tensor)["data_offsets"][0].get<std::size_t>();
    p.slab.replace(start + begin + offset, bytes.size(), bytes);
  };
}

std::string f32(float value) {
  std::string bytes(4, '\0');
  std::memcpy(bytes.data(), &value, 4);
  return bytes;
}

}  // namespace squareq::gates::g00
